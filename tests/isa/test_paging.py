"""Every combination of permission bits, on our own engine, against the model of the manual.

A small kernel in the guest goes through all settings of R/W, U/S and XD at every
level of the tables on the way to one page and tries the six accesses with each;
the host compares what it wrote down with `tests.oracle.paging.walk` (Intel SDM
vol. 3A, sections 4.6 and 4.7), which Unicorn is compared with too.
"""

import itertools
import os
import struct
from dataclasses import replace

import pytest

from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86.state import Segment
from tests.isa.guest import CODE, KERNEL_STACK, PML4, PT, USER_CODE, USER_STACK, Guest
from tests.isa.test_protected import UCS32, UDS32, Protected
from tests.oracle.assembler import assemble
from tests.oracle.model import PAGE
from tests.oracle.paging import FETCH, READ, WRITE, Controls, walk
from tests.oracle.unicorn_peer import ACCESSED, DIRTY, HUGE, NX, PRESENT, USER, WRITABLE

pytestmark = pytest.mark.engine

THOROUGH = int(os.environ.get("RINGZERO_FUZZ", "1")) > 1
# Tables on the way to the page, the page, the values of its entries, what was seen.
DIRECTORY_POINTERS, DIRECTORY, TABLE, LEAF, VALUES = (0x50000 + n * PAGE for n in range(5))
RESULTS, RESULTS_SIZE = 0xA0000, 4096 * 6 * 8
DONE, FAULT, STORE, USER_STEP = CODE + 0x400, CODE + 0x500, CODE + 0x600, 16
ALLOWED, WRONG_ADDRESS = 0xFFFF, 0x8000
CALL_BACK = 0x81  # the interrupt that the page and user code end in
OPERATIONS = [(access, user) for user in (False, True) for access in (READ, WRITE, FETCH)]
PERMISSIONS = [sum(bits) for bits in itertools.product((0, NX), (0, USER), (0, WRITABLE))]
CONTROLS = [Controls(*bits) for bits in itertools.product((False, True), repeat=5)]


