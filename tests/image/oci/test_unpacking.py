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
from tests.image.oci.images import PACKERS, digest, tar

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))


def descriptor_of(data):
    return Descriptor("", digest(data), len(data))


def layer(random_):
    """Return a plain tar and its files."""
    sizes = (0, 1, 1000, 5000, 4096, 70_000)
    files = {f"f{n}": random_.randbytes(random_.choice(sizes)) for n in range(random_.randrange(5))}
    files |= {"own": random_.randbytes(8)}
    return tar(files), files


def content_of(found, file):
    """Return the files of a layer that was unpacked."""
    contents = {}
    for member in found.members:
        at = found.begin + member.offset
        assert at + member.size - len(member.tail) <= found.begin + found.size
        size = member.size - len(member.tail)
        contents[member.name.decode()] = os.pread(file.fileno(), size, at) + member.tail
    return contents


@pytest.fixture
def file(tmp_path):
    with (tmp_path / "image").open("w+b") as file:
        yield file


@pytest.mark.parametrize("packing", PACKERS)
def test_random_pieces_and_fresh_starts(tmp_path, packing):
    random_ = random.Random(packing)
    for number in range(10 * FUZZ):
        plain, files = layer(random_)
        data = PACKERS[packing](plain)
        descriptor = descriptor_of(data)
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

        with (
            (tmp_path / f"image{number}").open("w+b") as file,
            Unpacking([descriptor], file) as unpacking,
        ):
            blobs.fetch(descriptor, fill, follower=unpacking.follow(descriptor))
            (found,) = unpacking.finish([digest(plain)], blobs)
            assert content_of(found, file) == files


@pytest.mark.parametrize("seed", range(4 * FUZZ))
def test_layers_that_come_in_any_order_lie_in_theirs(tmp_path, seed):
    """Some twice, some begun anew: equal images, whatever the order."""
    random_ = random.Random(seed)
    made = [layer(random_) for _ in range(random_.randrange(1, 7))]
    order = [*range(len(made)), 0]
    random_.shuffle(order)
    packed = [random_.choice(list(PACKERS.values()))(plain) for plain, _ in made]
    layers = [descriptor_of(packed[n]) for n in order]
    images = []
    for turn in range(3):
        blobs, coming = Blobs(tmp_path / f"cache{turn}"), list(range(len(made)))
        random_.shuffle(coming)
        with (
            (tmp_path / f"image{turn}").open("w+b") as file,
            Unpacking(layers, file) as unpacking,
        ):
            followers = [unpacking.follow(descriptor_of(packed[n])) for n in coming]
            for number, follower in zip(coming, followers, strict=True):
                data = packed[number]

                def fill(sink, data=data):
                    half = len(data) // 2
                    sink.write(memoryview(data)[:half])
                    if random_.random() < 0.5:
                        sink.restart()
                        sink.write(memoryview(data)[:half])
                    sink.write(memoryview(data)[half:])

                blobs.fetch(descriptor_of(data), fill, follower=follower)
            found = unpacking.finish([digest(made[n][0]) for n in order], blobs)
            for number, one in zip(order, found, strict=True):
                assert content_of(one, file) == made[number][1]
        images.append((tmp_path / f"image{turn}").read_bytes().rstrip(b"\0"))
    assert images[0] == images[1] == images[2]


def test_a_layer_that_is_there_already_and_twice(tmp_path, file):
    plain = tar({"f": b"content" * 1000})
    data = gzip.compress(plain)
    descriptor = descriptor_of(data)
    blobs = Blobs(tmp_path / "cache")
    blobs.put(data, descriptor.digest)
    with Unpacking([descriptor] * 2, file) as unpacking:
        # Another process was first.
        blobs.fetch(descriptor, lambda _: None, follower=unpacking.follow(descriptor))
        one, two = unpacking.finish([digest(plain)] * 2, blobs)
        assert content_of(one, file) == content_of(two, file) == {"f": b"content" * 1000}
        assert one.begin == two.begin


def test_what_is_wrong_is_told(tmp_path, file):
    blobs = Blobs(tmp_path / "cache")
    whole = gzip.compress(tar({"f": b"content"}))
    wrong = (whole[:-3], b"\x28\xb5\x2f\xfdnonsense", b"\x1f\x8b", gzip.compress(b"no tar" * 900))
    for data in wrong:
        descriptor = descriptor_of(data)
        blobs.put(data, descriptor.digest)
        with (
            Unpacking([descriptor], file) as unpacking,
            pytest.raises(GuestImageError, match="damaged"),
        ):
            unpacking.finish([digest(b"content")], blobs)
    with (
        Unpacking([descriptor], file) as unpacking,
        pytest.raises(GuestImageError, match="1 layers, but"),
    ):
        unpacking.finish([], blobs)


def test_what_layers_unpack_to_is_bounded(tmp_path, file, monkeypatch):
    data = tar({"zeros": bytes(2 << 20), "f": b"", "g": b""})
    descriptor = descriptor_of(data)
    blobs = Blobs(tmp_path / "cache")
    blobs.put(data, descriptor.digest)
    with Unpacking([descriptor], file) as unpacking:
        unpacking.finish([descriptor.digest], blobs)
    monkeypatch.setenv("RINGZERO_IMAGE_LIMIT", "1M")
    with (
        Unpacking([descriptor], file) as unpacking,
        pytest.raises(GuestImageError, match="more than 1 MiB"),
    ):
        unpacking.finish([descriptor.digest], blobs)
    monkeypatch.delenv("RINGZERO_IMAGE_LIMIT")
    monkeypatch.setattr("ringzero.image.oci.unpacking.MAX_FILES", 2)
    with (
        Unpacking([descriptor], file) as unpacking,
        pytest.raises(GuestImageError, match="more than 2 files"),
    ):
        unpacking.finish([descriptor.digest], blobs)


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
