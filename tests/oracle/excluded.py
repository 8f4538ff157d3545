"""Where our engine and the host CPU may differ: each case by name, with its reason.

Only what the manual leaves open, or where the manual and the hosts we have
measured say different things. Everything else that differs is a fault.
"""

from __future__ import annotations

from tests.oracle.compare import compare
from tests.oracle.model import AC, GP, PF, XM, Case, Outcome
from tests.oracle.native_runtime import BASE

_REPNE = 0xF2
_MXCSR_OM, _MXCSR_UM = 0x400, 0x800


def exclusion(case: Case, expected: Outcome, got: Outcome) -> str | None:
    """The reason why a difference does not count, or None when it does."""
    name = case.mnemonic
    if name in ("loope", "loopne") and _REPNE in case.code[:-2]:
        # SDM vol. 2A, LOOPcc knows no REP prefixes, and Intel's ignore them; AMD's let the
        # prefix decide which of the two it is.
        return "F2 before LOOPcc: AMD processors take it as part of the opcode"
    if name == "maskmovq" and expected.vector == got.vector == AC:
        # A fault leaves the state before the instruction (SDM vol. 3A, section 6.5).
        return "#AC in MASKMOVQ: AMD processors have changed to MMX state before it"
    if name.startswith("sha") and got.vector == GP and expected.vector != GP:
        return "SHA on memory that is not aligned: #GP by Intel's manual, none on AMD processors"
    if name.startswith("v") and expected.vector == XM and _differ_in_mxcsr(case, expected, got):
        return "PE beside an unmasked overflow or underflow of FMA and of a second lane"
    if got.vector == PF and got.address >> 32 == BASE >> 32:
        return "the address is that of the program that runs cases natively"
    return None


def _differ_in_mxcsr(case: Case, expected: Outcome, got: Outcome) -> bool:
    """Whether MXCSR alone differs, behind an overflow or underflow that is not masked."""
    if not ~case.state.mxcsr & (_MXCSR_UM | _MXCSR_OM):
        return False
    return all(found.startswith("mxcsr") for found in compare(expected, got, case))
