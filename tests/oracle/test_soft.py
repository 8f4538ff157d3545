"""Our own engine's two run loops against the host CPU, on programs and random instructions."""

import os

import pytest

from tests.oracle.compare import compare
from tests.oracle.excluded import exclusion
from tests.oracle.fuzz import run_fuzz
from tests.oracle.isolate import Isolated
from tests.oracle.programs import load_programs

pytestmark = pytest.mark.engine
ENTRIES = ("interpreter", "translator")
SCALE = int(os.environ.get("RINGZERO_FUZZ", "1"))
INSTANCES = 6000 * SCALE


@pytest.fixture(scope="module", params=ENTRIES)
def engine(request):
    from tests.oracle import soft

    with Isolated(getattr(soft, request.param), request.param) as executor:
        yield executor


@pytest.mark.parametrize("mode", [64, 32])
def test_random_instructions(native, engine, mode):
    report = run_fuzz(
        native, engine, instances=INSTANCES, seed=mode, modes=(mode,), exclude=exclusion
    )
    assert not report.mismatches, "\n\n".join(m.explain() for m in report.mismatches[:5])
    assert report.excluded.total() < INSTANCES / 500
    assert report.instances.total() == INSTANCES
    assert report.skipped.total() < INSTANCES / 50


def test_what_is_no_instruction(native, engine):
    report = run_fuzz(native, engine, instances=INSTANCES // 4, seed=3, only="undefined")
    assert not report.mismatches, report.mismatches[0].explain()


def test_programs(native, engine):
    programs = load_programs()
    cases = [program.case for program in programs]
    wrong = {
        program.name: compare(want, have, program.case)
        for program, want, have in zip(programs, native.run(cases), engine.run(cases), strict=True)
        if compare(want, have, program.case)
    }
    assert wrong == {}
