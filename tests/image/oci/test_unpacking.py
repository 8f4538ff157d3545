"""Layers that are unpacked while they come: in pieces of any size, and begun anew."""

import gzip
import hashlib
import os
import random
import threading

import pytest

from ringzero.errors import GuestImageError
from ringzero.image.erofs.structures import BLOCK
from ringzero.image.oci.blobs import Blobs
from ringzero.image.oci.contents import Layers
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


def content_of(found):
    """Return the files of a layer that was unpacked."""
    contents = {}
    data = found.content.read_bytes()
    assert len(data) == found.size and not found.size % BLOCK
    for member in found.members:
        size = member.size - len(member.tail)
        assert member.offset + size <= found.size
        contents[member.name.decode()] = data[member.offset :][:size] + member.tail
    return contents


@pytest.fixture
def store(tmp_path):
    return Layers(tmp_path / "cache")


@pytest.mark.parametrize("packing", PACKERS)
def test_random_pieces_and_fresh_starts(tmp_path, store, packing):
    random_ = random.Random(packing)
    for _ in range(10 * FUZZ):
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

        with Unpacking([descriptor], [digest(plain)], store) as unpacking:
            blobs.fetch(descriptor, fill, follower=unpacking.follow(descriptor))
            (found,) = unpacking.finish(blobs)
        assert content_of(found) == files
        assert content_of(store.load(descriptor.digest)) == files


@pytest.mark.parametrize("seed", range(4 * FUZZ))
def test_layers_that_come_in_any_order(tmp_path, seed):
    """Some twice, some begun anew, some packed otherwise elsewhere: equal layers."""
    random_ = random.Random(seed)
    made = [layer(random_) for _ in range(random_.randrange(1, 7))]
    order = [*range(len(made)), 0]
    random_.shuffle(order)
    kept = []
    for turn in range(3):
        packed = [random_.choice(list(PACKERS.values()))(plain) for plain, _ in made]
        layers = [descriptor_of(packed[n]) for n in order]
        cache, coming = tmp_path / f"cache{turn}", list(range(len(made)))
        blobs, store = Blobs(cache), Layers(cache)
        random_.shuffle(coming)
        with Unpacking(layers, [digest(made[n][0]) for n in order], store) as unpacking:
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
            found = unpacking.finish(blobs)
        for number, one in zip(order, found, strict=True):
            assert content_of(one) == made[number][1]
        names = [store.place(digest(data)).name for data in packed]
        assert {path.name for path in store.folder.iterdir()} == set(names)
        places = [store.folder / name for name in names]
        kept.append([(p / "content").read_bytes() + (p / "members").read_bytes() for p in places])
    assert kept[0] == kept[1] == kept[2]


def test_a_layer_that_is_there_already_and_twice(tmp_path, store):
    plain = tar({"f": b"content" * 1000})
    data = gzip.compress(plain)
    descriptor = descriptor_of(data)
    blobs = Blobs(tmp_path / "cache")
    blobs.put(data, descriptor.digest)
    with Unpacking([descriptor] * 2, [digest(plain)] * 2, store) as unpacking:
        # Another process was first.
        blobs.fetch(descriptor, lambda _: None, follower=unpacking.follow(descriptor))
        one, two = unpacking.finish(blobs)
    assert content_of(one) == content_of(two) == {"f": b"content" * 1000}
    assert one.content == two.content


def test_a_layer_is_unpacked_once(tmp_path, store, monkeypatch):
    """Also where it was there plain, and comes packed."""
    plain = tar({"f": b"content" * 1000})
    blobs = Blobs(tmp_path / "cache")
    descriptors = []
    for pack in PACKERS.values():
        descriptors.append(descriptor_of(pack(plain)))
        blobs.put(pack(plain), descriptors[-1].digest)
    with Unpacking([descriptor_of(plain)], [digest(plain)], store) as unpacking:
        unpacking.finish(blobs)
    monkeypatch.setattr(Unpacking, "_unpack", None)
    for descriptor in descriptors:
        with Unpacking([descriptor], [digest(plain)], store) as unpacking:
            assert unpacking.follow(descriptor) is None
            (found,) = unpacking.finish(blobs)
        assert content_of(found) == {"f": b"content" * 1000}


@pytest.mark.parametrize("name", ["content", "members"])
@pytest.mark.parametrize("damage", [b"", b"{}", b"[3]", b'[["a"]]', None])
def test_a_damaged_layer_is_unpacked_again(tmp_path, store, name, damage):
    plain = tar({"f": b"content" * 1000})
    descriptor, blobs = descriptor_of(plain), Blobs(tmp_path / "cache")
    blobs.put(plain, descriptor.digest)
    for _ in range(2):
        with Unpacking([descriptor], [digest(plain)], store) as unpacking:
            (found,) = unpacking.finish(blobs)
        assert content_of(found) == {"f": b"content" * 1000}
        file = store.place(digest(plain)) / name
        file.unlink()
        if damage is not None:
            file.write_bytes(damage)


