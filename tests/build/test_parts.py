"""An image's layers in parts: sent, fetched and kept once, and the same for whoever reads them."""

import json
import random
import subprocess
import tarfile

import pytest

from ringzero.build import parts
from ringzero.build.builder import build
from ringzero.build.job import Options
from ringzero.build.origin import Context
from ringzero.build.view import View
from ringzero.build.vmfile.parse import parse
from ringzero.image.oci.blobs import Blobs
from ringzero.image.oci.manifest import Descriptor
from ringzero.image.oci.pull import pull
from ringzero.image.oci.push import history, push, save
from ringzero.image.oci.reference import parse as parse_name
from ringzero.image.oci.reference import parse_reference
from tests.build.packages import Distribution
from tests.build.plain import plain
from tests.build.test_services import Quiet
from tests.image.oci.docker_registry import docker_registry, peer
from tests.image.oci.test_push import Receiver

# A root of 20 MB, and the package that is to change: 300 kB where it is packed.
TEXT = 'FROM scratch\nCOPY root /\nLABEL a=b\nCMD ["/usr/bin/it"]\n'
IT = 450_000
MIB = 1 << 20


def packages(largest, count):
    made = random.Random(3)
    sizes = [int(min(largest, 25_000 * made.paretovariate(0.85))) for _ in range(count)]
    return Distribution({**{f"p{n}": size for n, size in enumerate(sizes)}, "it": IT})


@pytest.fixture(scope="module")
def distribution():
    """One of 20 MB."""
    found = packages(1_400_000, 110)
    assert 18e6 < sum(found.sizes.values()) < 24e6
    return found


@pytest.fixture
def small(tmp_path):
    """A context with one of 5 MB."""
    packages(400_000, 50).write(tmp_path / "context/root")
    return tmp_path / "context"


@pytest.fixture
def receiver():
    found = Receiver()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def context(tmp_path, distribution):
    distribution.write(tmp_path / "context/root")
    return tmp_path / "context"


def made(context, cache, text=TEXT, **options):
    return build(parse(text), Context(context), Options(**options), cache=cache, listener=Quiet())


def packed(distribution, tmp_path, version):
    """Return how large a package is as a file of its own, as zstd packs it."""
    import zstandard

    path = tmp_path / "package.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in distribution.files("it", version).items():
            file = tmp_path / "file"
            file.write_bytes(data)
            archive.add(file, name)
    return len(zstandard.ZstdCompressor(level=3).compress(path.read_bytes()))


def test_a_changed_package_is_all_that_goes_over(context, cache, tmp_path, distribution, receiver):
    name = f"{receiver.host}/app"
    first = made(context, cache)
    whole = push(first, parse_reference(f"{name}:1"), cache=cache)
    elsewhere = tmp_path / "elsewhere"
    pull(parse_name(f"{name}:1"), cache=elsewhere, architecture="amd64")

    distribution.write(context / "root", it=2)
    second = made(context, cache)
    size = packed(distribution, tmp_path, 2)
    assert 250_000 < size < 350_000
    sent = push(second, parse_reference(f"{name}:2"), cache=cache)
    assert size < sent < 1.5 * size < whole / 10
    document = receiver.manifests["2"][0]
    assert len(document) < 64 << 10

    # Another store that has the one before asks for what is new, and for nothing else.
    receiver.log.clear()
    again = pull(parse_name(f"{name}:2"), cache=elsewhere, architecture="amd64")
    assert again.digest == second.digest
    fetched = [path.rpartition("/")[2] for method, path in receiver.log
               if method == "GET" and "/blobs/" in path]  # fmt: skip
    assert set(fetched) == {second.config, *second.layers} - {first.config, *first.layers}
    assert sum(len(receiver.blobs[digest]) for digest in fetched) == sent
    with View(again.root) as view:
        for path, data in distribution.files("it", 2).items():
            assert view.read(path) == data


def test_the_same_files_make_the_same_image_on_another_store(small, cache, tmp_path):
    assert made(small, cache).digest == made(small, tmp_path / "other").digest
    # Other steps above the same layer share all of its parts.
    other = made(small, cache, TEXT + "COPY root/usr/bin/it /there\n")
    assert other.layers[:-1] == made(small, cache).layers


