"""Layers that are unpacked while they come: in pieces of any size, and begun anew."""

import gzip
import hashlib
import os
import random
import threading

import pytest

from ringzero.errors import GuestImageError
from ringzero.image.oci.blobs import Blobs
from ringzero.image.oci.manifest import Descriptor
from ringzero.image.oci.unpacking import Coming, StoppedError, Unpacking
from tests.image.oci.images import PACKERS, digest

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))


@pytest.mark.parametrize("packing", PACKERS)
def test_random_pieces_and_fresh_starts(tmp_path, packing):
    random_ = random.Random(packing)
    for _ in range(10 * FUZZ):
        plain = random_.randbytes(random_.choice((0, 1, 5, 70_000))) * random_.randrange(1, 9)
        data = PACKERS[packing](plain)
        descriptor = Descriptor("", digest(data), len(data))
        blobs = Blobs(tmp_path / hashlib.sha256(data).hexdigest())
        restarts = random_.randrange(3)

        def fill(sink, data=data, restarts=restarts):
            for turn in range(restarts + 1):
                at = 0
                end = len(data) if turn == restarts else random_.randrange(len(data) + 1)
                while at < end:
                    size = random_.choice((1, 3, 1000, 1 << 20))
                    sink.write(memoryview(data)[at : min(end, at + size)])
                    at += size
                if turn < restarts:
                    sink.restart()

        with Unpacking(tmp_path) as unpacking:
            blobs.fetch(descriptor, fill, follower=unpacking.follow(descriptor))
            (file,) = unpacking.finish([descriptor], [digest(plain)], blobs)
            file.seek(0)
            assert file.read() == plain


def test_a_layer_that_is_there_already_and_twice(tmp_path):
    data = gzip.compress(b"content")
    descriptor = Descriptor("", digest(data), len(data))
    blobs = Blobs(tmp_path / "cache")
    blobs.put(data, descriptor.digest)
    with Unpacking(tmp_path) as unpacking:
        # Another process was first.
        blobs.fetch(descriptor, lambda _: None, follower=unpacking.follow(descriptor))
        found = unpacking.finish([descriptor] * 2, [digest(b"content")] * 2, blobs)
        assert len(found) == 2
    with Unpacking(tmp_path) as unpacking:
        (file,) = unpacking.finish([descriptor], [digest(b"content")], blobs)
        file.seek(0)
        assert file.read() == b"content"


def test_what_is_wrong_is_told(tmp_path):
    blobs = Blobs(tmp_path / "cache")
    for data in (gzip.compress(b"content")[:-3], b"\x28\xb5\x2f\xfdnonsense", b"\x1f\x8b"):
        descriptor = Descriptor("", digest(data), len(data))
        blobs.put(data, descriptor.digest)
        with Unpacking(tmp_path) as unpacking, pytest.raises(GuestImageError, match="damaged"):
            unpacking.finish([descriptor], [digest(b"content")], blobs)
    with Unpacking(tmp_path) as unpacking, pytest.raises(GuestImageError, match="1 layers, but"):
        unpacking.finish([descriptor], [], blobs)


def test_a_plain_tar_is_not_copied_and_bounded(tmp_path, monkeypatch):
    data = bytes(2 << 20)
    descriptor = Descriptor("", digest(data), len(data))
    blobs = Blobs(tmp_path / "cache")
    blobs.put(data, descriptor.digest)
    with Unpacking(tmp_path) as unpacking:
        (file,) = unpacking.finish([descriptor], [descriptor.digest], blobs)
        assert os.fstat(file.fileno()).st_ino == blobs.path(descriptor.digest).stat().st_ino
    monkeypatch.setenv("RINGZERO_IMAGE_LIMIT", "1M")
    with Unpacking(tmp_path) as unpacking, pytest.raises(GuestImageError, match="more than 1 MiB"):
        unpacking.finish([descriptor], [descriptor.digest], blobs)


def test_whoever_waits_hears_of_the_end():
    blob, heard = Coming(10), []

    def wait():
        try:
            blob.reader().read(5)
        except StoppedError:
            heard.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    blob.stop()
    thread.join(10)
    assert heard == [True]
