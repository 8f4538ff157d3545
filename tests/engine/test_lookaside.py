"""What a clone's vCPU takes over of its original's jump caches, and when it must not."""

import gc
from dataclasses import replace
from pathlib import Path

import pytest

from ringzero.core.memory import GuestMemory
from ringzero.engine.exits import Halt
from ringzero.engine.soft.x86 import lookaside
from ringzero.engine.soft.x86.vm import X86SoftVm
from ringzero.host.memory import PAGE, read_pages
from ringzero.isa.caches import JUMP_ENTRIES, JUMPS_SIZE
from ringzero.isa.execution import NEVER
from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86.cpu import NO_SPACE, SPACE_JUMPS_SIZE, SPACES, TLBS_SIZE
from tests.isa.guest import SIZE, Guest, QuietInterrupts, assemble

pytestmark = pytest.mark.engine

FUNCTIONS, COUNT = 0x50000, 16
# Calls each of the functions, one in each page, by a register, and adds what they return.
CALLS = f"""
    again: xor edx, edx; mov esi, {FUNCTIONS}; mov ecx, {COUNT}
    each: call rsi; add edx, eax; add esi, 0x1000; dec ecx; jnz each
    hlt; jmp again
"""


class Original(Guest):
    entry = "run_translator"

    def __init__(self):
        super().__init__()
        for number in range(COUNT):
            self.write(FUNCTIONS + number * 0x1000, assemble("mov eax, 1; ret"))


class Clone:
    """A machine that goes on where another stands, in this process."""

    def __init__(self, original, change=lambda state: state):
        state = change(original.vcpu.get_state())
        image = original.memory.host.freeze()
        self.memory = GuestMemory([(0, SIZE)], image)
        image.close()
        shared = original.vm.share()
        self.vm = X86SoftVm(original.vm.engine, self.memory, [], 1_000_000_000)
        self.vm.adopt(shared)
        self.vcpu = self.vm.create_vcpu(0, QuietInterrupts())
        self.vcpu._enter = self.vm.engine.run_translator
        self.vm.code.hot = 0
        self.vcpu.set_state(state)
        shared.close()

    def go(self):
        """Run to the next HLT; return the sum."""
        assert isinstance(self.vcpu.run(), Halt)
        return self.vcpu.cpu.regs[x86.RDX]

    @property
    def lookups(self):
        return self.vcpu.statistics()["translator_lookups"]

    def close(self):
        self.vm.close()
        self.memory.close()


@pytest.fixture
def original():
    guest = Original()
    for _ in range(2):
        guest.run(CALLS)
    assert guest.cpu.regs[x86.RDX] == COUNT
    yield guest
    guest.close()


def test_a_clone_knows_what_its_original_has_found(original):
    clone = Clone(original)
    assert clone.go() == COUNT and clone.go() == COUNT
    # The way behind HLT is new.
    assert clone.lookups < COUNT
    clone.close()


def test_a_clone_of_a_clone_too(original):
    first = Clone(original)
    assert first.go() == COUNT
    second = Clone(first)
    first.close()
    assert second.go() == COUNT and second.lookups < COUNT
    second.close()


@pytest.mark.parametrize("who", ["clone", "original"])
def test_code_that_one_of_them_changes_is_the_others_still(original, who):
    clone = Clone(original)
    changed = clone if who == "clone" else original
    changed.memory.write(FUNCTIONS + 1, b"\x05")
    original.go([])
    sums = {"clone": clone.go(), "original": original.cpu.regs[x86.RDX]}
    assert sums.pop(who) == COUNT + 4 and sums.popitem()[1] == COUNT
    clone.close()


def test_pages_that_the_clone_maps_anew_run_what_is_there(original):
    clone = Clone(original)
    other = 0x49000
    clone.memory.write(other, assemble("mov eax, 3; ret"))
    # By the guest itself, which says so as it has to.
    rip = clone.vcpu.cpu.rip
    table = f"mov qword ptr [{0x4000 + (FUNCTIONS >> 12) * 8}], {other | 3}"
    code = assemble(f"{table}; invlpg [{FUNCTIONS}]; mov eax, {rip}; jmp rax")
    clone.memory.write(0x48000, code)
    clone.vcpu.cpu.rip = 0x48000
    assert clone.go() == COUNT + 2
    clone.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda state: replace(state, cr3=0x49000),
        lambda state: replace(state, cr0=state.cr0 | x86.CR0_TS),
        lambda state: replace(state, cr4=state.cr4 | x86.CR4_PGE),
    ],
    ids=["CR3", "CR0", "CR4"],
)
def test_nothing_is_taken_over_for_another_state(original, change):
    # The same tables at another address: the sum is the same.
    original.memory.write(0x49000, bytes(original.memory.read(0x1000, 0x1000)))
    clone = Clone(original, change)
    assert clone.go() == COUNT
    assert clone.lookups >= COUNT
    clone.close()


