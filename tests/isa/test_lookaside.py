"""The ways of soft TLB and jump cache: what shares an entry, and what forgets any way."""

from dataclasses import replace

import pytest

from ringzero.isa.caches import JUMP_ENTRIES, JUMP_WAYS, TLB_ENTRIES, jump_index
from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86.cpu import LOCAL_PAGES, SPACES
from tests.isa.guest import CODE, KERNEL_STACK, PD, PDPT, PML4, PT, Guest, assemble

pytestmark = pytest.mark.engine

TABLE, PAGES, TURNS = 0x5000, 0x50000, 1000
# Addresses whose translations share an entry, and those whose code does: so far apart.
NEAR, FAR = TLB_ENTRIES << 12, JUMP_ENTRIES << 12
LARGE, HUGE = 0xA00000, 1 << 30
PRESENT, WRITABLE, USER, PS, GLOBAL, NEVER_RUN = 1, 2, 4, 128, 256, 1 << 63


class Translated(Guest):
    entry = "run_translator"


@pytest.fixture(params=[Guest, Translated])
def guest(request):
    return request.param()


def alias(guest, number, physical, step=NEAR, rights=PRESENT | WRITABLE | USER):
    """Map a page at an address that shares its entry with those of other numbers; return it."""
    address = number * step + PAGES
    table = TABLE + number * 0x1000 if number else PT
    if number:
        guest.q(PD + 8 * (address >> 21), table | 7)
    guest.q(table + 8 * (address >> 12 & 0x1FF), physical | rights)
    return address


def entry_of(number, address):
    return (TABLE + number * 0x1000 if number else PT) + 8 * (address >> 12 & 0x1FF)


def statistic(guest, name):
    return guest.vcpu.statistics()[name]


def loads(turns, *registers):
    body = "; ".join(f"add rax, [{register}]" for register in registers)
    return f"xor eax, eax; mov ecx, {turns}; again: {body}; dec ecx; jnz again; hlt"


@pytest.mark.parametrize("write", [False, True])
def test_two_pages_in_turn_are_walked_for_once(guest, write):
    first, second = alias(guest, 0, 0x60000), alias(guest, 1, 0x61000)
    body = "add [rsi], rcx; add [rdi], rcx" if write else "add rax, [rsi]; add rax, [rdi]"
    guest.q(0x60000, 3)
    guest.q(0x61000, 4)
    end = guest.run(
        f"xor eax, eax; mov ecx, {TURNS}; again: {body}; dec ecx; jnz again; hlt",
        rsi=first, rdi=second,
    )  # fmt: skip
    assert end.vector is None
    total = TURNS * (TURNS + 1) // 2
    if write:
        assert (guest.read_q(0x60000), guest.read_q(0x61000)) == (3 + total, 4 + total)
    else:
        assert end.reg(x86.RAX) == 7 * TURNS
    assert statistic(guest, "walks") < 20


def test_three_pages_in_turn_are_right(guest):
    where = [alias(guest, n, 0x60000 + n * 0x1000) for n in range(3)]
    for n in range(3):
        guest.q(0x60000 + n * 0x1000, 10**n)
    end = guest.run(loads(TURNS, "rsi", "rdi", "rbx"), rsi=where[0], rdi=where[1], rbx=where[2])
    assert end.reg(x86.RAX) == 111 * TURNS


@pytest.mark.parametrize("other_last", [False, True])
def test_invlpg_forgets_a_page_in_either_way(guest, other_last):
    first, second = alias(guest, 0, 0x60000), alias(guest, 1, 0x61000)
    for n in range(3):
        guest.q(0x60000 + n * 0x1000, n + 1)
    end = guest.run(
        f"""
        mov rax, [rsi]; mov rax, [rdi]
        {"mov rax, [rsi]" if other_last else ""}
        mov qword ptr [{entry_of(1, second)}], {0x62000 | 7}
        invlpg [rdi]
        mov rax, [rsi]; mov rdx, [rdi]; hlt
        """,
        rsi=first, rdi=second,
    )  # fmt: skip
    assert (end.reg(x86.RAX), end.reg(x86.RDX)) == (1, 3)