class Explorer64:
    """The exploring kernel under 4-level paging."""

    virtual = (1 << 39) + LEAF
    slots = (PML4 + 8, DIRECTORY_POINTERS, DIRECTORY, TABLE + (LEAF >> 12) * 8)
    wide = True

    def __init__(self):
        guest = self.guest = Guest()
        for page in range(RESULTS >> 12, (RESULTS + RESULTS_SIZE) >> 12):
            guest.q(PT + page * 8, page << 12 | PRESENT | WRITABLE)
        guest.gate(14, FAULT)
        guest.gate(CALL_BACK, DONE, dpl=3)
        self.place(64)
        self.state = guest.state

    def place(self, mode):
        guest = self.guest
        fill = "".join(
            f"""
            mov eax, COMBINATION
            shr eax, {3 * n}
            and eax, 7
            mov edx, [eax * 8 + {VALUES + n * 64}]
            mov [{slot}], edx
            """
            + (f"mov edx, [eax*8 + {VALUES + n * 64 + 4}]; mov [{slot + 4}], edx" * self.wide)
            for n, slot in enumerate(self.slots)
        )
        user = f"""
            lea eax, [OPERATION - 3]
            shl eax, 4
            add eax, {USER_CODE}
            """ + (
            f"push 0x2b; push {USER_STACK}; push r15; push 0x33; push rax; iretq"
            if mode == 64
            else f"push {UDS32}; push {USER_STACK}; push dword ptr [{VALUES + 0x800}];"
            f"push {UCS32}; push eax; iretd"
        )
        flags = "push r15; popfq" if mode == 64 else f"push dword ptr [{VALUES + 0x800}]; popfd"
        write = "mov byte ptr [PAGE + 0x800], 1"
        main = f"""
            mov edi, {RESULTS}
            xor COMBINATION, COMBINATION
        combination:
            xor OPERATION, OPERATION
        again: {fill}
            invlpg [PAGE]
            mov esp, {KERNEL_STACK}
            cmp OPERATION, 3
            jae user
            {flags}
            cmp OPERATION, 1
            je write
            ja fetch
            mov al, [PAGE]
            int {CALL_BACK}
        write: {write}
            int {CALL_BACK}
        fetch: jmp PAGE
        user: {user}
        .org 0x300
            add edi, 8
            inc OPERATION
            cmp OPERATION, 6
            jb again
            inc COMBINATION
            cmp COMBINATION, [{VALUES + 0x808}]
            jb combination
            hlt
        """
        done = f"mov eax, {ALLOWED}; mov edx, {STORE}; jmp DX"
        page = "rbx" if mode == 64 else "ebx"
        fault = f"""
            pop {page.replace("b", "a")}
            mov {page.replace("b", "d")}, cr2
            sub {page.replace("b", "d")}, PAGE
            and edx, ~0x800
            jz right
            or eax, {WRONG_ADDRESS}
        right: mov edx, {STORE}
            jmp DX
        """
        entries = "".join(
            f"mov al, [{slot}]; mov [edi + {2 + n}], al;" for n, slot in enumerate(self.slots)
        )
        store = f"mov [edi], ax; {entries} mov edx, {CODE + 0x300}; jmp DX"
        names = {
            "COMBINATION": "r12d" if mode == 64 else "esi",
            "OPERATION": "r13d" if mode == 64 else "ebp",
            "PAGE": page,
            "jmp DX": f"jmp {page.replace('b', 'd')}",
        }
        parts = (
            (CODE, main), (DONE, done), (FAULT, fault), (STORE, store),
            (USER_CODE, f"mov al, [PAGE]; int {CALL_BACK}"),
            (USER_CODE + USER_STEP, f"{write}; int {CALL_BACK}"),
            (USER_CODE + 2 * USER_STEP, "jmp PAGE"), (LEAF, f"int {CALL_BACK}"),
        )  # fmt: skip
        for address, text in parts:
            source = text
            for name, meaning in names.items():
                source = source.replace(name, meaning)
            guest.write(address, assemble(source, mode))

    def run(self, values, controls):
        """Try all combinations of `values` (a list per level, 8 at most each)."""
        guest = self.guest
        for level, choices in enumerate(values):
            for n in range(8):
                guest.q(VALUES + level * 64 + n * 8, choices[n % len(choices)])
        count = 8 ** len(values)
        flags = 2 | controls.ac * x86.AC
        guest.q(VALUES + 0x800, flags)
        guest.q(VALUES + 0x808, count)
        state = self.state
        guest.vcpu.set_state(
            replace(
                state,
                cr0=state.cr0 if controls.write_protect else state.cr0 & ~x86.CR0_WP,
                cr4=state.cr4 | controls.smep * x86.CR4_SMEP | controls.smap * x86.CR4_SMAP,
                efer=state.efer if controls.nxe else state.efer & ~x86.EFER_NXE,
            ).with_gpr(rbx=self.virtual, r15=flags)
        )
        assert guest.go([]).vector is None
        assert CODE < guest.cpu.rip <= DONE, "an exception of another kind"
        raw = bytes(guest.memory.read(RESULTS, count * 6 * 8))
        return struct.iter_unpack("<H4B2x", raw)


def compare(explorer, values, controls, above=()):
    """All results of a run against the model; `above` are levels without permissions."""
    results = explorer.run(values, controls)
    levels = len(values)
    for number in range(8**levels):
        chosen = [v[(number >> 3 * n) % 8 % len(v)] for n, v in enumerate(values)]
        entries = (*above, *chosen)
        leaf = next((n for n, e in enumerate(chosen) if e & HUGE), levels - 1)
        for access, user in OPERATIONS:
            code, *seen = next(results)
            expected = walk(entries, access, user, controls)
            where = ([hex(e) for e in entries], access, user, controls)
            assert code == (expected.error_code if expected.fault else ALLOWED), where
            dirty = bool(seen[leaf] & DIRTY)
            if expected.fault:
                assert not dirty, where
            else:
                assert all(e & ACCESSED for e in seen[: leaf + 1]), where
                assert dirty == (access == WRITE), where


def at_all_levels(*targets, present=PRESENT):
    """The entries of each level with every permission; a target of None is not given."""
    return [[target | present | bits for bits in PERMISSIONS] for target in targets]


@pytest.fixture(scope="module")
def long_mode():
    explorer = Explorer64()
    yield explorer
    explorer.guest.close()
    Guest.alive.remove(explorer.guest)


@pytest.mark.parametrize("controls", CONTROLS, ids=str)
def test_4_kib_pages(long_mode, controls):
    compare(long_mode, at_all_levels(DIRECTORY_POINTERS, DIRECTORY, TABLE, LEAF), controls)


