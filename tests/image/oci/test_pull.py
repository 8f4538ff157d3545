"""Pulling: from a registry that behaves and one that does not, from layouts and archives."""

import base64
import errno
import io
import json
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

from ringzero.disk import open_disk
from ringzero.errors import GuestImageError, HostError, NotFoundError, RingzeroError
from ringzero.image import http, micro
from ringzero.image.micro import BootFiles
from ringzero.image.oci import boot
from ringzero.image.oci import pull as pulling
from ringzero.image.oci import registry as client
from ringzero.image.oci.files import open_files, open_root
from ringzero.image.oci.pull import pull
from ringzero.image.oci.reference import parse
from ringzero.image.oci.store import Store
from ringzero.records import replace
from tests.image.oci.images import FakeRegistry, Image


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client, "_PAUSE", 0.01)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def take(name, cache, **more):
    return pull(parse(name), cache=cache, architecture="amd64", **more)


def blobs(cache):
    return {f"sha256:{path.name}" for path in (cache / "blobs" / "sha256").glob("*")}


BIG = {"big": bytes(range(256)) * 4000}


@pytest.mark.parametrize("packing", ["", "+gzip", "+zstd"])
def test_an_image_comes_whole(registry, cache, packing):
    image = Image([{"a": b"1"}, {"b": b"2"}], {"Entrypoint": ["/x"], "Cmd": ["y"]}, packing)
    found = take(registry.add("app", image) + ":1", cache)
    assert found.digest == image.digest
    assert (found.entrypoint, found.cmd) == (("/x",), ("y",))
    assert blobs(cache) == set(image.blobs)
    with open_disk(found.root, read_only=True) as disk:
        assert disk.size == found.size
    assert Store(cache).named(parse(f"{registry.host}/app:1")) == found


def test_what_is_there_is_not_asked_for_again(registry, cache):
    name = registry.add("app", Image([{"a": b"1"}]))
    take(name, cache)
    before = len(registry.log)
    take(name, cache)
    assert [path for path, *_ in registry.log[before:]] == ["/v2/app/manifests/latest"]


def test_127_layers(registry, cache):
    image = Image([{f"f{n}": b"%d" % n, "same": b"%d" % n} for n in range(127)])
    assert len(take(registry.add("deep", image), cache).layers) == 127


def test_a_platform_is_chosen(registry, cache):
    arm = Image([{"arm": b""}], architecture="arm64")
    ours = Image([{"x86": b""}])
    name = registry.add("multi", Image([{"x86": b""}]).index((arm, "arm64")))
    assert take(name, cache).digest == ours.digest
    with pytest.raises(NotFoundError, match="linux/riscv64"):
        pull(parse(name), cache=cache, architecture="riscv64")


def test_transfers_that_break_off_go_on(registry, cache):
    name = registry.add("app", Image([BIG], packing=""))
    registry.cut = 3
    take(name, cache)
    ranges = [h["Range"] for path, _, h in registry.log if "/blobs/" in path and "Range" in h]
    assert len(ranges) == 3 and ranges == sorted(ranges, key=lambda r: int(r[6:-1]))


def test_what_has_come_is_kept_for_another_time(registry, cache, monkeypatch):
    image = Image([BIG], packing="")
    name, layer = registry.add("app", image), image.layers[0]["digest"]
    monkeypatch.setattr(client, "_ATTEMPTS", 0)
    registry.cut = 1
    with pytest.raises(HostError, match="broke off"):
        take(name, cache)
    partial = cache / "blobs" / "partial" / layer.replace(":", "-")
    begin = partial.stat().st_size
    assert 0 < begin < len(image.blobs[layer])
    take(name, cache)
    assert f"bytes={begin}-" in [headers.get("Range") for *_, headers in registry.log]
    assert not list(partial.parent.iterdir())


def test_a_registry_that_takes_nothing_up_again(registry, cache):
    name = registry.add("app", Image([BIG], packing=""))
    registry.ranges, registry.cut = False, 2
    take(name, cache)