@pytest.mark.parametrize("size", [LARGE, HUGE])
def test_invlpg_forgets_all_of_a_large_page_and_nothing_else(guest, size):
    """Whichever of its addresses is named; a small page keeps its translation."""
    table, slot = (PD, LARGE >> 21) if size == LARGE else (PDPT, 1)
    base = LARGE if size == LARGE else HUGE
    small = alias(guest, 1, 0x61000)
    guest.q(table + 8 * slot, PRESENT | WRITABLE | PS)
    # Where it leads to afterwards: a table that maps all to one page.
    directory, other = 0x52000, 0x53000
    guest.q(directory, other | 7)
    for n in range(512):
        guest.q(other + 8 * n, 0x62000 | 7)
    target = other if size == LARGE else directory
    guest.q(0x60000, 1)
    guest.q(0x63000, 2)
    guest.q(0x61000, 3)
    guest.q(0x62000, 4)
    guest.run(
        f"""
        mov rax, [rsi + 0x60000]; mov rax, [rsi + 0x63000]; mov rax, [rdi]
        mov qword ptr [{table + 8 * slot}], {target | 7}
        invlpg [rsi + 0x55000]
        hlt
        """,
        rsi=base, rdi=small,
    )  # fmt: skip
    before = statistic(guest, "walks")
    cpu = guest.cpu
    space = cpu.spaces[cpu.space]
    assert space.cr3 == cpu.cr3, "set_state would forget everything"
    guest.write(cpu.rip, assemble("mov rax, [rdi]; hlt"))
    assert guest.go([]).reg(x86.RAX) == 3
    assert statistic(guest, "walks") - before <= 1, "at most that for the code"
    guest.write(cpu.rip, assemble("mov rax, [rsi + 0x60000]; mov rdx, [rsi + 0x63000]; hlt"))
    end = guest.go([])
    assert (end.reg(x86.RAX), end.reg(x86.RDX)) == (4, 4)


def test_a_page_in_the_second_way_is_protected_when_it_gets_code(guest):
    """Else a write would go by, and the old code run."""
    body, other = alias(guest, 0, 0x60000), alias(guest, 1, 0x61000)
    guest.write(0x60000, assemble("mov eax, 1; ret"))
    end = guest.run(
        f"""
        mov r8d, {0x60000}
        mov byte ptr [rsi + 0x800], 0; mov rdx, [rdi]
        mov ecx, 20; again: call r8; dec ecx; jnz again
        mov ebx, eax
        mov rdx, [rdi]; mov byte ptr [rsi + 1], 2
        call r8
        hlt
        """,
        rsi=body, rdi=other,
    )  # fmt: skip
    assert (end.reg(x86.RBX), end.reg(x86.RAX)) == (1, 2)


def test_a_page_open_under_ac_is_closed_in_the_second_way(guest):
    """SMAP: what STAC let the kernel reach it reaches no more after CLAC."""
    guest.state = replace(guest.state, cr4=guest.state.cr4 | x86.CR4_SMAP)
    user = alias(guest, 0, 0x60000)
    kernel = alias(guest, 1, 0x61000, rights=PRESENT | WRITABLE)
    end = guest.run("stac; mov rax, [rsi]; mov rax, [rdi]; clac; mov rax, [rsi]; hlt",
                    rsi=user, rdi=kernel)  # fmt: skip
    assert end.vector == x86.PF_FAULT


@pytest.mark.parametrize("entry_is_global", [True, False])
@pytest.mark.parametrize("paging", [True, False], ids=["CR4.PGE", "no CR4.PGE"])
def test_global_pages_outlast_a_change_of_cr3(guest, entry_is_global, paging):
    """Only those, and only of what the SDM lets outlast it: 4.10.2.4 and 4.10.4.1."""
    if paging:
        guest.state = replace(guest.state, cr4=guest.state.cr4 | x86.CR4_PGE)
    upper = (1 << 64) - (1 << 39)
    guest.q(PML4 + 511 * 8, PDPT | 7)
    rights = 3 | NEVER_RUN | (GLOBAL if entry_is_global else 0)
    guest.q(PT + (0x60000 >> 12) * 8, 0x60000 | rights)
    for page in (CODE, PT):
        guest.q(PT + (page >> 12) * 8, page | 3 | GLOBAL)
    guest.q(0x60000, 1)
    guest.q(0x61000, 2)
    end = guest.run(
        f"""
        lea rax, [rip + above]; add rax, r8; jmp rax
        above: mov rdx, cr3; mov cr3, rdx  # what the lower half was run for goes
        mov rax, [rsi]; mov rbx, [rdi]
        mov qword ptr [r9], {0x61000 | 3}
        mov rdx, cr3; mov cr3, rdx
        mov rax, [rsi]; mov rbx, [rdi]
        hlt
        """,
        rsi=upper + 0x60000, rdi=0x60000, r8=upper, r9=upper + PT + (0x60000 >> 12) * 8,
    )  # fmt: skip
    # Ours keeps global pages of the upper half alone; a processor may keep any global one.
    assert end.reg(x86.RAX) == (1 if entry_is_global and paging else 2)
    assert end.reg(x86.RBX) == 2


