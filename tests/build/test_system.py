"""The files of imported machines: what a build stands on, and what it copies from."""

import json

import pytest

from ringzero.build.builder import build
from ringzero.build.job import Options
from ringzero.build.origin import Context
from ringzero.build.vmfile.parse import parse
from ringzero.disk.opening import create_disk
from ringzero.errors import GuestImageError
from ringzero.image.layers import tar
from ringzero.image.oci.blobs import Blobs
from ringzero.image.oci.files import open_files
from ringzero.image.oci.importing import import_file
from ringzero.image.oci.pull import pull
from ringzero.image.oci.reference import parse as parse_name
from ringzero.image.oci.reference import parse_reference
from ringzero.units import MIB
from tests.build.plain import plain
from tests.build.test_services import Quiet
from tests.image.oci import machines
from tests.image.oci.images import Image

# struct vfs_cap_data (linux/capability.h), revision 2: CAP_NET_RAW.
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
XATTRS = {b"security.capability": CAPABILITY, b"user.note": b"n" * 300}


def built(text, place, cache, name="new:1"):
    options = Options(names=(parse_reference(name),))
    return build(parse(text), Context(place), options, cache=cache, listener=Quiet())


def members(image, cache):
    """Return what the layers hold, by name, the uppermost one's last."""
    blobs = Blobs(cache)
    return {
        member.name: member
        for digest in image.layers
        for member in tar.read(memoryview(plain(blobs, digest)))
    }


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "app").write_text("app")
    return folder


def test_a_build_stands_on_an_imported_machine(cache, place, tmp_path):
    path = machines.system(tmp_path / "old.img", xattrs={"sbin/init": XATTRS})
    import_file(path, [parse_reference("old:1")], cache=cache)
    text = 'FROM old:1\nCOPY app /srv/app\nCOPY --from=old:1 /etc/hello /copy\nCMD ["/srv/app"]\n'
    image = built(text, place, cache)
    assert (image.disks, image.cmd) == ((), ("/srv/app",))
    found = members(image, cache)
    assert (found[b"etc/hello"].uid, found[b"etc/hello"].gid) == (7, 8)
    assert found[b"etc/hello"].mtime == 1_000_000_000 * 10**9
    assert found[b"sbin/init"].xattrs == XATTRS
    with open_files(image) as files:
        assert [files.read(p, 9) for p in ("/etc/hello", "/copy", "/srv/app")] == [
            b"hello", b"hello", b"app",
        ]  # fmt: skip
    # What was read once is kept.
    assert built(text, place, cache).digest == image.digest


def test_one_whose_files_cannot_be_read_is_named(cache, place, tmp_path):
    create_disk(tmp_path / "data.qcow2", "qcow2", 8 * MIB)
    import_file(tmp_path / "data.qcow2", [parse_reference("data:1")], cache=cache)
    with pytest.raises(GuestImageError, match="the files of data:1 cannot be read"):
        built("FROM data:1\nCOPY app /app\n", place, cache)


def test_a_copy_from_another_image_keeps_attributes(cache, place, tmp_path):
    path = machines.system(tmp_path / "old.img", xattrs={"sbin/init": XATTRS})
    import_file(path, [parse_reference("old:1")], cache=cache)
    files = built("FROM old:1\n", place, cache, "files:1")
    Image([{"x": b"1"}], packing="").write_layout(tmp_path / "layout")
    pull(parse_name(f"oci:{tmp_path}/layout"), cache=cache, architecture="amd64")
    text = f"FROM oci:{tmp_path}/layout\n"
    text += "COPY --from=files:1 /sbin/init /a\nCOPY --from=files:1 /sbin /b\n"
    found = members(built(text, place, cache), cache)
    assert found[b"a"].xattrs == found[b"b/init"].xattrs == XATTRS
    # Of a stage that another image is the base of, too.
    text = f"FROM files:1 AS one\nFROM oci:{tmp_path}/layout\nCOPY --from=one /sbin/init /a\n"
    assert members(built(text, place, cache), cache)[b"a"].xattrs == XATTRS
    assert json.loads(Blobs(cache).read(files.config))["rootfs"]["diff_ids"] == list(files.diff_ids)
