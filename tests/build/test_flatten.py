"""An image's files as one tar; fsck.erofs of its root is the oracle for what is in it."""

import io
import random
import stat
import tarfile

import pytest

from ringzero.build.flatten import flatten
from ringzero.cli.main import main
from ringzero.errors import GuestImageError
from ringzero.image.oci.contents import Layers
from ringzero.image.oci.pull import pull
from ringzero.image.oci.reference import parse
from tests.image.oci.images import Image


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pulled(layers, tmp_path, cache):
    Image(layers).write_layout(tmp_path / "layout")
    name = f"oci:{tmp_path / 'layout'}"
    return pull(parse(name), cache=cache, architecture="amd64"), name


def special(kind, mode, **fields):
    info = tarfile.TarInfo()
    info.type, info.mode, info.mtime = kind, mode, 12345
    for name, value in fields.items():
        setattr(info, name, value)
    return info


def test_layers_are_merged(tmp_path, cache):
    big = random.Random(1).randbytes((3 << 20) + 77)
    lower = {
        "etc": None,
        "etc/conf": b"one",
        "gone": b"g",
        "big": big,
        "a-link": ("=", "big"),
        "console": special(tarfile.CHRTYPE, 0o620, devmajor=5, devminor=1, gid=5),
        "pipe": special(tarfile.FIFOTYPE, 0o600, uid=7),
        "file-caps": special(
            tarfile.REGTYPE, 0o4755, pax_headers={"SCHILY.xattr.user.x": "value"}, uid=1000
        ),
    }
    upper = {"etc/conf": b"two two", ".wh.gone": b"", "sym": ("->", "etc/conf"), "empty": b""}
    image, name = pulled([lower, upper], tmp_path, cache)
    file = io.BytesIO()
    made = flatten(image, file, cache=cache)
    assert made.size == len(file.getvalue())
    with tarfile.open(fileobj=io.BytesIO(file.getvalue())) as archive:
        found = {member.name: member for member in archive}
        assert {"etc", "etc/conf", "big", "a-link", "sym", "empty", "console"} <= set(found)
        assert "gone" not in found and ".wh.gone" not in found
        content = {n: archive.extractfile(n).read() for n in ("etc/conf", "big", "a-link", "empty")}
    assert content == {"etc/conf": b"two two", "big": big, "a-link": big, "empty": b""}
    linked = [found[n].islnk() for n in ("a-link", "big")]
    assert sorted(linked) == [False, True]
    assert (found["console"].devmajor, found["console"].devminor, found["console"].gid) == (5, 1, 5)
    assert found["pipe"].isfifo() and found["pipe"].uid == 7
    assert stat.S_IMODE(found["file-caps"].mode) == 0o4755
    assert found["file-caps"].pax_headers["SCHILY.xattr.user.x"] == "value"
    assert found["file-caps"].mtime == 12345 and found["sym"].linkname == "etc/conf"
    # What it is again as an image's only layer.
    other, _ = pulled_tar(file.getvalue(), tmp_path, cache)
    again = io.BytesIO()
    assert flatten(other, again, cache=cache).digest == made.digest
    out = tmp_path / "out.tar"
    assert main(["image", "export", name, str(out)]) == 0
    assert out.read_bytes() == file.getvalue()


def pulled_tar(data, tmp_path, cache):
    Image([data]).write_layout(tmp_path / "again")
    name = f"oci:{tmp_path / 'again'}"
    return pull(parse(name), cache=cache, architecture="amd64"), name


def test_a_layer_that_has_gone(tmp_path, cache, capsys):
    image, name = pulled([{"a": b"1"}], tmp_path, cache)
    Layers(cache).sweep([])
    with pytest.raises(GuestImageError, match="not in the store any more"):
        flatten(image, io.BytesIO(), cache=cache)
    assert main(["image", "export", name, str(tmp_path / "out.tar")]) != 0
    assert not (tmp_path / "out.tar").exists()
    assert "pull or build it again" in capsys.readouterr().err
