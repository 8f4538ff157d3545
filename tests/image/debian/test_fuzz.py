"""What a mirror says, changed: an error of ours or an answer. RINGZERO_FUZZ=N: more examples."""

import contextlib
import functools
import itertools
import os
import random

import pytest

from ringzero.errors import GuestImageError, HostError, NotFoundError
from ringzero.image import deb
from ringzero.image.debian.index import Index, fields
from ringzero.image.debian.mirror import _check_date
from ringzero.image.debian.versions import compare, relations
from tests.image.archive import control
from tests.image.archive import deb as make_deb
from tests.image.bootloader.test_fuzz import changed

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))
STANZA = """Package: {name}
Version: 1:2.0~rc1-{number}+b1
Architecture: amd64
Provides: other (= 3), more
Depends: libc6 (>= 2.36), a | b (<< 1.2) [amd64] <!nocheck>, c:any
Pre-Depends: c
Filename: pool/{name}_{number}.deb
Size: 700
SHA256: {hash}
"""


def listed():
    stanzas = [
        STANZA.format(name=name, number=number, hash=f"{number:064x}")
        for number, name in enumerate(("a", "b", "c", "libc6", "libc6"))
    ]
    return "\n".join(stanzas).encode()


def test_the_list_that_is_changed_here_is_whole():
    index = Index()
    index.add(listed().decode(), "base")
    assert [package.name for package in index.closure(["a"])] == ["a", "c", "libc6"]


def test_versions_that_want_each_other_end():
    text = "\n".join(
        STANZA.format(name="a", number=n, hash=f"{n:064x}").replace(
            "Depends: libc6 (>= 2.36), a | b (<< 1.2) [amd64] <!nocheck>, c:any\nPre-Depends: c",
            f"Depends: a (= 1:2.0~rc1-{3 - n}+b1)",
        )
        for n in (1, 2)
    )
    index = Index()
    index.add(text, "base")
    assert [package.name for package in index.closure(["a"])] == ["a"]


def test_fuzz_changed_lists():
    random_ = random.Random(1)
    for _ in range(300 * FUZZ):
        index = Index()
        text = changed(listed(), random_).decode("utf-8", "replace")
        index.add(text, "base", preferred=random_.random() < 0.5)
        with contextlib.suppress(HostError, NotFoundError):
            index.closure(["a", "libc6"])
        with contextlib.suppress(HostError):
            _check_date(fields(f"Valid-Until: {text[:60]}"), "place")


def test_random_versions_are_in_one_order():
    random_ = random.Random(2)
    parts = ["1", "0", "9" * 5000, ":", "~", "-", "+", ".", "a", "z", "²", ""]
    versions = ["".join(random_.choices(parts, k=6)) for _ in range(60 * FUZZ)]
    ordered = sorted(versions, key=functools.cmp_to_key(compare))
    for low, high in itertools.pairwise(ordered):
        assert compare(low, high) <= 0 <= compare(high, low)
        assert compare(low, low) == 0


@pytest.mark.parametrize("text", ["(", "a (>= )", "A", "a (>> 1", "a |", "a" * 100_000, "(" * 5000])
def test_hostile_relations(text):
    with contextlib.suppress(HostError):
        relations(text)


@pytest.mark.parametrize("packing", [".gz", ".xz", ".zst", ""])
def test_fuzz_changed_packages(tmp_path, packing):
    import gzip
    import lzma

    import zstandard

    packers = {".gz": gzip.compress, ".xz": lzma.compress, "": bytes,
               ".zst": zstandard.ZstdCompressor().compress}  # fmt: skip
    files = {"usr": None, "usr/x": b"program" * 100, "usr/y": "x"}
    whole = make_deb(control("x"), files, packers[packing], packing)
    random_, path = random.Random(packing), tmp_path / "x_1_amd64.deb"
    for _ in range(60 * FUZZ):
        path.write_bytes(changed(whole, random_))
        with contextlib.suppress(GuestImageError):
            list(deb.files(path))
        with contextlib.suppress(GuestImageError):
            deb.control(path)
