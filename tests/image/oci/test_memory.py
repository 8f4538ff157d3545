"""Memory layers beside an image: in a layout, in Debian's registry, and what is no such thing."""

import json

import pytest

from ringzero.errors import GuestImageError
from ringzero.image.oci import memory
from ringzero.image.oci.blobs import Blobs, digest_of
from ringzero.image.oci.manifest import OCI_MANIFEST, Descriptor
from ringzero.image.oci.pull import pull
from ringzero.image.oci.push import push, save
from ringzero.image.oci.reference import parse, parse_reference
from ringzero.image.oci.store import Store
from tests.image.oci.docker_registry import docker_registry
from tests.image.oci.images import Image

PARTS = {memory.BINDING: b'{"a":1}', memory.STATE: b"{}", memory.PAGES: b"pages" * 1000}


def image_in(cache, place, machine):
    """Return an image of the store whose configuration has such a machine."""
    Image([{"a": b"1"}], {"Machine": machine}).write_layout(place)
    return pull(parse(f"oci:{place}"), cache=cache, architecture="amd64")


def give_memory(image, cache):
    """Give an image a memory layer; return it."""
    blobs = Blobs(cache)
    for data in PARTS.values():
        blobs.put(data, digest_of(data))
    parts = [Descriptor(kind, digest_of(data), len(data)) for kind, data in PARTS.items()]
    subject = Descriptor(OCI_MANIFEST, image.digest, len(blobs.read(image.digest)))
    data = memory.document(subject, *parts)
    blobs.put(data, digest_of(data))
    layer = memory.read(data, image.digest)
    memory.keep(image.root.parent, layer)
    return layer


def found(image, cache):
    return memory.find(image.root.parent, Blobs(cache), image.digest)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_it_goes_with_a_layout(tmp_path, cache):
    image = image_in(cache, tmp_path / "layout", {"Snapshot": True})
    assert found(image, cache) is None
    layer = give_memory(image, cache)
    assert found(image, cache) == layer
    save(image, tmp_path / "saved", "app", cache=cache)
    # Other programs find one image in it.
    assert len(json.loads((tmp_path / "saved/index.json").read_bytes())["manifests"]) == 1
    again = pull(parse(f"oci:{tmp_path}/saved"), cache=tmp_path / "2", architecture="amd64")
    assert again.digest == image.digest
    assert found(again, tmp_path / "2") == layer


@pytest.mark.peer
def test_it_goes_with_a_registry(tmp_path, cache):
    image = image_in(cache, tmp_path / "layout", {"Snapshot": True})
    layer = give_memory(image, cache)
    with docker_registry(tmp_path / "registry") as host:
        name = parse_reference(f"{host}/app:1")
        assert push(image, name, cache=cache) > 5000
        assert push(image, name, cache=cache) == 0
        again = pull(name, cache=tmp_path / "2", architecture="amd64")
    assert again.digest == image.digest
    assert found(again, tmp_path / "2") == layer


def test_one_that_is_missing_is_no_fault(tmp_path, cache):
    image = image_in(cache, tmp_path / "layout", {"Snapshot": True})
    layer = give_memory(image, cache)
    Blobs(cache).path(layer.pages.digest).unlink()
    assert found(image, cache) is None
    give_memory(image, cache)
    save(image, tmp_path / "saved", "app", cache=cache)
    (tmp_path / "saved/blobs/sha256" / layer.state.digest.partition(":")[2]).write_bytes(b"[]")
    again = pull(parse(f"oci:{tmp_path}/saved"), cache=tmp_path / "2", architecture="amd64")
    assert found(again, tmp_path / "2") is None


def test_it_is_swept_with_its_image_only(tmp_path, cache):
    image = image_in(cache, tmp_path / "layout", {})
    layer = give_memory(image, cache)
    store = Store(cache)
    store.sweep()
    assert found(image, cache) == layer
    store.prune()
    (one,) = store.images()
    store.remove(one.digest)
    assert not Blobs(cache).path(layer.pages.digest).exists()


@pytest.mark.parametrize(
    "change",
    [
        {"layers": []},
        {"layers": 1},
        {"config": None},
        {"subject": {"mediaType": "a", "digest": f"sha256:{1:064}", "size": 1}},
        {"config": {"mediaType": "other", "digest": f"sha256:{1:064}", "size": 1}},
        {"config": {"mediaType": memory.BINDING, "digest": f"sha256:{1:064}", "size": 1 << 30}},
    ],
)
def test_what_is_no_memory_layer(change):
    parts = [Descriptor(kind, digest_of(data), len(data)) for kind, data in PARTS.items()]
    image = f"sha256:{7:064}"
    value = json.loads(memory.document(Descriptor(OCI_MANIFEST, image, 1), *parts))
    assert memory.read(json.dumps(value).encode(), image).pages == parts[2]
    with pytest.raises(GuestImageError):
        memory.read(json.dumps({**value, **change}).encode(), image)