@pytest.mark.parametrize("rights", [NEVER_RUN, 0], ids=["data", "code"])
@pytest.mark.parametrize("count", [1, LOCAL_PAGES, LOCAL_PAGES + 1, 40])
def test_pages_that_are_not_global_go_with_a_change_of_cr3(guest, count, rights):
    """A few of them alone, and what is global stays; of many, or of code, all goes."""
    guest.state = replace(guest.state, cr4=guest.state.cr4 | x86.CR4_PGE)
    upper = (1 << 64) - (1 << 39)
    guest.q(PML4 + 511 * 8, PDPT | 7)
    for page in range(0x100):
        guest.q(PT + page * 8, guest.read_q(PT + page * 8) | GLOBAL)
    first = PT + 0x100 * 8
    for number in range(count):
        guest.q(first + number * 8, 0x60000 | 3 | rights)
    guest.q(0x60000, 1)
    guest.q(0x61000, 2)
    add = f"mov rdi, rsi; mov ecx, {count}; {{0}}: add rax, [rdi]; add rdi, 0x1000; loop {{0}}"
    end = guest.run(
        f"""
        lea rax, [rip + above]; add rax, r8; jmp rax
        above: mov rdx, cr3; mov cr3, rdx  # what the lower half was run for goes
        xor eax, eax; {add.format("one")}; mov rbx, rax
        mov rdi, {upper + first}; mov ecx, {count}
        change: add qword ptr [rdi], 0x1000; add rdi, 8; loop change
        mov rdx, cr3; mov cr3, rdx
        xor eax, eax; {add.format("two")}; hlt
        """,
        rsi=upper + 0x100000, r8=upper,
    )  # fmt: skip
    assert (end.reg(x86.RBX), end.reg(x86.RAX)) == (count, 2 * count)
    if guest.entry == "run_translator":
        space = guest.cpu.spaces[guest.cpu.space]
        assert space.own == int(not rights or count > LOCAL_PAGES)