@pytest.mark.parametrize("controls", CONTROLS, ids=str)
def test_2_mib_and_1_gib_pages(long_mode, controls):
    compare(long_mode, at_all_levels(DIRECTORY_POINTERS, DIRECTORY, HUGE), controls)
    compare(long_mode, at_all_levels(DIRECTORY_POINTERS, HUGE), controls)


@pytest.mark.parametrize("controls", CONTROLS if THOROUGH else CONTROLS[5::9], ids=str)
@pytest.mark.parametrize("absent", range(4))
def test_entries_that_are_not_present(long_mode, absent, controls):
    """What lies above the absent entry has every permission, what lies below is not looked at."""
    targets = (DIRECTORY_POINTERS, DIRECTORY, TABLE, LEAF)
    values = at_all_levels(*targets)
    values[absent] = [target & ~PRESENT for target in values[absent]]
    for level in range(4):
        if level != absent and not THOROUGH:
            values[level] = values[level][3:4] + values[level][4:5]
    compare(long_mode, values, controls)


# --- 32-bit code ---


class Explorer32(Explorer64):
    """The same kernel in protected mode, under PAE or 32-bit paging."""

    virtual = 0x4000_0000 + LEAF

    def __init__(self, pae):
        guest = self.guest = Protected()
        self.wide = pae
        size = 8 if pae else 4
        slot = DIRECTORY if pae else PML4 + (self.virtual >> 22) * 4
        self.slots = (slot, TABLE + (LEAF >> 12) * size)
        pack = struct.Struct("<Q" if pae else "<I").pack
        for page in range(256):
            user = USER if USER_CODE >> 12 <= page < USER_STACK >> 12 else 0
            guest.write(PT + page * size, pack(page << 12 | PRESENT | WRITABLE | user))
        guest.write(PML4, bytes(PAGE))
        if pae:
            guest.write(PML4, pack(0x3000 | PRESENT) + pack(DIRECTORY | PRESENT))
            guest.write(0x3000, pack(PT | PRESENT | WRITABLE | USER))
        else:
            guest.write(PML4, pack(PT | PRESENT | WRITABLE | USER))
        guest.gate(14, FAULT)
        guest.gate(CALL_BACK, DONE, dpl=3)
        self.place(32)
        cr4 = x86.CR4_PAE if pae else x86.CR4_PSE
        cr0 = guest.state.cr0 | x86.CR0_PG | x86.CR0_WP
        efer = x86.EFER_NXE if pae else 0
        # Data segments that user code may use as well: IRET would take others away.
        data = Segment(UDS32, 0, 0xFFFFFFFF, 0xCF3)
        self.state = replace(guest.state, cr0=cr0, cr3=PML4, cr4=cr4, efer=efer, ds=data, es=data)


FULL = PRESENT | WRITABLE | USER


@pytest.fixture(scope="module", params=[True, False], ids=["pae", "32-bit"])
def legacy(request):
    explorer = Explorer32(request.param)
    yield explorer
    explorer.guest.close()
    Guest.alive.remove(explorer.guest)


@pytest.mark.parametrize("controls", CONTROLS, ids=str)
def test_pages_of_32_bit_code(legacy, controls):
    if not legacy.wide:
        if controls.nxe:
            pytest.skip("32-bit paging knows no XD")
        bits = [p & ~NX for p in PERMISSIONS]
    else:
        bits = PERMISSIONS
    above = (FULL, FULL)
    tables = [[target | PRESENT | b for b in bits] for target in (TABLE, LEAF)]
    compare(legacy, tables, controls, above)
    compare(legacy, [[HUGE | PRESENT | b for b in bits]], controls, above)
    for absent in range(2):
        values = [list(level) for level in tables]
        values[absent] = [entry & ~PRESENT for entry in values[absent]]
        compare(legacy, values, controls, above)


def test_a_fetch_under_32_bit_paging_is_not_told_apart_by_nxe(legacy):
    """Bit 4 of the error code needs CR4.SMEP, or PAE paging with EFER.NXE (SDM 4.7)."""
    legacy.state = replace(legacy.state, efer=x86.EFER_NXE)
    absent = [[TABLE & ~PRESENT], [LEAF | PRESENT]]
    codes = [code for code, *_ in legacy.run(absent, Controls())]
    assert codes[:6] == [0, 2, 0x10 * legacy.wide, 4, 6, 4 | 0x10 * legacy.wide]
