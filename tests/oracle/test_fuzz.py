"""The driver finds, shrinks and prints a planted fault."""

import pytest

from ringzero.host.processor import host_features
from tests.oracle.compare import compare
from tests.oracle.extensions import comparable_forms, extension_forms
from tests.oracle.fuzz import EXTENSIONS, as_test, case_batches, main, run_fuzz, shrink
from tests.oracle.model import Case, Outcome, State, fx_image


class Liar:
    """The host, but ADD clears CF and PXOR leaves XMM0 alone."""

    name = "liar"

    def __init__(self, native):
        self.native = native

    def run(self, cases):
        return [self.twist(c, o) for c, o in zip(cases, self.native.run(cases), strict=True)]

    def twist(self, case, outcome):
        state = outcome.state
        if case.mnemonic == "add":
            state = state.replace(rflags=state.rflags & ~1)
        if case.mnemonic == "movaps" and outcome.memory:
            return Outcome(state, outcome.vector, outcome.error_code, outcome.address, ())
        return Outcome(state, outcome.vector, outcome.error_code, outcome.address, outcome.memory)


def test_the_host_agrees_with_itself(native):
    report = run_fuzz(native, native, instances=3000, seed=9)
    assert report.wrong.total() == 0
    assert report.instances.total() == 3000
    assert "3000 instances" in report.table()


@pytest.mark.parametrize(("mnemonic", "what"), [("add", "rflags: CF"), ("movaps", "memory at")])
def test_a_planted_fault_is_found_and_shrunk(native, mnemonic, what):
    liar = Liar(native)
    report = run_fuzz(native, liar, instances=600, seed=1, only=f"sub,{mnemonic}")
    assert set(report.wrong) == {mnemonic}
    small = shrink(report.mismatches[0], native, liar)
    assert what in small.explain()
    zeros = [value for value in small.case.state.gpr if value == 0]
    assert len(zeros) >= 12


def test_the_pasted_reproducer_is_the_case(native):
    liar = Liar(native)
    report = run_fuzz(native, liar, instances=300, seed=2, only="add")
    mismatch = report.mismatches[0]
    scope = {"Case": Case, "State": State, "fx_image": fx_image, "compare": compare}
    exec("from __future__ import annotations\n" + as_test(mismatch), scope)
    (test,) = [value for name, value in scope.items() if name.startswith("test_")]
    with pytest.raises(AssertionError):
        test(native, liar)
    test(native, native)


def test_the_same_seed_gives_the_same_cases():
    first, again, other = (next(case_batches(seed, "imul,pshufb")) for seed in (4, 4, 5))
    assert first == again != other


@pytest.mark.skipif(not comparable_forms(host_features()), reason="the host has no extensions")
def test_all_that_is_beyond_the_base_has_a_name(native):
    first, again = (next(case_batches(4, EXTENSIONS)) for _ in range(2))
    assert first == again
    assert {case.mnemonic for case in first} <= {f.mnemonic for f in extension_forms()}
    assert run_fuzz(native, native, instances=500, seed=4, only=EXTENSIONS).wrong.total() == 0


def test_command_line(capsys):
    assert main(["--engine", "native", "--instances", "300", "--only", "inc", "--in-process"]) == 0
    assert "300 instances of 1 mnemonics" in capsys.readouterr().out


def test_a_host_without_extensions_says_so(monkeypatch, capsys):
    monkeypatch.setattr("tests.oracle.fuzz.host_features", frozenset)
    assert main(["--engine", "extended-translator", "--only", EXTENSIONS]) == 0
    assert "no extension" in capsys.readouterr().out