class TestCommon:
    """What kernels of two address spaces, PCIDs 0 and 1, reach in the upper half."""

    UPPER = (1 << 64) - (1 << 39)
    # The second space's tables: four pages, and what it maps elsewhere.
    OTHER = 0x54000
    # Begins anew in the upper half, where nothing of the lower one was run; RBX and RDX are 0.
    BEGIN = """
        lea rax, [rip + above]; add rax, r8; jmp rax
        above: mov rax, cr4; xor rax, 0x80; mov cr4, rax; xor rax, 0x80; mov cr4, rax
        xor ebx, ebx; xor edx, edx
    """

    @pytest.fixture
    def spaces(self, guest):
        """A guest whose two spaces map all alike, and global in the upper half."""
        cr4 = guest.state.cr4 | x86.CR4_PGE | x86.CR4_PCIDE
        guest.state = replace(guest.state, cr4=cr4)
        guest.q(PML4 + 511 * 8, PDPT | 7)
        for page in range(0x100):
            guest.q(PT + page * 8, guest.read_q(PT + page * 8) | GLOBAL)
        for level, table in enumerate((PML4, PDPT, PD, PT)):
            guest.write(self.OTHER + level * 0x1000, guest.memory.read(table, 0x1000))
        below = self.OTHER
        for slots in ((0, 511), (0,), (0,)):
            for slot in slots:
                guest.q(below + slot * 8, below + 0x1000 | 7)
            below += 0x1000
        guest.q(0x60000, 1)
        guest.q(0x61000, 2)
        return guest

    def map(self, guest, address, first, second):
        """Map a page of each half, by two entries of the spaces' tables."""
        guest.q(PT + (address >> 12) * 8, first)
        guest.q(self.OTHER + 0x3000 + (address >> 12) * 8, second)

    def run(self, guest, body, where, turns=50):
        """Run `body` in both spaces in turn; `where` is its RSI, # makes labels differ."""
        keep = 1 << 63
        program = f"""
            {self.BEGIN} mov edi, {turns}
            again: mov cr3, r9; {body.replace("#", "1")}
            mov cr3, r10; {body.replace("#", "2")}
            dec edi; jnz again; hlt
        """
        end = guest.run(program, rsi=where, r8=self.UPPER,
                        r9=self.OTHER | 1 | keep, r10=PML4 | keep)  # fmt: skip
        assert end.vector is None
        return end

    def own(self, guest):
        return [guest.cpu.spaces[number].own for number in range(SPACES)]

    def test_a_global_page_is_found_once_for_all(self, spaces):
        end = self.run(spaces, "add rbx, [rsi]", self.UPPER + 0x60000)
        assert end.reg(x86.RBX) == 100
        assert not any(self.own(spaces))
        assert statistic(spaces, "walks") < 20

    @pytest.mark.parametrize("count", [1, LOCAL_PAGES, LOCAL_PAGES + 1, 40])
    def test_data_that_each_has_for_itself(self, spaces, count):
        for number in range(count):
            page = 0xA0000 + number * 0x1000
            self.map(spaces, page, 0x60000 | 3 | NEVER_RUN, 0x61000 | 3 | NEVER_RUN)
        body = f"mov rbp, rsi; mov ecx, {count}; each#: add rbx, [rbp]; add rbp, 0x1000; loop each#"
        end = self.run(spaces, body, self.UPPER + 0xA0000)
        assert end.reg(x86.RBX) == 50 * count * 3
        assert any(self.own(spaces)) == (count > LOCAL_PAGES)

    @pytest.mark.parametrize("rights", [0, NEVER_RUN])
    def test_the_lower_half_is_each_ones_own(self, spaces, rights):
        self.map(spaces, 0x62000, 0x60000 | 3 | rights, 0x61000 | 3 | rights)
        end = self.run(spaces, "add rbx, [rsi]", 0x62000)
        assert end.reg(x86.RBX) == 50 * 3
        assert any(self.own(spaces)) == (not rights)

    def test_code_that_each_has_for_itself(self, spaces):
        for number, page in enumerate((0x63000, 0x64000)):
            spaces.write(page, assemble(f"add ebx, {number + 1}; ret"))
        self.map(spaces, 0x62000, 0x63000 | 3, 0x64000 | 3)
        end = self.run(spaces, f"mov rsp, {self.UPPER + KERNEL_STACK}; call rsi",
                       self.UPPER + 0x62000)  # fmt: skip
        assert end.reg(x86.RBX) == 50 * 3

    def test_code_of_the_lower_half_that_each_has_for_itself(self, spaces):
        for number, page in enumerate((0x63000, 0x64000)):
            spaces.write(page, assemble(f"add ebx, {number + 1}; ret"))
        self.map(spaces, 0x62000, 0x63000 | 3, 0x64000 | 3)
        end = self.run(spaces, f"mov rsp, {self.UPPER + KERNEL_STACK}; call rsi", 0x62000)
        assert end.reg(x86.RBX) == 50 * 3

    def test_code_in_common_is_found_once(self, spaces):
        spaces.write(0x63000, assemble("add ebx, 1; ret"))
        stack = f"mov rsp, {self.UPPER + KERNEL_STACK}"
        end = self.run(spaces, f"{stack}; call rsi", self.UPPER + 0x63000, turns=500)
        assert end.reg(x86.RBX) == 1000
        assert statistic(spaces, "translator_lookups") < 60

    def test_invlpg_forgets_a_global_page_in_all(self, spaces):
        entry = self.UPPER + PT + (0x60000 >> 12) * 8
        end = spaces.run(
            f"""
            {self.BEGIN} mov rdi, {entry}
            mov rcx, [rsi]; mov cr3, r9; mov rcx, [rsi]
            mov qword ptr [rdi], {0x61000 | 3 | GLOBAL}; invlpg [rsi]
            mov cr3, r10; mov rbx, [rsi]; hlt
            """,
            rsi=self.UPPER + 0x60000, r8=self.UPPER,
            r9=self.OTHER | 1 | 1 << 63, r10=PML4 | 1 << 63,
        )  # fmt: skip
        assert end.reg(x86.RBX) == 2

    def test_a_page_that_gets_code_in_one_is_protected_in_the_other(self, spaces):
        spaces.write(0x63000, assemble("mov eax, 1; ret"))
        end = spaces.run(
            f"""
            {self.BEGIN} mov rsp, {self.UPPER + KERNEL_STACK}
            mov byte ptr [rsi + 0x800], 0
            mov cr3, r9
            mov ecx, 20; again: call rsi; dec ecx; jnz again
            mov ebx, eax
            mov cr3, r10; mov byte ptr [rsi + 1], 2; mov cr3, r9
            call rsi
            hlt
            """,
            rsi=self.UPPER + 0x63000, r8=self.UPPER,
            r9=self.OTHER | 1 | 1 << 63, r10=PML4 | 1 << 63,
        )  # fmt: skip
        assert (end.reg(x86.RBX), end.reg(x86.RAX)) == (1, 2)


