"""SNAPSHOT: machines of an image go on from the memory in which its services run."""

import json
import socket
import time
from urllib.request import urlopen

import pytest

from ringzero import Machine
from ringzero.build.builder import build
from ringzero.build.job import Options
from ringzero.build.origin import Context
from ringzero.build.vmfile.parse import parse
from ringzero.cli.main import main
from ringzero.errors import BuildError
from ringzero.image.oci import memory as layers
from ringzero.image.oci.blobs import Blobs
from ringzero.image.oci.pull import pull
from ringzero.image.oci.push import save
from ringzero.image.oci.reference import parse as parse_name
from ringzero.image.oci.reference import parse_reference
from ringzero.image.oci.store import Store
from ringzero.vm.saved import making, packed
from tests.build.plain import plain
from tests.build.test_services import Quiet

pytestmark = pytest.mark.boot

SECRET = b"s3cret-of-the-build-that-nobody-may-see"
TEXT = """\
FROM micro
MEMORY 128M
RUN --mount=type=secret,id=s mkdir /www; wc -c </run/secrets/s >/www/word
SERVICE web httpd -f -p 8000 -h /www
READY --timeout=100s http://127.0.0.1:8000/word
SNAPSHOT
"""


@pytest.fixture
def room(cache, tmp_path, monkeypatch):
    """A cache with templates of its own."""
    monkeypatch.setenv("RINGZERO_TEMPLATES", "4G")
    monkeypatch.setattr(making, "_SETTLE", 0.1)
    return cache


def made(cache, tmp_path, text=TEXT, **options):
    options = {"secrets": {"s": SECRET}, "names": (parse_reference("web:1"),), **options}
    return build(parse(text), Context(tmp_path), Options(**options), cache=cache, listener=Quiet())


def answer(name, **fields):
    """Return what the service of an image answers, and how its machine came to run."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Machine(image=name, net=f"user,port={port}:8000", **fields) as machine:
        machine.start()
        end = time.monotonic() + 100
        while True:
            try:
                text = urlopen(f"http://127.0.0.1:{port}/word", timeout=5).read()
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.05)
                continue
            return text, machine.stats()["started"]


def test_a_service_goes_on_and_goes_elsewhere(room, tmp_path, monkeypatch, capsys):
    image = made(room, tmp_path)
    blobs = Blobs(room)
    layer = layers.find(image.root.parent, blobs, image.digest)
    assert layer is not None
    assert answer("web:1") == (b"39\n", "resumed")

    # The secret of the build is neither in the layers nor in the memory.
    unpacked = packed.read(blobs.path(layer.pages.digest), 128 << 20)
    with open(unpacked.fd, "rb", closefd=False) as file:
        assert SECRET not in file.read()
    unpacked.release()
    assert not any(SECRET in plain(blobs, digest) for digest in image.layers)

    # A build in which nothing changed keeps it, and no blob of it is swept.
    monkeypatch.setattr(making, "make", lambda *_: pytest.fail("it is made again"))
    made(room, tmp_path)
    Store(room).sweep()
    assert layers.find(image.root.parent, blobs, image.digest) == layer
    assert main(["image", "inspect", "web:1"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert shown["machine"]["Snapshot"] is True
    assert shown["memory"] == layer.manifest.digest

    # By a layout, into a cache that knows nothing of it.
    save(image, tmp_path / "layout", "web:1", cache=room)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "images").mkdir(parents=True)
    for path in [*room.iterdir(), *(room / "images").iterdir()]:
        target = elsewhere / path.relative_to(room)
        if path.is_symlink() and not target.exists():
            target.symlink_to(path)
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(elsewhere))
    pulled = pull(parse_name(f"oci:{tmp_path}/layout"), cache=elsewhere)
    assert pulled.digest == image.digest
    assert answer(f"oci:{tmp_path}/layout") == (b"39\n", "resumed")
    # Another machine boots, and its services start.
    why = "the memory layer is of a machine of other memory, vCPUs or devices"
    assert answer(f"oci:{tmp_path}/layout", memory="160M") == (b"39\n", f"booted ({why})")


def test_a_secret_in_the_memory_is_no_layer(room, tmp_path):
    text = TEXT.replace("wc -c </run/secrets/s", "cat /run/secrets/s")
    with pytest.raises(BuildError, match="holds the secret 's'"):
        made(room, tmp_path, text)
    assert Store(room).find("web:1") == []


def test_services_that_are_never_ready(room, tmp_path):
    text = TEXT.replace("--timeout=100s", "--timeout=1s").replace("8000/word", "8001/word")
    with pytest.raises(BuildError, match=r"SNAPSHOT: .*not ready"):
        made(room, tmp_path, text)
