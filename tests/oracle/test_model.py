"""The vocabulary: states, images, initial memory."""

import pytest

from tests.oracle.model import (
    CODE_BASE,
    CODE_MIDDLE,
    DATA_BASE,
    FX_INIT,
    Case,
    State,
    changed_lines,
    fx_image,
    initial_memory,
)


def test_state_keeps_what_it_was_built_from():
    image = fx_image(fcw=0x27F, fsw=0x3800, ftw=0x81, mxcsr=0x9FC0, st=[b"0123456789"], xmm=[b"x"])
    state = State.build({"rax": -1, "r15": 7}, rip=0x1234, rflags=0x8D5, fxsave=image)
    assert state.gpr[0] == (1 << 64) - 1
    assert state.gpr[15] == 7
    assert (state.rip, state.rflags) == (0x1234, 0x8D5 | 0x202)
    assert (state.fcw, state.fsw, state.ftw, state.mxcsr) == (0x27F, 0x3800, 0x81, 0x9FC0)
    assert state.st(0) == b"0123456789"
    assert state.xmm(0) == b"x" + bytes(15)


def test_replace_changes_only_what_it_names():
    state = State.build(range(16)).replace(gpr={3: 99}, rflags=0x203)
    assert state.gpr == (0, 1, 2, 99, *range(4, 16))
    assert state.rflags == 0x203
    assert state.rip == CODE_MIDDLE
    assert state.fxsave == FX_INIT


def test_initial_memory_places_code_then_patches():
    case = Case(b"\x90\x90", State.build(rip=CODE_BASE + 8), ((DATA_BASE + 1, b"\xaa\xbb"),))
    code, data = initial_memory(case)
    assert code[7:11] == b"\xcc\x90\x90\xcc"
    assert data[1:3] == b"\xaa\xbb"


@pytest.mark.parametrize("offset", [0, 63, 64, 255])
def test_changed_lines_finds_a_single_byte(offset):
    before = bytes(256)
    after = bytearray(before)
    after[offset] = 1
    line = offset & ~63
    assert changed_lines(0x1000, before, after) == [(0x1000 + line, bytes(after[line : line + 64]))]
