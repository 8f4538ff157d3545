"""Which blocks there are, without a guest: registered, found, copied from others, dropped."""

import ctypes

import pytest

from ringzero.host.memory import ExecutableMemory
from ringzero.isa.caches import CodePage
from ringzero.jit import blocks
from ringzero.jit.compile.llvm import Library, compile_object
from ringzero.jit.compile.module import Module
from ringzero.jit.tables import CodeSpace, Scratch
from ringzero.native.view import view_of

pytestmark = pytest.mark.engine
FUNCTIONS = (
    blocks.find_block, blocks.register_block, blocks.drop_blocks, blocks.page_hash,
    blocks.adopt_saved,
)  # fmt: skip
MODE, OTHER_MODE = 2, 6
KINDS = {"u64": ctypes.c_uint64, "u32": ctypes.c_uint32}


@pytest.fixture(scope="module")
def call():
    module = Module("blocks")
    for function in FUNCTIONS:
        module.require(function)
    library = Library([compile_object(module.text())], [f.name for f in FUNCTIONS])

    def run(function, *arguments):
        kinds, result = function.signature()
        arguments = [getattr(a, "address", a) for a in arguments]
        types = [KINDS.get(repr(kind), ctypes.c_void_p) for kind in kinds]
        door = ctypes.CFUNCTYPE(KINDS.get(repr(result)), *types)
        return door(library.address(function.name))(*arguments)

    run.library = library  # which holds the code
    return run


class Space:
    """A code space in memory of its own, a scratch that leads to it, a table for one page."""

    def __init__(self):
        self.memory = ExecutableMemory(1 << 16)
        self._structs = ctypes.create_string_buffer(CodeSpace.size + Scratch.size)
        address = ctypes.addressof(self._structs)
        self.view = view_of(CodeSpace, address)
        self.scratch = view_of(Scratch, address + CodeSpace.size)
        self.scratch.space = address
        self.view.out = self.view.region_start = self.memory.address
        self.view.data = self.view.region_end = self.memory.address + (1 << 16)
        self.words = (ctypes.c_uint64 * 1)()
        self.slot = ctypes.addressof(self.words)
        self.view.code_pages_size = 8

    def close(self):
        self.memory.close()


@pytest.fixture
def space():
    made = Space()
    yield made
    made.close()


def register(call, space, start, end, code, mode=MODE, lines=0):
    return call(blocks.register_block, space.scratch, space.slot, start, end, lines, mode, code)


def find(call, space, offset, mode=MODE):
    return call(blocks.find_block, space.slot, offset, mode)


def test_a_block_is_found_by_its_offset_and_mode(call, space):
    assert find(call, space, 0x10) == 0
    assert register(call, space, 0x10, 0x20, 0x1111) == 1
    assert register(call, space, 0x14, 0x20, 0x2222) == 0
    assert register(call, space, 0x10, 0x20, 0x3333, OTHER_MODE) == 0
    assert find(call, space, 0x10) == 0x1111
    assert find(call, space, 0x14) == 0x2222
    assert find(call, space, 0x10, OTHER_MODE) == 0x3333
    assert find(call, space, 0x11) == 0
    assert space.view.count_blocks == 3


@pytest.mark.parametrize(
    ("start", "end", "lines"),
    [(0, 1, 1), (0, 64, 1), (0, 65, 3), (63, 65, 3), (0xFC0, 0x1000, 1 << 63), (0, 0x1000, -1)],
)
def test_the_lines_that_a_block_lies_in_are_noted(call, space, start, end, lines):
    register(call, space, start, end, 0x1111)
    assert view_of(CodePage, space.words[0]).lines == lines & (1 << 64) - 1


def test_records_lie_in_the_region_and_aligned(call, space):
    for start in range(0, 640, 64):
        register(call, space, start, start + 1, 0x1111)
    assert space.view.region_start < space.view.data < space.words[0] < space.view.region_end
    assert space.view.data % 16 == space.words[0] % 16 == 0


def test_a_page_of_another_machine_is_copied_before_a_block_is_added(call, space):
    register(call, space, 0x10, 0x20, 0x1111)
    shared = space.words[0]
    before = ctypes.string_at(shared, CodePage.size)
    # From now on the region is the rest: what lies above belongs to others, too.
    space.view.region_end = space.view.data
    assert register(call, space, 0x40, 0x50, 0x2222) == 0
    assert space.words[0] != shared
    assert ctypes.string_at(shared, CodePage.size) == before
    assert (find(call, space, 0x10), find(call, space, 0x40)) == (0x1111, 0x2222)


def test_dropping_forgets_all_and_begins_anew(call, space):
    register(call, space, 0x10, 0x20, 0x1111)
    space.view.out = space.view.region_start + 100
    space.view.saved_table = 1
    call(blocks.drop_blocks, space.view, space.slot)
    assert find(call, space, 0x10) == 0
    assert space.view.out == space.view.region_start
    assert space.view.data == space.view.region_end
    assert (space.view.saved_table, space.view.count_flushes) == (0, 1)


def test_saved_translations_serve_pages_of_the_same_content_only(call, space):
    contents = ctypes.create_string_buffer(bytes(4096) + b"\x90" * 4096, 8192)
    address = ctypes.addressof(contents)
    hashes = (ctypes.c_uint64 * 2)(*(call(blocks.page_hash, address + n * 4096) for n in (0, 1)))
    pages = (ctypes.c_uint32 * 2)(0x1000, 0x2000)
    slots = 4
    table = (ctypes.c_uint32 * slots)()
    for index, value in enumerate(hashes):
        place = value % slots
        while table[place]:
            place = (place + 1) % slots
        table[place] = index + 1
    page = ctypes.create_string_buffer(b"\x90" * 4096, 4096)
    where = ctypes.addressof(page)
    view = space.view
    assert call(blocks.adopt_saved, view, space.slot, where) == 0
    view.saved_table, view.saved_mask = ctypes.addressof(table), slots - 1
    view.saved_hashes, view.saved_contents = ctypes.addressof(hashes), address
    view.saved_pages = ctypes.addressof(pages)
    assert call(blocks.adopt_saved, view, space.slot, where) == 1
    assert (space.words[0], view.count_adopted) == (0x2000, 1)
    page[100] = b"\xcc"
    assert call(blocks.adopt_saved, view, space.slot, where) == 0


def test_pages_of_the_same_hash_are_compared(call, space):
    """The content decides: here a forged table says that any page is the saved one."""
    saved = ctypes.create_string_buffer(b"\x90" * 4096, 4096)
    page = ctypes.create_string_buffer(b"\x90" * 4095 + b"\x91", 4096)
    where = ctypes.addressof(page)
    table = (ctypes.c_uint32 * 2)()
    wanted = call(blocks.page_hash, where)
    table[wanted % 2] = 1
    view = space.view
    hashes, pages = (ctypes.c_uint64 * 1)(wanted), (ctypes.c_uint32 * 1)(0x1000)
    view.saved_table, view.saved_mask = ctypes.addressof(table), 1
    view.saved_hashes, view.saved_contents = ctypes.addressof(hashes), ctypes.addressof(saved)
    view.saved_pages = ctypes.addressof(pages)
    assert call(blocks.adopt_saved, view, space.slot, where) == 0
    assert space.words[0] == 0