def test_a_clone_of_what_is_to_forget_all_before_it_runs_forgets_too(original):
    """Its caches are those of before the state that it was given."""
    state = original.vcpu.get_state()
    original.memory.write(FUNCTIONS + 1, b"\x05")
    original.memory.write(FUNCTIONS + 1, b"\x01")
    assert original.go([]) and original.cpu.regs[x86.RDX] == COUNT
    original.vcpu.set_state(state)
    clone = Clone(original)
    assert clone.go() == COUNT and clone.lookups >= COUNT
    clone.close()


def test_memory_of_what_is_not_used_is_not_touched(original):
    """A first way alone is written to as long as two addresses do not share an entry."""
    spaces = original.cpu.spaces
    (filled,) = [n for n in range(SPACES) if spaces[n].cr3 != NO_SPACE]
    kernel = spaces[filled].jumps + JUMPS_SIZE - original.vcpu._lookaside._jumps.address
    ways = [
        bytes(original.vcpu._lookaside._jumps.view[kernel + 2 * n * JUMPS_SIZE :][:JUMPS_SIZE])
        for n in range(3)
    ]
    assert len(ways[0]) == 16 * JUMP_ENTRIES and any(ways[0][16:])
    assert not any(ways[1][16:]) and not any(ways[2][16:])


def own_pages(clone):
    """How many pages of host memory the clone's tables take for themselves."""
    lookaside = clone.vcpu._lookaside
    tables = (
        (lookaside._tlbs.address, SPACES * TLBS_SIZE),
        (lookaside._jumps.address, SPACES * SPACE_JUMPS_SIZE),
    )
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        runs = [run for where in tables for run in read_pages(pagemap.fileno(), *where)]
    return sum(end - start for start, end in runs) // PAGE


def test_a_clone_that_rests_gives_memory_back_and_finds_everything_again(original):
    clone = Clone(original)
    assert clone.go() == COUNT and clone.go() == COUNT
    assert own_pages(clone) > 0
    clone.vcpu._lookaside.rest()
    assert own_pages(clone) == 0
    assert clone.go() == COUNT
    before = clone.lookups
    assert clone.go() == COUNT and clone.lookups == before
    clone.close()


@pytest.mark.parametrize("times", [1, 2])
def test_a_clone_that_rests_does_not_remember_what_it_has_forgotten(original, times):
    clone = Clone(original)
    assert clone.go() == COUNT
    clone.memory.write(FUNCTIONS + 1, b"\x05")
    assert clone.go() == COUNT + 4
    for _ in range(times):
        clone.vcpu._lookaside.rest()
        assert own_pages(clone) == 0
        assert clone.go() == COUNT + 4
    clone.close()


def test_a_clone_of_one_that_rests(original):
    first = Clone(original)
    assert first.go() == COUNT
    first.vcpu._lookaside.rest()
    second = Clone(first)
    first.close()
    assert second.go() == COUNT
    before = second.lookups
    assert second.go() == COUNT and second.lookups == before
    second.vcpu._lookaside.rest()
    assert second.go() == COUNT
    second.close()


def test_an_original_does_not_rest(original):
    assert not original.vcpu._lookaside.can_rest and original.cpu.rests_from == NEVER


def test_a_machine_has_its_empty_tlbs_whatever_another_thread_has_made():
    """Two that begin at once may each make them, and the cache keeps one."""
    before = Original()
    lookaside._empty_tlbs.cache_clear()
    gc.collect()
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line.split()[0].split("-") for line in lines]
    place = before.vcpu.cpu.tlb_checked
    assert any(int(start, 16) <= place < int(end, 16) for start, end in mapped)
    before.vm.close()
    before.memory.close()


def test_everything_is_given_back(original):
    clone = Clone(original)
    clone.close()
    base = original.vcpu._lookaside._jumps.base
    assert base.sole
