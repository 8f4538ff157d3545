"""Images from files and directories, as skopeo and `docker save` write them, with their names."""

import bz2
import gzip
import io
import json
import lzma
import shutil
import subprocess
import tarfile

import pytest
import zstandard

from ringzero.errors import GuestImageError, HostError, NotFoundError
from ringzero.image.oci.loading import load
from ringzero.image.oci.push import find
from ringzero.image.oci.store import Store
from tests.image.oci.images import Image, digest, tar

PACKERS = {
    "plain": bytes,
    "gzip": lambda data: gzip.compress(data, 1),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.compress,
}


def saved(*images):
    """Return what `docker save` writes of (names, layers)."""
    files, items = {}, []
    for names, layers in images:
        plain = [tar(layer) for layer in layers]
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["sh"]},
                "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in plain]},
            }
        ).encode()
        files[f"{digest(config)[7:]}.json"] = config
        for layer in plain:
            files[f"{digest(layer)[7:]}/layer.tar"] = layer
        items.append(
            {
                "Config": f"{digest(config)[7:]}.json",
                "RepoTags": names,
                "Layers": [f"{digest(layer)[7:]}/layer.tar" for layer in plain],
            }
        )
    return tar({**files, "manifest.json": json.dumps(items).encode()})


@pytest.mark.parametrize("packing", PACKERS)
def test_what_docker_saves_has_its_names_back(tmp_path, packing):
    path = tmp_path / "app.tar"
    content = saved((["app:1", "app:latest"], [{"a": b"1"}]), (["db:2"], [{"b": b"2"}]))
    path.write_bytes(PACKERS[packing](content))
    cache = tmp_path / "cache"
    first, second = load(path, cache=cache)
    assert (first.names, second.names) == (("app:1", "app:latest"), ("db:2",))
    assert find("app:latest", cache).digest == first.digest != find("db:2", cache).digest
    # The file is no name of theirs, and nothing of it is left.
    assert {n for image in Store(cache).images() for n in image.names} == {
        "app:1", "app:latest", "db:2",
    }  # fmt: skip
    assert not list(cache.glob("load-*"))


@pytest.mark.parametrize("form", ["directory", "archive"])
@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("app:1", "app:1"),
        ("3", "my-layout:3"),
        ("registry.example/app:1", "registry.example/app:1"),
    ],
)
def test_layouts(tmp_path, form, told, name):
    image, place = Image([{"a": b"1"}]), tmp_path / "My Layout"
    image.write_layout(place, told)
    if form == "archive":
        path = tmp_path / "My Layout.tar"
        with tarfile.open(path, "w") as archive:
            archive.add(place, ".")
        shutil.rmtree(place)
        place = path
    (found,) = load(place, cache=tmp_path / "cache")
    assert (found.names, found.digest) == ((name,), image.digest)
    assert find(name, tmp_path / "cache").digest == image.digest


@pytest.mark.skipif(not shutil.which("skopeo"), reason="needs skopeo")
@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_what_skopeo_writes(tmp_path, kind):
    Image([{"a": b"1"}]).write_layout(tmp_path / "layout", "x")
    path = tmp_path / "app.tar"
    target = f"{kind}:{path}" + (":registry.example/app:1" if kind == "docker-archive" else ":1")
    command = ["skopeo", "copy", "-q", f"oci:{tmp_path}/layout:x", target]
    subprocess.run(command, check=True, timeout=60)
    (found,) = load(path, cache=tmp_path / "cache")
    assert found.names == (("registry.example/app:1",) if kind == "docker-archive" else ("app:1",))


def test_files_that_lead_out_of_a_layout_are_left(tmp_path):
    image = Image([{"a": b"1"}])
    image.write_layout(tmp_path / "layout")
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "layout", ".")
        for name in ("../out", "/abs", "blobs/sha256/../../../out"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("blobs/sha256/00")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (found,) = load(path, cache=tmp_path / "cache")
    assert found.digest == image.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "evil.tar", "layout"]


@pytest.mark.parametrize(
    ("content", "error", "told"),
    [
        (b"", GuestImageError, "no archive"),
        (b"nothing" * 200, GuestImageError, "no archive"),
        (tar({"file": b"x"}), GuestImageError, "neither manifest.json nor index.json"),
        (tar({"manifest.json": b"{"}), GuestImageError, "no JSON"),
        (tar({"manifest.json": b"[3]"}), GuestImageError, "no list"),
        (tar({"index.json": b"[]"}), GuestImageError, "no JSON object"),
        (tar({"index.json": b'{"manifests": []}'}), GuestImageError, "no image"),
        (gzip.compress(b"x" * 9000)[:-20], GuestImageError, "damaged"),
        (zstandard.compress(b"x" * 9000)[:-3], GuestImageError, "no archive"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 90, GuestImageError, "damaged"),
        (b"BZh9" + b"x" * 90, (GuestImageError, HostError), "read|damaged"),
        (saved(([], [{"a": b"1"}]), (["b:1"], [{"b": b"2"}])), GuestImageError, "has no name"),
        (saved((["A b"], [{"a": b"1"}])), Exception, "names no image"),
    ],
)
def test_what_is_no_image(tmp_path, content, error, told):
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    with pytest.raises(error, match=told):
        load(path, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("load-*"))
    assert Store(tmp_path / "cache").images() == []


def test_a_bomb_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_IMAGE_LIMIT", "4M")
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(bytes(16 << 20)))
    with pytest.raises(GuestImageError, match="more than 4 MiB"):
        load(path, cache=tmp_path / "cache")


def test_nothing_there(tmp_path):
    with pytest.raises((HostError, NotFoundError)):
        load(tmp_path / "none", cache=tmp_path / "cache")
    with pytest.raises(GuestImageError, match="no OCI image layout"):
        load(tmp_path, cache=tmp_path / "cache")
