"""Where our engine and the host CPU may differ: each case by name, with its reason.

Only what the manual leaves open, or where the manual and the hosts we have
measured say different things. Everything else that differs is a fault.
"""

from __future__ import annotations

from tests.oracle.compare import compare
from tests.oracle.model import AC, GP, PF, XM, Case, Outcome
from tests.oracle.native_runtime import BASE

_REPNE = 0xF2
_MASKED_MOVES = ("vmaskmovps", "vmaskmovpd", "vpmaskmovd", "vpmaskmovq")
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
    differing = compare(expected, got, case) if name.startswith("v") else []
    if name in _MASKED_MOVES and expected.vector == PF and _all_are_of("memory", differing):
        # Seen of an element of 8 bytes, of which AMD's wrote the first seven.
        return "what a masked store wrote before the fault of a later element"
    unmasked = ~case.state.mxcsr & (_MXCSR_UM | _MXCSR_OM)
    if expected.vector == XM and unmasked and _all_are_of("mxcsr", differing):
        return "PE beside an unmasked overflow or underflow of FMA and of a second lane"
    if got.vector == PF and got.address >> 32 == BASE >> 32:
        return "the address is that of the program that runs cases natively"
    return None


def _all_are_of(what: str, differing: list[str]) -> bool:
    """Whether there are differences, and all of one kind."""
    return bool(differing) and all(found.startswith(what) for found in differing)
