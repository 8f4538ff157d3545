import contextlib
import os

import pytest

from ringzero.core.memory import BULK, GuestMemory
from ringzero.errors import GuestAddressError
from ringzero.host.memory import MemoryBase, MemoryImage

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


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"file" + bytes(6000))
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


ROOM = [(128 * MIB, 2 * MIB), (256 * MIB, 4 * MIB)]


@pytest.mark.parametrize("layout", [LAYOUT, LAYOUT[:1]])
@pytest.mark.parametrize("large", [False, True])
def test_files_beside_ram(file, layout, large):
    memory = GuestMemory(layout, large_pages=large, files=ROOM)
    memory.map_file(ROOM[0][0], file, 6004, shared=True)
    memory.map_file(ROOM[1][0], file, 6004, shared=False)
    assert [memory.read(base, 4) for base, _ in ROOM] == [b"file"] * 2
    assert memory.is_ram(ROOM[1][0], ROOM[1][1]) and not memory.is_ram(260 * MIB, 1)
    # Engines have room for two regions; where RAM lies is another matter.
    assert len(memory.mapped) == 2 and memory.mapped[-1].end == 260 * MIB
    assert [(r.base, r.size) for r in memory.regions] == layout
    assert memory.size == sum(size for _, size in layout) == memory.host.freeze().size
    memory.write(ROOM[0][0] + 10, b"to all")
    assert not memory.has_written_file(ROOM[1][0])
    memory.write(ROOM[1][0] + 20, b"to itself")
    assert memory.has_written_file(ROOM[1][0]) and not memory.has_written_file(ROOM[0][0])
    assert os.pread(file, 30, 0) == b"file" + bytes(6) + b"to all" + bytes(14)
    # Much at once, zeroes, and what a balloon gives away: nothing leaves the room.
    memory.write(ROOM[1][0], b"x" * BULK)
    memory.clear(ROOM[1][0], 4096)
    assert memory.read(ROOM[1][0], 4097) == bytes(4096) + b"x"
    memory.discard(ROOM[0][0], 4096)
    assert memory.read(ROOM[0][0], 4) == b"file"
    assert os.fstat(file).st_size == 6004
    memory.close()


def test_a_copy_has_no_files_but_its_own(file):
    memory = GuestMemory(LAYOUT, files=ROOM)
    memory.map_file(ROOM[0][0], file, 6004, shared=True)
    memory.write(0, b"ram")
    with contextlib.closing(memory.host.freeze()) as image:
        copy = GuestMemory(LAYOUT, image, files=ROOM)
        memory.write(ROOM[0][0], b"more")
        assert copy.read(0, 3) == b"ram"
        assert copy.read(ROOM[0][0], 4) == bytes(4)
        copy.map_file(ROOM[0][0], file, 6004, shared=False)
        assert copy.read(ROOM[0][0], 4) == b"more"
        memory.become(image)
        assert memory.read(ROOM[0][0], 4) == b"more"
    memory.close()
    copy.close()


def test_a_file_has_no_more_room_than_there_is(file):
    memory = GuestMemory(LAYOUT, files=ROOM)
    with pytest.raises(GuestAddressError):
        memory.map_file(ROOM[1][0], file, 5 * MIB, shared=True)
    memory.close()


def test_a_memory_that_somebody_supplies_is_its_own_once_it_is_copied():
    told, size = [], sum(size for _, size in LAYOUT)
    descriptor = os.memfd_create("supplied")
    os.ftruncate(descriptor, size)
    base = MemoryBase(descriptor, size, owned=False)
    with contextlib.closing(MemoryImage(base, supplied=lambda *place: told.append(place))) as image:
        memory = GuestMemory(LAYOUT, image)
    assert told == [(memory.host.address, size)]
    memory.write(MIB, b"written")
    memory.write(0, bytes(4096))
    # What is as in the base is not given back: it would be asked for again.
    memory.host.forget_same()
    assert sum(end - start for start, end in memory.host.changed()) == 2 * 4096
    with contextlib.closing(memory.host.freeze()) as frozen:
        assert frozen.base is not base and not frozen.changed
        copy = GuestMemory(LAYOUT, frozen)
        assert copy.read(MIB, 7) == b"written"
        copy.close()
    assert len(told) == 1
    memory.close()