def test_a_busy_registry_is_asked_again(registry, cache):
    name = registry.add("app", Image([{"a": b"1"}]))
    registry.busy = 3
    take(name, cache)


def test_a_wrong_digest_is_refused_and_not_kept(registry, cache):
    image = Image([BIG], packing="")
    name = registry.add("app", image)
    layer = image.layers[0]["digest"]
    right = image.blobs[layer]
    image.blobs[layer] = right[:-1] + b"!"
    with pytest.raises(GuestImageError, match="digest"):
        take(name, cache)
    assert layer not in blobs(cache)
    image.blobs[layer] = right
    take(name, cache)


def test_a_blob_longer_than_told_is_refused(registry, cache):
    image = Image([BIG], packing="")
    name = registry.add("app", image)
    image.blobs[image.layers[0]["digest"]] += b"more"
    with pytest.raises(GuestImageError, match="more than"):
        take(name, cache)


def test_a_manifest_that_is_not_the_one_asked_for(registry, cache):
    image, other = Image([{"a": b"1"}]), Image([{"b": b"1"}])
    name = registry.add("app", image)
    image.blobs[image.digest] = other.blobs[other.digest]
    with pytest.raises(GuestImageError, match="digest"):
        take(f"{name}@{image.digest}", cache)


def test_layers_that_are_not_what_the_configuration_says(registry, cache):
    image = Image([{"a": b"1"}], packing="")
    value = json.loads(image.blobs[image.config["digest"]])
    value["rootfs"]["diff_ids"] = ["sha256:" + "0" * 64]
    image.rewrite(value)
    with pytest.raises(GuestImageError, match="layer 1"):
        take(registry.add("app", image), cache)
    assert not list((cache / "images").glob("*/root.erofs"))


def test_schema_1_is_refused_by_name(registry, cache):
    image = Image([{"a": b"1"}])
    data = json.dumps({"schemaVersion": 1, "fsLayers": []}).encode()
    image.digest = image._put(data, "application/vnd.docker.distribution.manifest.v1+json")[
        "digest"
    ]
    with pytest.raises(GuestImageError, match="schema 1"):
        take(registry.add("old", image), cache)


def test_a_bomb_is_bounded(registry, cache, monkeypatch):
    monkeypatch.setenv("RINGZERO_IMAGE_LIMIT", "1M")
    with pytest.raises(GuestImageError, match="unpacks to more than 1 MiB"):
        take(registry.add("bomb", Image([{"zeros": bytes(64 << 20)}])), cache)
    assert not list((cache / "images").glob(".partial*"))


def test_nobody_is_there(registry, cache):
    with pytest.raises(NotFoundError, match="unknown name"):
        take(f"{registry.host}/none", cache)
    with pytest.raises(HostError, match="Connection refused"):
        take("127.0.0.1:1/none", cache)


def test_a_server_that_never_answers_to_a_connection(registry, cache, monkeypatch):
    """Once, and not again: looking its name up counts, which nothing else would bound."""
    connects, over = [], threading.Event()

    def connect(connection):
        connects.append(connection.host)
        over.wait(60)

    monkeypatch.setattr(http, "_CONNECT", 0.1)
    monkeypatch.setattr("http.client.HTTPConnection.connect", connect)
    with pytest.raises(HostError, match=r": no connection within 0\.1 seconds"):
        take(f"{registry.host}/none", cache)
    over.set()
    assert len(connects) == 1


# ---- who we are ------------------------------------------------------------


def log_in(monkeypatch, tmp_path, config):
    place = tmp_path / "docker"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("DOCKER_CONFIG", str(place))


def auths(host, pair="me:secret"):
    return {"auths": {host: {"auth": base64.b64encode(pair.encode()).decode()}}}


def test_a_token_for_anybody(registry, cache):
    registry.token = "t0ken"
    take(registry.add("app", Image([{"a": b"1"}])), cache)
    (asked,) = [query for path, query, _ in registry.log if path == "/token"]
    assert "service=fake" in asked and "scope=pull" in asked


