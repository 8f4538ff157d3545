"""Images of containers beside other programs: Debian's docker-registry, umoci, skopeo, buildah;
crane and oras, which tools/test-peers fetches.
"""

import contextlib
import os
import select
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from ringzero.errors import GuestImageError, HostError
from ringzero.image.oci.pull import pull
from ringzero.image.oci.reference import parse
from tests.image.fs.made import run
from tests.image.oci.authority import make_authority
from tests.image.oci.docker_registry import (
    TokenServer,
    docker_registry,
    peer,
    with_tls,
    with_tokens,
)
from tests.image.oci.images import Image, tar

pytestmark = pytest.mark.peer
LAYERS = [
    {"a/b/c": b"1", "a/old": b"2", "gone": b"3", "link": ("->", "a"), "many/x": b"x", "f": b"f"},
    {"a/b": None, "a/.wh.old": b"", ".wh.gone": b"", "many/.wh..wh..opq": b"", "many/y": b"y",
     "hard": ("=", "f")},
    {"link/through": b"4", "f": b"new", "d": None, "empty": b"", "big": os.urandom(300_000)},
]  # fmt: skip


def need(*programs):
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")


def tree(place):
    found = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if path.is_symlink():
            found[name] = "->" + str(path.readlink())
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


@pytest.mark.parametrize("packing", ["", "+gzip", "+zstd"])
def test_umoci_unpacks_the_same_tree(tmp_path, packing):
    need("umoci", "fsck.erofs", "qemu-img")
    image = Image(LAYERS, packing=packing)
    image.write_layout(tmp_path / "layout")
    command = ["umoci", "unpack", "--rootless", "--image", f"{tmp_path}/layout:1", tmp_path / "b"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and packing == "+zstd":
        pytest.skip("this umoci knows no zstd")
    assert done.returncode == 0, done.stderr
    found = pull(parse(f"oci:{tmp_path}/layout"), cache=tmp_path / "cache", architecture="amd64")
    run("fsck.erofs", f"--extract={tmp_path}/out", whole(found.root, tmp_path))
    ours = tree(tmp_path / "out" / "rootfs")
    # Where the guest's own file systems are mounted.
    for name in ("dev", "proc", "sys", "run", "tmp", "etc"):
        assert ours.pop(name) is None
    assert ours == tree(tmp_path / "b" / "rootfs")


@pytest.fixture
def server(tmp_path):
    with docker_registry(tmp_path / "registry") as host:
        yield host


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("authority"))


def skopeo(*words):
    return run("skopeo", *words).decode().strip()


def push(image, tmp_path, target, *options):
    """Push an image with skopeo; return its name's digest there."""
    place = tmp_path / f"layout-{len(list(tmp_path.iterdir()))}"
    image.write_layout(place)
    skopeo("copy", *options, "--dest-tls-verify=false", f"oci:{place}:1", f"docker://{target}")


def take(name, tmp_path, **more):
    return pull(parse(name), cache=tmp_path / "cache", architecture="amd64", **more)


def whole(root, tmp_path):
    """Return an image's root in one file, as qemu-img reads it."""
    target = tmp_path / "root.raw"
    run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", root, target)
    return target


def files_of(found, tmp_path):
    """Return the tree in an image's root, as fsck.erofs reads it."""
    out = Path(tempfile.mkdtemp(dir=tmp_path)) / "out"
    run("fsck.erofs", f"--extract={out}", whole(found.root, out.parent))
    return tree(out / "rootfs")


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_what_skopeo_pushes_is_pulled(tmp_path, server, form):
    push(Image(LAYERS), tmp_path, f"{server}/app:1", "--format", form)
    found = take(f"{server}/app:1", tmp_path)
    told = skopeo(
        "inspect", "--tls-verify=false", "--format", "{{.Digest}}", f"docker://{server}/app:1"
    )
    assert found.digest == told
    assert take(f"{server}/app@{told}", tmp_path).root == found.root


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
def test_127_layers_packed_by_skopeo(tmp_path, server, packing):
    image = Image([{f"f{n}": b"%d" % n, "same": b"%d" % n} for n in range(127)], packing="")
    push(image, tmp_path, f"{server}/deep:1", "--dest-compress", "--dest-compress-format", packing)
    found = take(f"{server}/deep:1", tmp_path)
    assert len(found.layers) == 127
    inside = files_of(found, tmp_path)
    assert inside["same"] == b"126" and inside["f0"] == b"0" and len(inside) == 128 + 6