def test_what_another_image_says_of_a_layer_is_not_believed(tmp_path, store):
    """One whose packed layer unpacks to something else takes nobody's place."""
    plain, other = tar({"f": b"content"}), gzip.compress(tar({"f": b"hostile"}))
    blobs = Blobs(tmp_path / "cache")
    for data in (plain, other):
        blobs.put(data, digest(data))
    for layer in (descriptor_of(other), descriptor_of(plain)):
        with Unpacking([layer], [digest(plain)], store) as unpacking:
            (found,) = unpacking.finish(blobs)
    assert content_of(found) == {"f": b"content"}
    assert content_of(store.load(digest(other))) == {"f": b"hostile"}


def test_nothing_is_kept_of_a_blob_that_is_not_right(tmp_path, store):
    """It is unpacked before its digest is known."""
    plain = tar({"f": b"content" * 1000})
    packed, other = gzip.compress(plain), gzip.compress(tar({"f": b"hostile" * 1000}))
    other += bytes(len(packed) - len(other)) if len(other) < len(packed) else b""
    packed += bytes(len(other) - len(packed))
    descriptor, blobs = descriptor_of(packed), Blobs(tmp_path / "cache")
    with Unpacking([descriptor], [digest(plain)], store) as unpacking:
        follower = unpacking.follow(descriptor)
        with pytest.raises(GuestImageError, match="digest of what came is wrong"):
            blobs.fetch(descriptor, lambda sink: sink.write(other), follower=follower)
    assert list(store.folder.iterdir()) == []


def test_layers_of_no_image_go(tmp_path, store):
    blobs = Blobs(tmp_path / "cache")
    plains = [tar({"f": bytes([n + 1]) * 9000}) for n in range(3)]
    for plain in plains:
        blobs.put(plain, digest(plain))
        with Unpacking([descriptor_of(plain)], [digest(plain)], store) as unpacking:
            unpacking.finish(blobs)
    assert store.sweep([digest(plains[1]), "sha256:" + "0" * 64]) > 16_000
    assert [store.size(digest(plain)) for plain in plains] == [None, 8192, None]


def test_what_is_wrong_is_told(tmp_path, store):
    blobs = Blobs(tmp_path / "cache")
    whole = gzip.compress(tar({"f": b"content"}))
    wrong = (whole[:-3], b"\x28\xb5\x2f\xfdnonsense", b"\x1f\x8b", gzip.compress(b"no tar" * 900))
    for data in wrong:
        descriptor = descriptor_of(data)
        blobs.put(data, descriptor.digest)
        with (
            Unpacking([descriptor], [digest(b"content")], store) as unpacking,
            pytest.raises(GuestImageError, match="damaged"),
        ):
            unpacking.finish(blobs)
    with (
        Unpacking([descriptor], [], store) as unpacking,
        pytest.raises(GuestImageError, match="1 layers, but"),
    ):
        unpacking.finish(blobs)
    plain = gzip.decompress(whole)
    blobs.put(plain, digest(plain))
    with (
        Unpacking([descriptor_of(plain)], [digest(b"other")], store) as unpacking,
        pytest.raises(GuestImageError, match="layer 1 of the image is the tar sha256"),
    ):
        unpacking.finish(blobs)
    # Nothing of it is kept.
    assert list(store.folder.iterdir()) == []


def test_what_layers_unpack_to_is_bounded(tmp_path, store, monkeypatch):
    data = tar({"zeros": bytes(2 << 20), "f": b"", "g": b""})
    descriptor = descriptor_of(data)
    blobs = Blobs(tmp_path / "cache")
    blobs.put(data, descriptor.digest)
    with Unpacking([descriptor], [descriptor.digest], store) as unpacking:
        unpacking.finish(blobs)
    store.sweep([])
    monkeypatch.setenv("RINGZERO_IMAGE_LIMIT", "1M")
    with (
        Unpacking([descriptor], [descriptor.digest], store) as unpacking,
        pytest.raises(GuestImageError, match="more than 1 MiB"),
    ):
        unpacking.finish(blobs)
    monkeypatch.delenv("RINGZERO_IMAGE_LIMIT")
    monkeypatch.setattr("ringzero.image.oci.unpacking.MAX_FILES", 2)
    with (
        Unpacking([descriptor], [descriptor.digest], store) as unpacking,
        pytest.raises(GuestImageError, match="more than 2 files"),
    ):
        unpacking.finish(blobs)


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