def test_a_token_for_those_who_log_in(registry, cache, monkeypatch, tmp_path):
    registry.token, registry.basic = "t0ken", ("me", "secret")
    name = registry.add("app", Image([{"a": b"1"}]))
    with pytest.raises(HostError, match="does not let us"):
        take(name, cache)
    log_in(monkeypatch, tmp_path, auths(registry.host))
    take(name, cache)


def test_basic(registry, cache, monkeypatch, tmp_path):
    registry.basic = ("me", "secret")
    name = registry.add("app", Image([{"a": b"1"}]))
    with pytest.raises(HostError, match="does not let us"):
        take(name, cache)
    log_in(monkeypatch, tmp_path, auths(registry.host))
    take(name, cache)


def test_a_credential_helper(registry, cache, monkeypatch, tmp_path):
    registry.basic = ("me", "secret")
    helper = tmp_path / "bin" / "docker-credential-test"
    helper.parent.mkdir()
    helper.write_text(
        f'#!/bin/sh\nread server; [ "$1 $server" = "get {registry.host}/app" ] || exit 1\n'
        'echo \'{"Username": "me", "Secret": "secret"}\'\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(helper.parent), prepend=":")
    log_in(monkeypatch, tmp_path, {"credHelpers": {registry.host: "test"}})
    take(registry.add("app", Image([{"a": b"1"}])), cache)


def test_a_redirect_takes_no_secrets_along(registry, cache, monkeypatch, tmp_path):
    elsewhere = FakeRegistry()
    try:
        image = Image([{"a": b"1"}])
        elsewhere.add("app", image)
        registry.basic, registry.redirect = ("me", "secret"), elsewhere.host
        log_in(monkeypatch, tmp_path, auths(registry.host))
        take(registry.add("app", image), cache)
        assert elsewhere.log and not any("Authorization" in h for *_, h in elsewhere.log)
    finally:
        elsewhere.close()


def test_mirrors_come_first_and_need_not_be_there(registry, cache, monkeypatch):
    registry.add("app", Image([{"a": b"1"}]))
    registry.images["library"] = registry.images["app"]
    monkeypatch.setenv("RINGZERO_REGISTRY_MIRRORS", f"127.0.0.1:1,quay.example={registry.host}")
    take("quay.example/app", cache)


# ---- Ctrl-C -------------------------------------------------------------------


def test_an_interrupted_pull_ends_at_once_and_goes_on_later(registry, cache, tmp_path):
    image = Image([{"big": random.Random(1).randbytes(3_000_000)}, {"small": b"1"}], packing="")
    name = registry.add("app", image)
    registry.stall = threading.Event()
    environment = {"RINGZERO_CACHE_DIR": str(cache), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "ringzero", "pull", name]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as child:
        assert registry.stalled.wait(60)
        partial = cache / "blobs" / "partial" / image.layers[0]["digest"].replace(":", "-")
        deadline = time.monotonic() + 30
        while not partial.exists() or not partial.stat().st_size:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        # The server goes on saying nothing; the silence that is borne is a minute.
        assert child.wait(45) == 130
        assert "Traceback" not in child.stderr.read()
    begin = partial.stat().st_size
    assert begin and not list((cache / "images").glob("*/"))
    registry.stall.set()
    registry.stall = None
    assert take(name, cache).digest == image.digest
    assert f"bytes={begin}-" in [headers.get("Range") for *_, headers in registry.log]
    assert not list(partial.parent.iterdir())


# ---- images on this disk ----------------------------------------------------


def test_a_layout(cache, tmp_path):
    image = Image([{"a": b"1"}])
    image.write_layout(tmp_path / "layout")
    assert take(f"oci:{tmp_path}/layout:1", cache).digest == image.digest
    assert take(f"oci:{tmp_path}/layout", cache).digest == image.digest
    with pytest.raises(NotFoundError, match="called '2'"):
        take(f"oci:{tmp_path}/layout:2", cache)
    with pytest.raises(GuestImageError, match="no OCI image layout"):
        take(f"oci:{tmp_path}", cache)


def test_an_archive(cache, tmp_path):
    image = Image([{"a": b"1"}], packing="")
    listed = [{"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["l/layer.tar"]}]
    contents = {
        "manifest.json": json.dumps(listed).encode(),
        "c.json": image.blobs[image.config["digest"]],
        "l/layer.tar": image.blobs[image.layers[0]["digest"]],
    }
    path = tmp_path / "app.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    found = take(f"docker-archive:{path}", cache)
    assert found.layers == (image.layers[0]["digest"],)
    assert take(f"docker-archive:{path}:app:1", cache).digest == found.digest
    with pytest.raises(NotFoundError):
        take(f"docker-archive:{path}:other:1", cache)
    path.write_bytes(b"nonsense" * 100)
    with pytest.raises(GuestImageError):
        take(f"docker-archive:{path}", cache)


# ---- the store ---------------------------------------------------------------


def test_removing_and_pruning(registry, cache):
    base = {"base": b"1"}
    one, two = Image([base, {"a": b"1"}]), Image([base, {"b": b"1"}])
    names = [registry.add("one", one), registry.add("two", two)]
    for name in names:
        take(name, cache)
    store = Store(cache)
    assert [image.names for image in store.images()] == [(f"{n}:latest",) for n in names]
    store.remove(names[0])
    assert blobs(cache) == set(two.blobs)
    assert store.named(parse(names[0])) is None
    # A tag that has moved on leaves an image without a name.
    registry.add("two", one)
    take(names[1], cache)
    gone, freed = store.prune()
    assert [image.digest for image in gone] == [two.digest] and freed > 0
    assert blobs(cache) == set(one.blobs)
    with pytest.raises(NotFoundError):
        store.remove("none")


def test_equal_images_have_equal_roots(registry, tmp_path):
    name = registry.add("app", Image([{"d/a": b"1", "b": b"2"}, {"l": ("->", "b")}]))
    roots = [take(name, tmp_path / str(n)).root for n in range(2)]
    one, other = (
        {path.name: path.read_bytes() for path in root.parent.iterdir()} for root in roots
    )
    assert one == other


def test_content_that_higher_layers_hide(registry, cache):
    hidden = [random.Random(n).randbytes(100_000) for n in range(3)]
    kept = random.Random(3).randbytes(100_000)
    layers = [
        {"a": hidden[0], "b": hidden[1], "d/c": hidden[2], "same": b"1" * 5000},
        {"a": b"2" * 5000, ".wh.b": b"", "d/.wh..wh..opq": b"", "e": kept},
        {"same": b"3" * 9000},
    ]
    found = take(registry.add("app", Image(layers)), cache)
    with open_files(found) as files:
        contents = {name: files.read(f"/{name}", 1 << 20) for name in ("a", "e", "same")}
        assert contents == {"a": b"2" * 5000, "e": kept, "same": b"3" * 9000}
        assert files.listing("/d") == [] and not files.read("/b", 1)


@pytest.mark.parametrize(
    ("config", "user"),
    [
        ({"User": "me"}, "user=1000 groups=1000,44"),
        ({"User": "1000"}, "user=1000 groups=1000,44"),
        ({"User": "7"}, "user=7 groups=0"),
        ({"User": "me:video"}, "user=1000 groups=44"),
        ({}, "user=0 groups=0"),
    ],
)
def test_users_are_looked_up_in_the_image(registry, cache, config, user):
    files = {
        "etc/passwd": b"root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n",
        "etc/group": b"root:x:0:\nvideo:x:44:me,you\n",
    }
    found = take(registry.add("app", Image([files], config)), cache)
    with open_root(found.root) as system:
        assert user.encode() in system.read("/config")


def test_volumes_and_health_are_told_and_volumes_are_there(registry, cache):
    config = {"Volumes": {"/data/db": {}}, "Healthcheck": {"Test": ["CMD-SHELL", "true"]}}
    found = take(registry.add("app", Image([{"a": b"1"}], config)), cache)
    assert found.volumes == ("/data/db",) and found.healthcheck == ("CMD-SHELL", "true")
    assert found.summary()["volumes"] == ["/data/db"]
    with open_root(found.root) as system:
        assert system.stat("/rootfs/data/db").is_directory


@pytest.mark.parametrize(
    "config",
    [
        {"User": "9" * 5000},
        {"User": "0:" + "9" * 5000},
        {"Env": ["A=\ud800"]},
        {"WorkingDir": "/\udfff"},
        {"WorkingDir": "/a/b"},
        {"Volumes": {"/a/b": {}}},
        {"Volumes": {"../../x": {}}},
        {"Healthcheck": {"Test": [1]}},
        {"Healthcheck": {"Test": ["CMD", "x"], "Interval": "30s"}},
        {"Healthcheck": {"Test": ["CMD", "x"], "Timeout": 10**19}},
        {"Healthcheck": {"Test": ["CMD", "x"], "Retries": -1}},
        {"Env": {"A": "b"}},
        {"StopSignal": "TERM; reboot"},
    ],
)
def test_configurations_that_cannot_be(registry, cache, config):
    with pytest.raises(GuestImageError):
        take(registry.add("app", Image([{"a": b"1"}], config)), cache)
    assert not list((cache / "images").glob("*/root.erofs"))


def test_the_digest_of_all_that_boots(registry, cache, monkeypatch):
    """One for one image, by whichever name it came; another one where anything differs."""
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(cache))
    base = BootFiles("micro", "0" * 24, cache, cache, "quiet", (), 0)
    monkeypatch.setattr(micro, "ensure", lambda **_: base)
    monkeypatch.setattr(pulling, "host_architecture", lambda: "amd64")
    one, two = Image([{"a": b"1"}]), Image([{"a": b"2"}])
    names = [registry.add("one", one), registry.add("same", one), registry.add("two", two)]
    first, same, other = [boot.find(name).digest for name in names]
    assert first == same == boot.find(names[0], refresh=True).digest
    assert len({first, other}) == 2 and int(first, 16)
    base = replace(base, digest="1" * 24)
    assert boot.find(names[0]).digest not in (first, other)


def test_a_user_whom_nobody_knows(registry, cache):
    with pytest.raises(RingzeroError, match="'nobody-here'"):
        take(registry.add("app", Image([{"a": b""}], {"User": "nobody-here"})), cache)


def test_the_command_line(registry, cache, tmp_path):
    name = registry.add("app", Image([{"a": b"1"}]))
    environment = {"RINGZERO_CACHE_DIR": str(cache), "HOME": str(tmp_path)}

    def ringzero(*words):
        return subprocess.run([sys.executable, "-m", "ringzero", *words], capture_output=True,
                              text=True, env=environment, timeout=60)  # fmt: skip

    assert ringzero("pull", name).stdout.startswith(f"{name}:latest@sha256:")
    assert f"{name}:latest" in ringzero("image", "ls").stdout
    (told,) = json.loads(ringzero("image", "inspect", name).stdout)
    assert told["cmd"] == ["sh"] and told["names"] == [f"{name}:latest"]
    assert ringzero("image", "rm", name).returncode == 0
    assert ringzero("image", "inspect", name).returncode == 3
    assert "freed" in ringzero("image", "prune").stdout


@pytest.mark.parametrize("linked", [True, False])
def test_images_share_the_layers_that_they_have_in_common(registry, cache, monkeypatch, linked):
    if not linked:

        def no_links(*_):
            raise OSError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(Path, "hardlink_to", no_links)
    base = {"base": random.Random(0).randbytes(1 << 20)}
    one = take(registry.add("one", Image([base, {"own": b"1" * 5000}])), cache)
    two = take(registry.add("two", Image([base, {"own": b"2" * 5000}])), cache)
    inodes = [(image.root.parent / "content-1").stat().st_ino for image in (one, two)]
    assert (inodes[0] == inodes[1]) == linked
    Store(cache).remove(one.digest)
    assert not one.root.exists()
    with open_files(two) as files:
        assert files.read("/base", 1 << 20) == base["base"]
        assert files.read("/own", 5000) == b"2" * 5000
    assert len(list((cache / "layers").iterdir())) == 2
    Store(cache).remove(two.digest)
    assert not list((cache / "layers").iterdir())