def test_whiteouts_by_way_of_the_registry(tmp_path, server):
    push(Image(LAYERS), tmp_path, f"{server}/app:1")
    inside = files_of(take(f"{server}/app:1", tmp_path), tmp_path)
    assert not {"gone", "a/old", "many/x"} & set(inside)
    assert inside["many/y"] == b"y" and inside["a/through"] == b"4" and inside["hard"] == b"f"


def test_crane_pushes_and_pulls(tmp_path, server):
    crane = peer("crane")
    Image(LAYERS).write_layout(tmp_path / "layout")
    subprocess.run([crane, "push", "--insecure", tmp_path / "layout", f"{server}/app:1"],
                   check=True, capture_output=True)  # fmt: skip
    found = take(f"{server}/app:1", tmp_path)
    command = [crane, "digest", "--insecure", "--platform=linux/amd64", f"{server}/app:1"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert told == found.digest == Image(LAYERS).digest
    for form, prefix in (("tarball", "docker-archive"), ("oci", "oci")):
        out = tmp_path / f"pulled-{form}"
        subprocess.run([crane, "pull", "--insecure", f"--format={form}", f"{server}/app:1", out],
                       check=True, capture_output=True)  # fmt: skip
        again = take(f"{prefix}:{out}", tmp_path)
        assert files_of(again, tmp_path) == files_of(found, tmp_path)


def test_crane_makes_an_image_of_layers(tmp_path, server):
    crane = peer("crane")
    layers = []
    for n in range(3):
        layer = tmp_path / f"layer-{n}.tar"
        layer.write_bytes(tar({f"f{n}": b"%d" % n, **({".wh.f0": b""} if n == 2 else {})}))
        layers += ["-f", str(layer)]
    command = [crane, "append", "--insecure", "--oci-empty-base", *layers, "-t", f"{server}/made:1"]
    subprocess.run(command, check=True, capture_output=True)
    command = [crane, "mutate", "--insecure", "--entrypoint", "/f1", "--env", "A=b"]
    command += ["--set-platform", "linux/amd64", "-t", f"{server}/made:2", f"{server}/made:1"]
    subprocess.run(command, check=True, capture_output=True)
    found = take(f"{server}/made:2", tmp_path)
    assert found.entrypoint == ("/f1",) and "A=b" in found.env
    inside = files_of(found, tmp_path)
    assert {"f1", "f2"} <= set(inside) and "f0" not in inside


def test_oras_copies_an_image_and_its_artifacts_are_refused(tmp_path, server):
    oras = peer("oras")
    Image(LAYERS).write_layout(tmp_path / "layout")
    subprocess.run([oras, "cp", "--from-oci-layout", f"{tmp_path}/layout:1", "--to-plain-http",
                    f"{server}/app:1"], check=True, capture_output=True)  # fmt: skip
    assert take(f"{server}/app:1", tmp_path).digest == Image(LAYERS).digest
    (tmp_path / "chart").write_text("no file system")
    subprocess.run([oras, "push", "--plain-http", f"{server}/chart:1", "chart"], cwd=tmp_path,
                   check=True, capture_output=True)  # fmt: skip
    with pytest.raises(GuestImageError, match="not the image of a container"):
        take(f"{server}/chart:1", tmp_path)


def test_buildah_makes_an_image(tmp_path, server):
    """Of single commands, with its own storage, and without running anything in it."""
    program = peer("buildah")
    common = ["--storage-driver", "vfs", "--root", f"{tmp_path}/root", "--runroot", f"{tmp_path}/r"]

    def buildah(verb, *words):
        done = subprocess.run([program, *common, verb, *map(str, words)], capture_output=True,
                              text=True, timeout=120)  # fmt: skip
        if done.returncode and verb == "from":
            pytest.skip(f"buildah does not work here: {done.stderr.strip()[-200:]}")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    (tmp_path / "file").write_text("content")
    name = buildah("from", "scratch")
    buildah("copy", name, tmp_path / "file", "/srv/file")
    buildah("config", "--user", "1000:44", "--workingdir", "/srv", "--cmd", "/x y",
            "--stop-signal", "SIGINT", "--volume", "/data", name)  # fmt: skip
    buildah("commit", "--tls-verify=false", name, f"docker://{server}/built:1")
    found = take(f"{server}/built:1", tmp_path)
    assert (found.user, found.workdir, found.cmd) == ("1000:44", "/srv", ("/x", "y"))
    assert found.volumes == ("/data",) and found.stop_signal in ("INT", "2")
    assert files_of(found, tmp_path)["srv/file"] == b"content"


def test_a_registry_of_tls_with_passwords(tmp_path, authority, monkeypatch):
    """docker-registry itself with a certificate of our own, and htpasswd."""
    # Of "secret", as `htpasswd -B` hashes it.
    hashed = "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"
    (tmp_path / "htpasswd").write_text(f"me:{hashed}\n")
    more = f"auth:\n  htpasswd:\n    realm: tests\n    path: {tmp_path}/htpasswd\n"
    with docker_registry(tmp_path / "registry", more, with_tls(authority)) as host:
        place, trusted = tmp_path / "layout", tmp_path / "trusted"
        Image(LAYERS).write_layout(place)
        trusted.mkdir()
        shutil.copy(authority / "ca.crt", trusted)
        skopeo("copy", f"--dest-cert-dir={trusted}", "--dest-creds=me:secret",
               f"oci:{place}:1", f"docker://{host}/app:1")  # fmt: skip
        certificates = tmp_path / "certs.d" / host
        certificates.mkdir(parents=True)
        shutil.copy(authority / "ca.crt", certificates)
        monkeypatch.setenv("RINGZERO_CERTS_DIR", str(tmp_path / "certs.d"))
        with pytest.raises(HostError, match="does not let us"):
            take(f"{host}/app:1", tmp_path)
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
        # What skopeo logs in with is what we read.
        skopeo("login", f"--authfile={tmp_path}/auth.json", f"--cert-dir={trusted}",
               "--username=me", "--password=secret", host)  # fmt: skip
        assert take(f"{host}/app:1", tmp_path).digest == Image(LAYERS).digest


def test_a_registry_that_wants_tokens(tmp_path, authority, monkeypatch):
    """docker-registry itself answers 401, and takes what its token server has signed."""
    tokens = TokenServer(authority, ("me", "secret"))
    try:
        more = with_tokens(authority, tokens.realm)
        with docker_registry(tmp_path / "registry", more) as host:
            push(Image(LAYERS), tmp_path, f"{host}/app:1", "--dest-creds=me:secret")
            with pytest.raises(HostError, match="does not let us"):
                take(f"{host}/app:1", tmp_path)
            monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
            skopeo("login", f"--authfile={tmp_path}/auth.json", "--tls-verify=false",
                   "--username=me", "--password=secret", host)  # fmt: skip
            assert take(f"{host}/app:1", tmp_path).digest == Image(LAYERS).digest
            assert tokens.asked[-1] == {"service": ["tests"], "scope": ["repository:app:pull"]}
    finally:
        tokens.close()


def test_a_connection_that_breaks_off_in_mid_layer(tmp_path, server):
    """docker-registry behind a line that is cut after every 200,000 bytes."""
    image = Image([{"big": os.urandom(1_000_000)}], packing="")
    push(image, tmp_path, f"{server}/app:1", "--dest-compress-format=gzip")
    with cut_line(server, 200_000) as (host, cuts):
        found = take(f"{host}/app:1", tmp_path)
    assert len(cuts) >= 4 and len(files_of(found, tmp_path)["big"]) == 1_000_000


@contextlib.contextmanager
def cut_line(target, limit):
    """Yield the address of what leads to `target` and breaks off, and the list of its cuts."""
    cuts = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            while True:
                try:
                    here, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=lead, args=(here,), daemon=True).start()

        def lead(here):
            name, _, port = target.rpartition(":")
            left = limit
            with here, socket.create_connection((name, int(port))) as there:
                ends = {here: there, there: here}
                while True:
                    for end in select.select([*ends], [], [], 20)[0]:
                        data = end.recv(65536)
                        if end is there:
                            data, left = data[:left], left - len(data)
                        if data:
                            ends[end].sendall(data)
                        if not data or left <= 0:
                            if left <= 0:
                                cuts.append(limit)
                            return

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}", cuts
        listening.shutdown(socket.SHUT_RDWR)
