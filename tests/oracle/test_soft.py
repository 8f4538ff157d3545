"""Our own engine's two run loops against the host CPU, on programs and random instructions."""

import os

import pytest

from tests.oracle.compare import compare
from tests.oracle.fuzz import run_fuzz
from tests.oracle.isolate import Isolated
from tests.oracle.model import AC, FLAG_BITS, GP, PF, SS
from tests.oracle.programs import load_programs

pytestmark = pytest.mark.engine
ENTRIES = ("interpreter", "translator")
SCALE = int(os.environ.get("RINGZERO_FUZZ", "1"))
INSTANCES = 6000 * SCALE
_REPNE = 0xF2
TOP_PAGE = 0xFFFF_F000


def known_deviation(case, expected, got):
    """What is known and meant about a difference, or None if it is news."""
    if case.state.rflags & FLAG_BITS["AC"] or expected.vector == AC:
        return "alignment is not checked: no system uses it"
    if case.mnemonic.startswith("loop") and _REPNE in case.code[:-2]:
        return "processors take F2 before LOOPcc as they like"
    if case.mnemonic == "int1":
        return "a host that is a guest itself does not step over INT1"
    if (expected.vector, got.vector) == (SS, GP) and case.mode == 64:
        return "a non-canonical address on the stack gives #GP: systems treat both alike"
    at_the_end = got.vector == PF and got.address >= TOP_PAGE
    if expected.vector in {GP, SS} and case.mode == 32 and at_the_end:
        return "the limit of a flat segment: an access that wraps round 4 GiB is none"
    return None


@pytest.fixture(scope="module", params=ENTRIES)
def engine(request):
    from tests.oracle import soft

    with Isolated(getattr(soft, request.param), request.param) as executor:
        yield executor


@pytest.mark.parametrize("mode", [64, 32])
def test_random_instructions(native, engine, mode):
    report = run_fuzz(native, engine, instances=INSTANCES, seed=mode, modes=(mode,), keep=10**6)
    news = [m for m in report.mismatches if known_deviation(m.case, m.expected, m.got) is None]
    assert not news, "\n\n".join(mismatch.explain() for mismatch in news[:5])
    assert report.instances.total() == INSTANCES
    assert report.skipped.total() < INSTANCES / 50


def test_what_is_no_instruction(native, engine):
    report = run_fuzz(native, engine, instances=INSTANCES // 4, seed=3, only="undefined")
    assert not report.mismatches, report.mismatches[0].explain()


def test_programs(native, engine):
    programs = [p for p in load_programs() if p.name != "ends_with_alignment_check"]
    cases = [program.case for program in programs]
    wrong = {
        program.name: compare(want, have, program.case)
        for program, want, have in zip(programs, native.run(cases), engine.run(cases), strict=True)
        if compare(want, have, program.case)
    }
    assert wrong == {}
