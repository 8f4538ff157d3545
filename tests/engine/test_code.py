"""Where translated code lies: room is found before all has to be dropped."""

import ctypes

import pytest

from ringzero.engine.soft import code
from ringzero.engine.soft.code import CODE_SIZE, GROWTH, LEAST, CodeArenas
from ringzero.errors import HostError
from ringzero.jit.tables import CodeSpace
from ringzero.native.view import view_of


@pytest.fixture
def space():
    room = ctypes.create_string_buffer(CodeSpace.size)
    yield view_of(CodeSpace, ctypes.addressof(room))
    del room


@pytest.fixture
def arenas(space, monkeypatch):
    """A machine's arenas, the first as large as one becomes."""
    monkeypatch.setattr(code, "FIRST_ARENA", CODE_SIZE)
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

    def refuse(*_):
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
