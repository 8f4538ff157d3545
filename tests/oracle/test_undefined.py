"""What comparisons leave out, against the sentences of the Intel SDM vol. 2."""

import pytest

from tests.oracle.assembler import assemble
from tests.oracle.compare import compare, explain
from tests.oracle.model import BP, CODE_MIDDLE, DATA_BASE, Case, Outcome, State, fx_image
from tests.oracle.undefined import AF, CF, OF, PF, SF, ZF, undefined, undefined_flags

ALL = CF | PF | AF | ZF | SF | OF


@pytest.mark.parametrize(
    ("mnemonic", "size", "count", "mask"),
    [
        ("and", 0, None, AF),
        ("add", 0, None, 0),
        ("mul", 0, None, SF | ZF | AF | PF),
        ("div", 0, None, ALL),
        ("shl", 32, 0, 0),
        ("shl", 32, 32, 0),
        ("shl", 32, 1, AF),
        ("shl", 32, 5, AF | OF),
        ("shl", 8, 8, AF | OF | CF),
        ("sar", 8, 8, AF | OF),
        ("rol", 16, 1, 0),
        ("rcr", 16, 3, OF),
        ("shld", 16, 16, AF | OF),
        ("shld", 16, 17, ALL),
        ("shrd", 64, 1, AF),
        ("bt", 0, None, OF | SF | AF | PF),
    ],
)
def test_flags(mnemonic, size, count, mask):
    assert undefined_flags(mnemonic, size, count) == mask


@pytest.mark.parametrize(
    ("source", "mnemonic", "rcx", "mask"),
    [
        ("shl eax, cl", "shl", 33, AF),
        ("shl rax, cl", "shl", 33, AF | OF),
        ("shr byte ptr [rbx], 9", "shr", 0, AF | OF | CF),
        ("rol ax, 1", "rol", 0, 0),
        ("shld ax, dx, 20", "shld", 0, ALL),
    ],
)
def test_flags_of_whole_instructions(source, mnemonic, rcx, mask):
    case = Case(assemble(source), State.build({"rcx": rcx}), mnemonic=mnemonic)
    assert undefined(case).flags == mask


def outcome(gpr, **image):
    return Outcome(State.build(gpr, rip=CODE_MIDDLE + 3, fxsave=fx_image(**image)), BP)


def test_bsf_of_zero_leaves_the_destination_open():
    case = Case(assemble("bsf rdx, rbx"), State.build(), mnemonic="bsf")
    assert compare(outcome({"rdx": 1}), outcome({"rdx": 2}), case) == []
    assert compare(outcome({"rax": 1}), outcome({"rax": 2}), case) == ["rax: expected 0x1, got 0x2"]


def test_double_shift_beyond_the_size_leaves_its_memory_operand_open():
    case = Case(assemble("shld [rbx], dx, 20"), State.build({"rbx": DATA_BASE}), mnemonic="shld")
    assert undefined(case).memory == [(DATA_BASE, 2)]


def test_reciprocals_are_compared_with_the_manuals_tolerance():
    case = Case(assemble("rcpss xmm0, xmm1"), State.build(), mnemonic="rcpss")
    exact, close, far = (bytes.fromhex(v) for v in ("0000003f", "0010003f", "0020003f"))
    assert compare(outcome({}, xmm=[exact]), outcome({}, xmm=[close]), case) == []
    assert compare(outcome({}, xmm=[exact]), outcome({}, xmm=[far]), case) != []


def test_transcendentals_may_be_a_little_off():
    case = Case(assemble("fsin"), State.build(), mnemonic="fsin")
    near = [(0xC000000000000000 + d).to_bytes(8, "little") + b"\xff\x3f" for d in (0, 9, 1 << 20)]
    assert compare(outcome({}, st=[near[0]]), outcome({}, st=[near[1]]), case) == []
    assert compare(outcome({}, st=[near[0]]), outcome({}, st=[near[2]]), case) != []


def test_differences_are_told_in_words():
    case = Case(assemble("add rax, rbx"), State.build(), mnemonic="add")
    want = Outcome(State.build({"rax": 5}, rflags=0x203), BP, memory=())
    got = Outcome(State.build({"rax": 6}), BP, memory=((DATA_BASE, b"\x5a" * 64),))
    text = explain(want, got, case)
    assert "add rax, rbx" in text
    assert "rax: expected 0x5, got 0x6" in text
    assert "rflags: CF should be 1" in text
    assert f"memory at {DATA_BASE:#x}" in text


def test_a_large_operand_may_fault_at_any_of_its_bytes():
    case = Case(assemble("fxsave [rbx]"), State.build(), mnemonic="fxsave")
    want, same, far = (Outcome(State.build(), 14, 6, a) for a in (0x5000, 0x51FF, 0x5200))
    assert compare(want, same, case) == []
    assert compare(want, far, case) == ["CR2: expected 0x5000, got 0x5200"]