class TestJumps:
    """Functions whose addresses share an entry of the jump cache."""

    @pytest.fixture
    def functions(self, guest):
        """Map `mov eax, N; ret` for N from 1 to 4; return the guest, and where."""
        where = [alias(guest, n, 0x60000 + n * 0x1000, FAR) for n in range(4)]
        assert len({jump_index.function(address) for address in where}) == 1
        for n in range(5):
            guest.write(0x60000 + n * 0x1000, assemble(f"mov eax, {n + 1}; ret"))
        return guest, where

    @staticmethod
    def calls(turns, count):
        body = "".join(f"call {r}; add rdx, rax; " for r in ("rsi", "rdi", "rbx", "r8")[:count])
        return f"xor edx, edx; mov ecx, {turns}; again: {body} dec ecx; jnz again"

    @pytest.mark.parametrize("count", [2, 3, 4])
    def test_calls_in_turn(self, functions, count):
        guest, where = functions
        end = guest.run(self.calls(TURNS, count) + "; hlt",
                        rsi=where[0], rdi=where[1], rbx=where[2], r8=where[3])  # fmt: skip
        assert end.reg(x86.RDX) == TURNS * (3, 6, 10)[count - 2]
        if count <= JUMP_WAYS:
            assert statistic(guest, "translator_lookups") < 50

    @pytest.mark.parametrize("last", [0, 1, 2])
    def test_invlpg_forgets_code_in_any_way(self, functions, last):
        guest, where = functions
        end = guest.run(
            f"""
            {self.calls(10, 3)}
            call rdi; call {("rsi", "rdi", "rbx")[last]}; {"call rsi" if last == 2 else ""}
            mov qword ptr [{entry_of(1, where[1])}], {0x64000 | 7}
            invlpg [rdi]
            call rdi
            mov edx, eax
            call rsi
            hlt
            """,
            rsi=where[0], rdi=where[1], rbx=where[2],
        )  # fmt: skip
        assert (end.reg(x86.RDX), end.reg(x86.RAX)) == (5, 1)

    def test_code_that_is_written_to(self, functions):
        guest, where = functions
        end = guest.run(
            f"{self.calls(10, 2)}; mov byte ptr [{0x61001}], 9; call rdi; hlt",
            rsi=where[0], rdi=where[1], rbx=where[2],
        )  # fmt: skip
        assert end.reg(x86.RAX) == 9


def test_a_jump_to_the_first_byte_of_all(guest):
    """Its address is that of an empty entry: nothing is found there, and #PF is raised."""
    end = guest.run(f"mov qword ptr [{PT}], 0; invlpg [0]; xor eax, eax; jmp rax")
    assert end.vector == x86.PF_FAULT
    assert guest.cpu.cr2 == 0


def test_code_at_the_first_byte_of_all(guest):
    guest.write(0, assemble("inc edx; ret"))
    end = guest.run("xor edx, edx; xor eax, eax; mov ecx, 9; again: call rax; loop again; hlt")
    assert end.reg(x86.RDX) == 9


def test_a_jump_to_the_last_byte_of_all(guest):
    """It is nobody's, however the caches say that they are empty: #PF is raised."""
    end = guest.run(f"mov rax, -1; mov ecx, {CODE}; jmp rax")
    assert end.vector == x86.PF_FAULT
    assert guest.cpu.cr2 == (1 << 64) - 1
