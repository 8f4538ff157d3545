"""An instruction may lie on two pages, cut behind any of its bytes."""

from dataclasses import replace

import pytest

from tests.isa.guest import PT, Guest, assemble

pytestmark = pytest.mark.engine

BOUNDARY = 0x55000
UNDEFINED, PAGE_FAULT = 6, 14
# One of each kind of opcode whose ModRM byte says which instruction it is, and others.
INSTRUCTIONS = [
    *("bt rdx, 33", "btc rdx, 3", "add rcx, 5", "cmp ecx, 0x12345678", "or byte ptr [rsi], 7"),
    *("shl rdx, 3", "ror edx, 1", "sar rdx, cl", "not rdx", "test edx, 0x1234", "mul rcx"),
    *("inc byte ptr [rsi]", "dec edx", "push qword ptr [rsi]", "mov byte ptr [rsi], 9"),
    *("fld1", "fldcw word ptr [rsi]", "stmxcsr dword ptr [rsi]", "mfence", "sgdt [rsi]"),
    *("cmpxchg8b [rsi]", "psrldq xmm1, 3", "psllq xmm2, 7", "pop qword ptr [rsi + 0x100]"),
    *("mov eax, dword ptr [rsi + rcx * 4 + 0x10]", "movabs rax, 0x1122334455667788"),
    *("shld rdx, rcx, 7", "imul rdx, rcx, 0x1234", "pshufb xmm1, xmm2", "palignr xmm1, xmm2, 3"),
]


DATA = 0x60000
REGISTERS = {"rax": 0x1234567890ABCDEF, "rcx": 3, "rdx": 0xFEDCBA9876543210, "rsi": DATA}
BIT_TEST_OF_NOTHING = b"\x0f\xba\xc2\x07"  # group 8 /0


class Translated(Guest):
    entry = "run_translator"


@pytest.fixture(params=[Guest, Translated])
def guest(request):
    return request.param()


def run_at(guest, place, code):
    """Return what the instruction `code` at `place` has left."""
    guest.write(DATA, (b"\x7f\x03" + bytes(range(2, 256))) * 2)
    guest.state = replace(guest.state, rip=place)
    end = guest.run(code + b"\xf4", **REGISTERS)
    return end.vector, tuple(end.cpu.regs), end.cpu.rip - place, guest.memory.read(DATA, 512)


@pytest.mark.parametrize("source", INSTRUCTIONS)
def test_cut_anywhere(guest, source):
    code = assemble(source)
    whole = run_at(guest, BOUNDARY - 64, code)
    assert whole[0] is None and whole[2] == len(code) + 1
    for first in range(1, len(code) + 1):
        assert run_at(guest, BOUNDARY - first, code)[:3] == whole[:3], f"{first} bytes before"


@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_what_is_no_instruction(guest, first):
    assert run_at(guest, BOUNDARY - first, BIT_TEST_OF_NOTHING)[0] == UNDEFINED


@pytest.mark.parametrize("source", ["bt rdx, 33", "fld1", "mul rcx", "stmxcsr dword ptr [rsi]"])
def test_a_second_page_that_is_absent(guest, source):
    code = assemble(source)
    guest.q(PT + 8 * (BOUNDARY >> 12), 0)
    for first in range(1, len(code)):
        guest.write(BOUNDARY - first, code[:first])
        guest.state = replace(guest.state, rip=BOUNDARY - first)
        end = guest.run(code[:first], **REGISTERS)
        assert end.vector == PAGE_FAULT and end.cpu.cr2 == BOUNDARY


class TestDecodedOnce:
    """The second page is known when the first one's code is translated: a handler runs it."""

    MAIN, HELPER, OTHER = 0x58000, BOUNDARY + 0x800, 0x5A000

    def calls(self, guest, place, code, turns=20, then=""):
        """Call `code` at `place` some times, its second page looked at before; return the end."""
        guest.write(place, code + b"\xc3")
        guest.write(self.HELPER, b"\xc3")
        guest.write(DATA, bytes(range(256)) * 2)
        guest.state = replace(guest.state, rip=self.MAIN)
        return guest.run(
            f"""
            mov r8d, {place}; mov r10d, {self.HELPER}; mov r9d, {turns}
            again: call r10; call r8; dec r9d; jnz again
            {then}
            hlt
            """,
            **REGISTERS,
        )

    @pytest.mark.parametrize(
        "source", [s for s in INSTRUCTIONS if not s.startswith(("push", "pop", "fld1"))]
    )
    def test_cut_anywhere(self, guest, source):
        code = assemble(source)
        whole = self.calls(guest, BOUNDARY - 64, code)
        assert whole.vector is None
        expected = [whole.reg(n) for n in range(8)], guest.memory.read(DATA, 512)
        for first in range(1, len(code)):
            before = guest.vcpu.statistics()["slow"]
            end = self.calls(guest, BOUNDARY - first, code)
            found = [end.reg(n) for n in range(8)], guest.memory.read(DATA, 512)
            assert found == expected, f"{first} bytes before"
            if guest.entry == Translated.entry:
                assert guest.vcpu.statistics()["slow"] - before < 10

    def test_jumps(self, guest):
        """Taken and not, each cut behind every byte."""
        code = assemble("test r9d, 1; jz 1f; add rax, 1; .fill 0x200, 1, 0x90; 1: add rax, 2")
        jump = len(assemble("test r9d, 1"))
        for first in range(1, 6):
            end = self.calls(guest, BOUNDARY - jump - first, code)
            assert end.reg(0) == REGISTERS["rax"] + 20 * 2 + 10

    def test_the_rest_is_written_to(self, guest):
        place = BOUNDARY - 3
        end = self.calls(
            guest, place, assemble("mov eax, 0x11111111"),
            then=f"mov byte ptr [{BOUNDARY + 1}], 0x22; call r8",
        )  # fmt: skip
        assert end.reg(0) == 0x22111111

    def test_another_page_takes_its_place(self, guest):
        guest.write(self.OTHER, b"\x33\x33\xc3")
        end = self.calls(
            guest, BOUNDARY - 3, assemble("mov eax, 0x11111111"),
            then=f"mov dword ptr [{PT + 8 * (BOUNDARY >> 12)}], {self.OTHER | 3};"
            f" invlpg [{BOUNDARY}]; call r8",
        )  # fmt: skip
        assert end.reg(0) == 0x33331111

    def test_the_page_goes(self, guest):
        end = self.calls(
            guest, BOUNDARY - 3, assemble("mov eax, 0x11111111"),
            then=f"mov dword ptr [{PT + 8 * (BOUNDARY >> 12)}], 0; invlpg [{BOUNDARY}]; call r8",
        )  # fmt: skip
        assert (end.vector, end.cpu.cr2, end.saved["rip"]) == (PAGE_FAULT, BOUNDARY, BOUNDARY - 3)
