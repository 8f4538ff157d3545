import contextlib
import os

import pytest

from ringzero.core.memory import BULK, GuestMemory
from ringzero.errors import GuestAddressError

MIB = 1 << 20


LAYOUT = [(0, 2 * MIB), (16 * MIB, 2 * MIB)]


@pytest.fixture(params=["shared", "private"])
def memory(request):
    """Memory as the software engine begins with it, and as KVM does."""
    memory = GuestMemory(LAYOUT, large_pages=request.param == "private")
    yield memory
    memory.close()


def test_large_pages_can_be_mapped_as_such(memory):
    assert memory.host.address % (2 * MIB) == 0


def test_a_frozen_memory_and_its_copy_go_apart(memory):
    memory.write(MIB, b"before")
    memory.write(16 * MIB, b"also")
    address = memory.host.address
    for round_ in (b"first!", b"second"):
        with contextlib.closing(memory.host.freeze()) as image:
            copy = GuestMemory(LAYOUT, image)
        assert memory.host.address == address
        expected = memory.read(MIB, 6)
        assert copy.read(MIB, 6) == expected
        assert copy.read(16 * MIB, 4) == b"also"
        memory.write(MIB, round_)
        assert copy.read(MIB, 6) == expected
        copy.write(MIB, b"copied")
        copy.write(2 * MIB - 4096, b"new")
        assert memory.read(MIB, 6) == round_
        assert memory.read(2 * MIB - 4096, 3) == bytes(3)
        copy.close()


@pytest.mark.parametrize("size", [1, 100, BULK - 1, BULK, MIB + 3])
@pytest.mark.parametrize("base", [5, 16 * MIB + 4097])
def test_write_and_read_back(memory, base, size):
    seen = []
    memory.listen(lambda gpa, count: seen.append((gpa, count)))
    data = os.urandom(size)
    for kind in (bytes, bytearray, memoryview):
        memory.write(base, kind(data))
    assert memory.read(base, size) == data
    assert bytes(memory.view(base, size)) == data
    assert seen == [(base, size)] * 3
    assert memory.read(base - 5, 5) == bytes(5) and memory.read(base + size, 5) == bytes(5)


@pytest.mark.parametrize(
    ("gpa", "count"),
    [(2 * MIB, 1), (2 * MIB - 1, 2), (16 * MIB - 1, 1), (18 * MIB - 1, 2), (1 << 63, 1),
     (0, 17 * MIB), (0, BULK * 100)],
)  # fmt: skip
def test_what_is_not_ram(memory, gpa, count):
    for access in (memory.read, memory.view, memory.clear, memory.offset_of):
        with pytest.raises(GuestAddressError):
            access(gpa, count)
    with pytest.raises(GuestAddressError):
        memory.write(gpa, bytes(count))
    assert not memory.is_ram(gpa, count)


def touched(memory):
    return sum(end - start for start, end in memory.host.changed())


def test_clear_leaves_untouched_pages_alone(memory):
    memory.write(MIB // 2 + 10, b"x" * 10000)
    memory.write(16 * MIB, b"y")
    before = touched(memory)
    memory.clear(0, MIB // 2 + 100)
    memory.clear(MIB // 2 + 5000, MIB)
    memory.clear(17 * MIB, MIB)
    assert touched(memory) == before
    assert memory.read(MIB // 2, 10000) == bytes(100) + b"x" * 4900 + bytes(5000)
    assert memory.read(16 * MIB, 1) == b"y"


def test_integers(memory):
    memory.write_int(0x100, 4, 0x1_2345_6789)
    assert memory.read(0x100, 4) == bytes.fromhex("89674523")
    assert memory.read_int(0x100, 2) == 0x6789
