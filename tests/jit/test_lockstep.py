"""The interpreter and the translator give the same, undefined results included."""

import os

import pytest

from ringzero.jit.x86.catalogue import Catalogue
from tests.oracle.cases import Generator, select_forms
from tests.oracle.compare import explain
from tests.oracle.isolate import Isolated
from tests.oracle.model import CODE_BASE, Case
from tests.oracle.programs import load_programs

pytestmark = pytest.mark.engine
SCALE = int(os.environ.get("RINGZERO_FUZZ", "1"))


@pytest.fixture(scope="module")
def engines():
    from tests.oracle import soft

    with (
        Isolated(soft.interpreter, "interpreter") as first,
        Isolated(soft.translator, "translator") as second,
    ):
        yield first, second


def differences(engines, cases):
    """Return what differs; a case has no mnemonic, so that nothing counts as undefined."""
    cases = [Case(c.code, c.state, c.memory, c.mode) for c in cases]
    first, second = (engine.run(cases) for engine in engines)
    return [
        explain(want, have, case)
        for case, want, have in zip(cases, first, second, strict=True)
        if want != have
    ]


def test_programs(engines):
    found = differences(engines, [program.case for program in load_programs()])
    assert not found, "\n\n".join(found)


@pytest.mark.parametrize("mode", [64, 32])
def test_single_random_instructions(engines, mode):
    cases = Generator(mode + 1).cases(select_forms(mode), 2 * SCALE)
    found = differences(engines, cases)
    assert not found, f"{len(found)} of {len(cases)}:\n" + "\n\n".join(found[:5])


# What leaves a straight line of code, or needs a register that those before it have changed.
_NOT_IN_LINES = (
    "j", "call", "ret", "loop", "fxrstor", "frstor", "fldenv", "ldmxcsr", "int", "enter", "leave",
    "popf", "std",
)  # fmt: skip


def loading(state, mode):
    """Code that gives every register its value in `state`."""
    if mode == 32:
        return b"".join(bytes([0xB8 + n]) + state.gpr[n].to_bytes(4, "little") for n in range(8))
    return b"".join(
        bytes([0x48 | n >> 3, 0xB8 + (n & 7)]) + value.to_bytes(8, "little")
        for n, value in enumerate(state.gpr)
    )


@pytest.mark.parametrize("mode", [64, 32])
def test_lines_with_memory_operands(engines, mode):
    """Each instruction with the registers that lead to its operand: stores, then loads of them."""
    forms = [form for form in select_forms(mode) if not form.mnemonic.startswith(_NOT_IN_LINES)]
    generator = Generator(mode + 3)
    cases = []
    for _ in range(600 * SCALE):
        parts = [generator.case(generator.rng.choice(forms)) for _ in range(5)]
        code = b"".join(loading(part.state, mode) + part.code for part in parts)
        memory = tuple(patch for part in parts for patch in part.memory)
        state = parts[0].state
        # What a page crossing leaves to the interpreter is in the other tests.
        cases.append(Case(code, state.replace(rip=CODE_BASE + 0x1000), memory, mode))
    found = differences(engines, cases)
    assert not found, f"{len(found)} of {len(cases)}:\n" + "\n\n".join(found[:5])


@pytest.mark.parametrize("mode", [64, 32])
def test_registers_that_are_spilled(engines, mode):
    """Pairs of registers that share a stencil, their flags wanted and dead."""
    spilled = {key.form.mnemonic for key in Catalogue().keys if key.spilled}
    forms = [f for f in select_forms(mode) if not f.memory and f.mnemonic in spilled]
    generator = Generator(mode + 4)
    cases = []
    for form in forms:
        for n in range(60 * SCALE):
            case = generator.case(form)
            cases.append(Case(case.code + b"\x39\xc0" * (n % 2), case.state, case.memory, mode))
    assert len(cases) > 5000 * SCALE
    found = differences(engines, cases)
    assert not found, f"{len(found)} of {len(cases)}:\n" + "\n\n".join(found[:5])


@pytest.mark.parametrize("mode", [64, 32])
def test_lines_of_random_instructions(engines, mode):
    """Several instructions in one block: flags that one leaves and a later one takes."""
    forms = [
        form
        for form in select_forms(mode)
        if not form.memory and not form.mnemonic.startswith(_NOT_IN_LINES)
    ]
    generator = Generator(mode + 2)
    cases = []
    for _ in range(1500 * SCALE):
        parts = [generator.case(generator.rng.choice(forms)) for _ in range(12)]
        first = parts[0]
        code = b"".join(part.code for part in parts)
        cases.append(Case(code, first.state, first.memory, mode))
    found = differences(engines, cases)
    assert not found, f"{len(found)} of {len(cases)}:\n" + "\n\n".join(found[:5])
