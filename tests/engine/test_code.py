"""Where translated code lies: room is found before all has to be dropped."""

import ctypes
import gc

import pytest

from ringzero.engine.soft import code
from ringzero.engine.soft.code import (
    CLONE_ARENA,
    CODE_SIZE,
    FIRST_ARENA,
    GROWTH,
    LEAST,
    CodeArenas,
)
from ringzero.errors import HostError
from ringzero.host import memory
from ringzero.host.memory import SPACE, ExecutableMemory
from ringzero.jit.tables import CodeSpace
from ringzero.native.view import view_of


@pytest.fixture
def space():
    room = ctypes.create_string_buffer(CodeSpace.size)
    yield view_of(CodeSpace, ctypes.addressof(room))
    del room


@pytest.fixture
def empty(monkeypatch):
    """A process as it begins: nobody has memory for translated code."""
    # Machines of other tests, which nobody has any more.
    gc.collect()
    monkeypatch.setattr(code, "CODE_BASE", 0)
    monkeypatch.setattr(ExecutableMemory, "_taken", {})


@pytest.fixture
def arenas(space, empty, monkeypatch):
    """A machine's arenas, the first as large as one becomes."""
    monkeypatch.setattr(code, "_beginning", lambda: CODE_SIZE)
    found = CodeArenas(space, 4)
    yield found
    found.close()


def left(space):
    return space.data - space.out


def test_who_shares_a_nearly_full_arena_goes_on_in_others(space, arenas):
    """As a machine that is forked late: what is its own would not hold what it runs."""
    space.out = space.data - CODE_SIZE // 4
    assert arenas.is_short()
    arenas.look()
    assert not arenas.is_short()
    space.out = space.data - 2 * LEAST
    shared = arenas.share()
    assert left(space) == 2 * LEAST and not arenas.is_short()
    rooms = []
    while not rooms or rooms[-1] < CODE_SIZE:
        space.out = space.data - left(space) // GROWTH + 1
        assert arenas.is_short()
        arenas.look()
        rooms.append(left(space))
        assert (space.region_start, space.region_end) == (space.out, space.data)
    assert rooms[0] == GROWTH * 2 * LEAST
    shared.close()


def test_without_memory_it_goes_on_in_what_there_is(space, arenas, monkeypatch):
    arenas.look()
    space.out = space.data - LEAST
    arenas.share().close()

    def refuse(*_, **__):
        raise HostError("the host gives no executable memory")

    monkeypatch.setattr(code, "Arena", refuse)
    space.out = space.data - 1
    assert arenas.is_short()
    arenas.look()
    assert not arenas.is_short() and left(space) == 1


def test_who_shares_an_arena_that_is_nearly_empty_keeps_it(space, arenas):
    arenas.share().close()
    assert left(space) == CODE_SIZE
    assert not arenas.is_short()


def grown(space):
    """Return a machine's arenas when it has grown as far as it may, and how large each was."""
    found, rooms = CodeArenas(space, 4), [left(space)]
    while True:
        space.out = space.data - 1
        found.look()
        if left(space) == 1:
            return found, rooms
        rooms.append(left(space))


def test_many_machines_of_a_process_all_find_room(space, empty):
    many = []
    try:
        for _ in range(60):
            many.append(grown(space))
        rooms = [found for _, found in many]
        assert rooms[0] == [FIRST_ARENA, FIRST_ARENA * GROWTH, CODE_SIZE]
        assert all(found[0] == FIRST_ARENA for found in rooms[:20])
        assert all(found[0] >= CLONE_ARENA for found in rooms)
    finally:
        for found, _ in many:
            found.close()
    assert ExecutableMemory.room() == SPACE


def test_what_is_forgotten_is_nobodys(space, empty):
    for _ in range(300):
        grown(space)
    assert ExecutableMemory.room() == SPACE


def test_a_machine_begins_in_what_there_is(space, empty, monkeypatch):
    """Where others than machines have taken nearly all, in pieces."""
    map_low = memory._map_low

    def fits(address, size):
        return map_low(address, size) if size <= LEAST else ctypes.c_void_p(-1).value

    monkeypatch.setattr(memory, "_map_low", fits)
    arenas, rooms = grown(space)
    assert rooms == [LEAST]
    arenas.close()
    monkeypatch.setattr(memory, "_map_low", lambda *_: ctypes.c_void_p(-1).value)
    with pytest.raises(HostError):
        CodeArenas(space, 4)
