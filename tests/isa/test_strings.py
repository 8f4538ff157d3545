"""Repeated string instructions go page by page, whatever is in the TLB and in the pages."""

import random

import pytest

from ringzero.isa.caches import TLB_ENTRIES
from tests.isa.guest import PD, PT, Guest

pytestmark = pytest.mark.engine

SECOND_TABLE, SOURCE, TARGET = 0x5000, 0x60000, 0x50000
# Another address of the page SOURCE, whose translation lies where that of TARGET does.
ALIAS = TLB_ENTRIES * 0x1000 + TARGET


class Translated(Guest):
    entry = "run_translator"


@pytest.fixture(params=[Guest, Translated])
def guest(request):
    guest = request.param()
    guest.q(PD + 8 * (ALIAS >> 21), SECOND_TABLE | 7)
    guest.q(SECOND_TABLE + 8 * (ALIAS >> 12 & 0x1FF), SOURCE | 7)
    return guest


@pytest.mark.parametrize("width", ["b", "w", "d", "q"])
def test_pages_whose_translations_meet(guest, width):
    data = bytes(range(256)) * 16
    guest.write(SOURCE, data)
    count = len(data) // {"b": 1, "w": 2, "d": 4, "q": 8}[width]
    end = guest.run(f"rep movs{width}; hlt", rsi=ALIAS, rdi=TARGET, rcx=count)
    assert end.vector is None and end.reg(1) == 0
    assert guest.memory.read(TARGET, len(data)) == data
    assert guest.vcpu.statistics()["tlb_misses"] < 10


@pytest.mark.parametrize("code", ["rep stosb", "rep movsb"])
def test_pages_with_translated_code(guest, code):
    """The code of the page goes at once, and what is written over it runs."""
    place = 0x54000
    call = f"mov eax, {place}; mov ebx, 1; call rax; mov ebx, 2; hlt"
    guest.write(place, b"\xc3")
    assert guest.run(call).reg(3) == 2
    before = guest.vcpu.statistics()["tlb_misses"]
    guest.write(SOURCE, b"\xf4" * 0x1000)
    end = guest.run(f"{code}; hlt", rdi=place, rsi=SOURCE, rcx=0x1000, rax=0xF4)
    assert end.vector is None
    assert guest.vcpu.statistics()["tlb_misses"] - before < 10
    assert guest.memory.read(place, 0x1000) == b"\xf4" * 0x1000
    assert guest.run(call).reg(3) == 1, "the HLT that was written there runs"


def test_overlapping_copy_repeats(guest):
    guest.write(TARGET, b"ab" + bytes(30))
    end = guest.run("rep movsb; hlt", rsi=TARGET, rdi=TARGET + 2, rcx=30)
    assert end.vector is None
    assert guest.memory.read(TARGET, 32) == b"ab" * 16


@pytest.mark.parametrize("distance", [-4096, -9, -8, -1, 0, 1, 3, 8, 9, 64, 4096])
@pytest.mark.parametrize("width", "bwdq")
def test_overlapping_copies(guest, width, distance):
    """Whatever the distance, elements are copied one after the other."""
    size = {"b": 1, "w": 2, "d": 4, "q": 8}[width]
    count, start = 3000 // size, 0x1800
    memory = bytearray(random.Random(distance).randbytes(0x4000))
    guest.write(TARGET, bytes(memory))
    source, target = TARGET + start, TARGET + start + distance
    end = guest.run(f"rep movs{width}; hlt", rsi=source, rdi=target, rcx=count)
    assert end.vector is None and end.reg(1) == 0
    assert (end.reg(6), end.reg(7)) == (source + count * size, target + count * size)
    for i in range(count):
        place = start + i * size
        memory[place + distance : place + distance + size] = memory[place : place + size]
    assert guest.memory.read(TARGET, len(memory)) == memory


def test_a_fault_leaves_the_registers_at_its_page(guest):
    guest.q(PT + 8 * ((TARGET >> 12) + 1), 0)
    end = guest.run("rep movsb; hlt", rsi=SOURCE, rdi=TARGET + 0xFF0, rcx=0x100)
    assert end.vector == 14
    assert (end.reg(1), end.reg(7), end.cpu.cr2) == (0xF0, TARGET + 0x1000, TARGET + 0x1000)
