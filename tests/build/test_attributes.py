"""Extended attributes that a RUN sets: in its layer, in machines of the image, and after a pull."""

import pytest

from ringzero.build.builder import build
from ringzero.build.job import Options
from ringzero.build.origin import Context
from ringzero.build.vmfile.parse import parse
from ringzero.cli.main import main
from ringzero.image.guest import xattrs
from ringzero.image.layers import tar
from ringzero.image.oci.blobs import Blobs
from ringzero.image.oci.pull import pull
from ringzero.image.oci.push import push
from ringzero.image.oci.reference import parse_reference
from tests.build.plain import plain
from tests.build.test_services import Quiet
from tests.image.oci.test_push import Receiver

pytestmark = pytest.mark.boot

# struct vfs_cap_data (linux/capability.h), revision 2, effective: CAP_CHOWN.
CAPABILITY = bytes.fromhex("0100000201000000000000000000000000000000")
TEXT = """\
FROM micro
COPY xattrs records /
RUN cp /bin/busybox /chown && /xattrs </records && touch /file
RUN mkdir /d && mv /chown /d/chown && chmod 711 /d/chown
COPY records /later
RUN /xattrs /d/chown | cmp - /told
"""


def told(image, name, blobs):
    """Return the attributes that the last layer with a file of a name has of it."""
    found = None
    for digest in image.layers:
        for member in tar.read(memoryview(plain(blobs, digest))):
            found = (member.xattrs or {}) if member.name == name else found
    return found


def test_a_file_capability_comes_through(cache, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("RINGZERO_TEMPLATES", "0")
    place = tmp_path / "context"
    place.mkdir()
    (place / "xattrs").write_bytes(xattrs.build())
    (place / "xattrs").chmod(0o755)
    record = next(xattrs.pack([(b"/chown", b"security.capability", CAPABILITY)]))
    (place / "records").write_bytes(record)
    text = TEXT.replace("COPY records /later", "COPY told /told")
    (place / "told").write_bytes(record.replace(b"/chown\0", b"/d/chown\0"))
    options = Options(names=(parse_reference("caps:1"),))
    image = build(parse(text), Context(place), options, cache=cache, listener=Quiet())
    assert told(image, b"chown", Blobs(cache)) == {b"security.capability": CAPABILITY}
    assert told(image, b"d/chown", Blobs(cache)) == {b"security.capability": CAPABILITY}
    # A later step changes, and the layers that it needs are put into a new machine.
    changed = text.replace("RUN /xattrs /d", "RUN : again; /xattrs /d")
    for path in (cache / "build/machines").iterdir():
        path.rename(tmp_path / path.name)
    build(parse(changed), Context(place), Options(), cache=cache, listener=Quiet())

    # It is what the kernel heeds: nobody may give a file away.
    assert main(["run", "-u", "nobody", "caps:1", "--", "/d/chown", "5", "/file"]) == 0
    receiver = Receiver()
    push(image, parse_reference(f"{receiver.host}/app:1"), cache=cache)
    other = tmp_path / "other"
    (other / "images").mkdir(parents=True)
    for path in [*cache.iterdir(), *(cache / "images").iterdir()]:
        target = other / path.relative_to(cache)
        if path.is_symlink() and not target.exists():
            target.symlink_to(path.readlink())
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(other))
    pulled = pull(parse_reference(f"{receiver.host}/app:1"), cache=other)
    assert pulled.digest == image.digest
    name = f"{receiver.host}/app:1"
    assert main(["run", "-u", "nobody", name, "--", "/d/chown", "5", "/file"]) == 0
    capfd.readouterr()
