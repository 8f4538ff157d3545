"""The engine linked without LLVM: it is what LLVM links, and what is damaged is linked again."""

import ctypes
import os
import struct

import pytest

from ringzero.engine.soft import linked
from ringzero.engine.soft.x86 import native
from ringzero.jit import build

pytestmark = pytest.mark.engine

SYMBOLS = [native.HOST_TSC, native.PAGE_HASH, native.RUN_INTERPRETER, native.DECODE_BLOCK]


@pytest.fixture(scope="module")
def objects():
    return build.ensure()


@pytest.fixture
def cache(objects, tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(tmp_path))
    return tmp_path / "linked"


def page_hash(library):
    function = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(library.address(native.PAGE_HASH))
    page = ctypes.create_string_buffer(bytes(range(256)) * 16, 4096)
    return function(ctypes.addressof(page))


def handlers(library, objects):
    """Return where each unit's handlers lie from its first one on, and how they begin."""
    import json

    found = []
    for unit in objects.units:
        places = json.loads(objects.read(f"{unit}.places"))
        if places:
            table = library.address(f"handlers.{unit}")
            addresses = (ctypes.c_uint64 * len(places)).from_address(table)
            found += [(at - addresses[0], ctypes.string_at(at, 1)) for at in addresses]
    return found


def test_it_is_what_llvm_links(objects, cache):
    import json

    names = [u for u in objects.units if json.loads(objects.read(f"{u}.places"))]
    symbols = [*SYMBOLS, *(f"handlers.{name}" for name in names)]
    ours, theirs = linked.link(objects, symbols), build.link(objects, symbols)
    assert page_hash(ours) == page_hash(theirs)
    assert len(handlers(ours, objects)) > 500
    assert handlers(ours, objects) == handlers(theirs, objects)
    assert (cache / objects.key).stat().st_mode & 0o777 == 0o600


def test_a_second_process_maps_the_same_file(objects, cache, monkeypatch):
    first = linked.link(objects, SYMBOLS)
    monkeypatch.setattr(linked, "_linked", lambda *_: pytest.fail("linked again"))
    second = linked.link(objects, SYMBOLS)
    assert first.address(SYMBOLS[0]) != second.address(SYMBOLS[0])
    assert page_hash(first) == page_hash(second)


def damage(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


DAMAGES = {
    "magic": lambda p: damage(p, 0),
    "checksum": lambda p: damage(p, 8),
    "sizes": lambda p: damage(p, 17),
    "names": lambda p: damage(p, linked.HEADER.size + 3),
    "code": lambda p: damage(p, 20000),
    "tables": lambda p: damage(p, -100),
    "short": lambda p: os.truncate(p, 30000),
    "empty": lambda p: p.write_bytes(b""),
    "of others": lambda p: p.chmod(0o622),
    "a link": lambda p: (p.rename(p.with_suffix(".x")), p.symlink_to(p.with_suffix(".x"))),
}


@pytest.mark.parametrize("harm", DAMAGES.values(), ids=DAMAGES)
def test_what_was_changed_is_linked_again(objects, cache, harm):
    right = page_hash(linked.link(objects, SYMBOLS))
    path = cache / objects.key
    whole = path.read_bytes()
    harm(path)
    assert page_hash(linked.link(objects, SYMBOLS)) == right
    assert path.read_bytes() == whole


def test_one_without_a_function_that_is_asked_for_is_made_again(objects, cache):
    linked.link(objects, SYMBOLS[:1])
    found = linked.link(objects, SYMBOLS)
    assert all(found.address(name) for name in SYMBOLS)


def test_a_cache_that_cannot_be_written_to_is_llvms_to_link(objects, cache):
    cache.write_bytes(b"")
    assert linked.link(objects, SYMBOLS) is None


class Objects:
    key, units = "key", ("one",)

    def __init__(self, data):
        self.data = data

    def read(self, name):
        return self.data


@pytest.mark.parametrize("data", [b"", b"\x7fELF\2\1", bytes(64), b"\x7fELF\2\1" + b"\xff" * 100])
def test_what_is_no_object_is_llvms_to_refuse(cache, data):
    assert linked.link(Objects(data), ["a"]) is None


def test_relocations_that_are_not_known_are_llvms(objects, cache):
    data = bytearray(objects.read(f"{objects.units[0]}.o"))
    header = linked._FILE.unpack_from(data)
    for number in range(header[12]):
        at = header[6] + number * linked._SECTION.size
        section = linked._SECTION.unpack_from(data, at)
        if section[1] == linked._RELOCATIONS:
            struct.pack_into("<I", data, section[4] + 8, 11)
    assert linked.link(Objects(bytes(data)), ["a"]) is None