def test_parts_are_layers_with_a_place_in_the_history(small, cache):
    image = made(small, cache)
    config = json.loads(Blobs(cache).read(image.config))
    told = [entry for entry in config["history"] if not entry.get("empty_layer")]
    assert len(told) == len(image.layers) == len(config["rootfs"]["diff_ids"]) > 20
    assert told[0]["comment"] == f"part 1 of {len(told)}"
    assert f"part {len(told) - 1} of {len(told)}: " in told[-2]["comment"]
    # For people it is the one step that it was.
    steps = history(image, cache)
    assert [step["instruction"] for step in steps] == ["COPY root /", "LABEL a=b",
                                                       'CMD ["/usr/bin/it"]']  # fmt: skip
    assert steps[0]["layers"] == list(image.layers)
    assert steps[0]["layer"] == image.layers[0]
    blobs = Blobs(cache)
    assert steps[0]["size"] == sum(blobs.path(d).stat().st_size for d in image.layers)


def test_images_have_no_more_layers_than_docker_takes(small, cache, monkeypatch):
    text = "FROM scratch AS one\nCOPY root /a\nCOPY root /b\n"
    monkeypatch.setattr(parts, "_MOST_LAYERS", 30)
    image = made(small, cache, text)
    assert 10 < len(image.layers) <= 30


def test_a_part_that_is_gone_or_a_note_that_is_damaged_is_made_again(small, cache):
    image = made(small, cache)
    blobs = Blobs(cache)
    blobs.path(image.layers[3]).unlink()
    assert made(small, cache).digest == image.digest
    assert blobs.path(image.layers[3]).exists()
    notes = list((cache / "build/parts").iterdir())
    for damage in (b"", b"{}", b"[[1]]", b'[["sha256:x", 1, "sha256:y", ""]]', b"\xff"):
        for note in notes:
            note.write_bytes(damage)
        assert made(small, cache).digest == image.digest


def test_ten_images_that_share_a_base_take_the_room_of_one(small, cache):
    def room():
        """Return the bytes of what the store keeps; what has two names, once."""
        found = {}
        for part in ("images", "blobs", "layers"):
            for path in (cache / part).rglob("*"):
                if path.is_file():
                    status = path.stat()
                    found[status.st_ino] = status.st_blocks * 512
        return sum(found.values())

    (small / "word").write_text("0")
    text = "FROM scratch\nCOPY root /\nCOPY word /word\n"
    made(small, cache, text, names=(parse_reference("ten:0"),))
    one = room()
    for number in range(1, 10):
        (small / "word").write_text(str(number))
        made(small, cache, text, names=(parse_reference(f"ten:{number}"),))
    assert room() < 1.3 * one


def test_blobs_that_another_store_of_ours_would_call_otherwise(small, cache):
    # What a layer is by its plain bytes is in the configuration, whatever packed it.
    image = made(small, cache)
    blobs = Blobs(cache)
    import hashlib

    found = [hashlib.sha256(plain(blobs, digest)).hexdigest() for digest in image.layers]
    assert [f"sha256:{text}" for text in found] == list(image.diff_ids)


def test_a_blob_that_cannot_be_made_leaves_nothing(cache):
    blobs = Blobs(cache)

    def fails(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        blobs.add(fails)
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert not blobs.has(Descriptor("", f"sha256:{0:064}", 4))


@pytest.mark.peer
def test_skopeo_and_debians_registry_share_the_parts(context, cache, tmp_path, distribution):
    skopeo = peer("skopeo")

    def copied(tag):
        """Return the bytes of the blobs that skopeo has after it has copied an image."""
        subprocess.run(
            [skopeo, "copy", "--src-tls-verify=false", f"docker://{name}:{tag}",
             f"oci:{tmp_path}/layout:{tag}"],
            capture_output=True, check=True,
        )  # fmt: skip
        return sum(path.stat().st_size for path in (tmp_path / "layout/blobs").rglob("*"))

    with docker_registry(tmp_path / "registry") as host:
        name = f"{host}/app"
        push(made(context, cache), parse_reference(f"{name}:1"), cache=cache)
        before = copied(1)
        distribution.write(context / "root", it=2)
        image = made(context, cache)
        sent = push(image, parse_reference(f"{name}:2"), cache=cache)
        assert sent < 1.5 * packed(distribution, tmp_path, 2)
        assert copied(2) - before < sent + (64 << 10)
    found = pull(parse_name(f"oci:{tmp_path}/layout:2"), cache=tmp_path / "c", architecture="amd64")
    assert found.digest == image.digest
    save(image, tmp_path / "saved", "2", cache=cache)
