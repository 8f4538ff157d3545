"""The programs end as they say, the same every time."""

import pytest

from tests.oracle.model import AC, BP, DB, DE, GP, MF, PF, UD, XM
from tests.oracle.programs import load_programs

PROGRAMS = {program.name: program for program in load_programs()}
ENDS = {
    "ends_at_page_end": PF,
    "ends_inside_rep": PF,
    "ends_inside_rep_read": PF,
    "ends_with_alignment_check": AC,
    "ends_with_divide_error": DE,
    "ends_with_general_protection": GP,
    "ends_with_misaligned": GP,
    "ends_with_page_fault": PF,
    "ends_with_single_step": DB,
    "ends_with_sse_exception": XM,
    "ends_with_undefined_opcode": UD,
    "ends_with_x87_exception": MF,
    "odd_32": 5,
    "overflow_trap_32": 4,
}


@pytest.fixture(scope="module")
def outcomes(native):
    return dict(
        zip(PROGRAMS, native.run([program.case for program in PROGRAMS.values()]), strict=True)
    )


def test_there_are_many():
    assert len(PROGRAMS) >= 60
    assert all(program.description for program in PROGRAMS.values())


@pytest.mark.parametrize("name", PROGRAMS)
def test_ends_as_it_says(outcomes, name):
    assert outcomes[name].vector == ENDS.get(name, BP)


def test_results_known_from_elsewhere(outcomes):
    """A few programs compute what is in the books."""
    assert outcomes["sieve"].state.gpr[0] == 564  # primes below 4096
    assert outcomes["ackermann"].state.gpr[0] == 15  # A(2, 6)
    assert outcomes["crc32_bitwise"].state.gpr[3] & 0xFF == 1  # both CRCs agree
    first, second = 0, 1
    for _ in range(96):
        first, second = second, first + second
    assert outcomes["fibonacci"].state.gpr[0] == first % 2**64


def test_the_same_twice(native, outcomes):
    again = native.run([program.case for program in PROGRAMS.values()])
    assert again == list(outcomes.values())
