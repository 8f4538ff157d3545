"""An instruction and the conditional jump behind it, one stencil together, as on the host's CPU."""

import os
import random

import pytest

from tests.oracle.assembler import assemble
from tests.oracle.compare import explain
from tests.oracle.model import ARITH_FLAGS, CODE_BASE, DATA_BASE, FIXED_FLAGS, Case, State

pytestmark = pytest.mark.engine
CONDITIONS = (
    "o",
    "no",
    "b",
    "ae",
    "e",
    "ne",
    "be",
    "a",
    "s",
    "ns",
    "p",
    "np",
    "l",
    "ge",
    "le",
    "g",
)
REGISTERS = {8: ("al", "cl", "r9b"), 16: ("ax", "cx", "r9w"), 32: ("eax", "ecx", "r9d"),
             64: ("rax", "rcx", "r9")}  # fmt: skip
# Of all forms, conditions and tails, how many are tried; `make fuzz` tries them all.
SHARE = 1 if os.environ.get("RINGZERO_FUZZ", "1") != "1" else 0.2
POINTERS = {8: "byte", 16: "word", 32: "dword", 64: "qword"}
# What follows at the jump's target, and where it falls through.
TAILS = {"looked at": "nop", "replaced": "test r11d, r11d", "kept by a fault": "mov rdx, [rsi]",
         "carry kept": "inc edx\ntest r11d, r11d"}  # fmt: skip
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
         (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip


def forms():
    """Yield every instruction whose jump may be one with it."""
    for bits, (first, second, high) in REGISTERS.items():
        for name in ("cmp", "test", "sub", "add", "and", "or"):
            yield f"{name} {first}, {second}"
            yield f"{name} {high}, {second}"
            yield f"{name} {second}, {first}"
            yield f"{name} {second}, 0x7f"
            yield f"{name} {second}, -1"
            yield f"{name} {POINTERS[bits]} ptr [rbx + 8], 0x42"
            yield f"{name} {POINTERS[bits]} ptr [rbx + 8], {first}"
            if name != "test":
                yield f"{name} {first}, {POINTERS[bits]} ptr [rbx + 8]"
        for name in ("inc", "dec"):
            yield f"{name} {first}"
            yield f"{name} {high}"
            yield f"{name} {POINTERS[bits]} ptr [rbx + 8]"
    yield "cmp ah, cl"
    yield "test dh, 3"


def value(rng):
    near = rng.choice(EDGES) + rng.choice((-1, 0, 0, 1))
    return near % (1 << 64) if rng.random() < 0.7 else rng.getrandbits(64)


def case(rng, form, condition, tail):
    """A jump over one instruction, and what follows it on both ways."""
    code = assemble(f"{form}\nj{condition} l\nmov r10d, 7\n{tail}\nint3\nl: {tail}\nint3", 64)
    same = value(rng)
    registers = {"rax": value(rng), "rcx": value(rng), "rdx": value(rng), "r9": value(rng)}
    if rng.random() < 0.3:
        registers |= {"rax": same, "rcx": same, "r9": same}
    registers |= {"rbx": DATA_BASE, "r11": rng.getrandbits(2), "rsi": 0x10}
    flags = FIXED_FLAGS | rng.getrandbits(12) & ARITH_FLAGS
    memory = ((DATA_BASE + 8, value(rng).to_bytes(8, "little")),)
    return Case(code, State.build(registers, CODE_BASE + 0x100, flags), memory, 64)


@pytest.mark.parametrize("tail", TAILS)
def test_instructions_with_their_jumps(native, tail):
    from tests.oracle import soft

    rng = random.Random(tail)
    cases = [
        case(rng, form, condition, TAILS[tail])
        for form in forms()
        for condition in CONDITIONS
        if rng.random() < SHARE
    ]
    expected, found = native.run(cases), soft.translator().run(cases)
    wrong = [
        explain(want, have, which)
        for which, want, have in zip(cases, expected, found, strict=True)
        # AF is undefined after instructions of logic.
        if _plain(want) != _plain(have)
    ]
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n\n".join(wrong[:3])


def _plain(outcome):
    state = outcome.state
    return (state.gpr, state.rip, state.rflags & ~0x10, outcome.vector, outcome.memory)
