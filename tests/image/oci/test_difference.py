"""Images compared file by file; their files read; and verified."""

import json

import pytest

from ringzero.errors import DiskError, GuestImageError
from ringzero.image.oci.blobs import Blobs
from ringzero.image.oci.difference import Change, difference
from ringzero.image.oci.files import open_files
from ringzero.image.oci.pull import pull
from ringzero.image.oci.reference import parse
from ringzero.image.oci.verify import verify
from tests.image.oci.images import PACKERS, Image, digest

BASE = {"etc": None, "etc/conf": b"one", "bin": b"x" * 5000, "link": ("->", "bin"), "gone": b"g"}


@pytest.fixture
def made(tmp_path):
    def make(layers, name):
        Image(layers).write_layout(tmp_path / name)
        return pull(parse(f"oci:{tmp_path / name}"), cache=tmp_path / "cache", architecture="amd64")

    return make


def test_what_differs(made):
    before = made([BASE], "before")
    upper = {
        "etc/conf": b"two",  # of the same size
        "bin": b"x" * 4999 + b"y",
        "link": ("->", "etc"),
        ".wh.gone": b"",
        "new": None,
        "new/file": b"n" * 7,
    }
    after = made([BASE, upper], "after")
    assert difference(before, before) == []
    assert difference(before, after) == [
        Change("changed", "/bin", 5000, 5000),
        Change("changed", "/etc/conf", 3, 3),
        Change("removed", "/gone", 1, 0),
        Change("changed", "/link", 0, 0),
        Change("added", "/new", 0, 0),
        Change("added", "/new/file", 0, 7),
    ]
    back = difference(after, before)
    assert [c.kind for c in back if c.path.startswith("/new")] == ["removed", "removed"]


def test_files(made):
    with open_files(made([BASE], "image")) as files:
        assert files.read("/etc/conf", 10) == b"one" and files.read("/none", 10) == b""
        assert files.listing("/etc") == ["conf"] and files.listing("/none") == []
        assert {"/bin", "/etc", "/etc/conf", "/link", "/gone"} <= {path for path, _ in files.walk()}


def test_a_root_that_is_none(made):
    image = made([BASE], "image")
    metadata = image.root.with_name("root.erofs")
    metadata.write_bytes(bytes(metadata.stat().st_size))
    with pytest.raises(GuestImageError, match="no root file system"), open_files(image):
        pass
    image.root.write_bytes(b"nothing")
    with pytest.raises(DiskError, match=r"root\.vmdk"), open_files(image):
        pass


def test_every_blob_is_read(made, tmp_path):
    cache = tmp_path / "cache"
    image = made([BASE, {"b": b"2"}], "image")
    found = verify(image, cache)
    blobs = ["manifest", "configuration", "layer", "layer"]
    assert [v.what for v in found] == [*blobs, "contents", "contents"]
    assert {v.state for v in found} == {"right"} and all(v.size for v in found)
    assert [v.digest for v in found[4:]] == list(image.diff_ids)
    lower, upper = (Blobs(cache).path(digest) for digest in image.layers)
    data = bytearray(lower.read_bytes())
    data[len(data) // 2] ^= 1
    lower.write_bytes(data)
    upper.unlink()
    assert [v.state for v in verify(image, cache)] == ["right", "right", "wrong", "missing"]
    Blobs(cache).path(image.digest).write_bytes(b"{}")
    assert [v.state for v in verify(image, cache)] == ["wrong", "right", "wrong", "missing"]


@pytest.mark.parametrize("packing", PACKERS)
def test_what_packed_layers_unpack_to_is_read(tmp_path, packing):
    """The pull takes their blobs' digests, which the manifest has, for enough."""
    image = Image([BASE], packing=packing)
    config = json.loads(image.blobs[image.config["digest"]])
    config["rootfs"]["diff_ids"] = [digest(b"other")]
    image.rewrite(config)
    image.write_layout(tmp_path / "image")
    name, cache = parse(f"oci:{tmp_path / 'image'}"), tmp_path / "cache"
    if not packing:
        with pytest.raises(GuestImageError, match="its configuration says"):
            pull(name, cache=cache, architecture="amd64")
    else:
        found = verify(pull(name, cache=cache, architecture="amd64"), cache)
        assert [v.state for v in found] == ["right", "right", "right", "wrong"]
        assert found[3].what == "contents" and found[3].digest == digest(b"other")
