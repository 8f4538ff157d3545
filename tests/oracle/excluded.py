"""Where our engine and the host CPU may differ: each case by name, with its reason.

Only what the manual leaves open, or where the manual and the hosts we have
measured say different things. Everything else that differs is a fault.
"""

from __future__ import annotations

from dataclasses import replace

from tests.oracle.compare import compare
from tests.oracle.model import AC, XM, Case, Outcome

_REPNE = 0xF2
_OE_UE, _PE = 0x18, 0x20
"""MXCSR: overflow and underflow, precision; the masks lie 7 bits higher."""


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
    if _only_precision_differs(case, expected, got):
        # Whether the result was exact besides is not to be had from the host while its own
        # exceptions are masked (isa/x86/mxcsr.py); the handler of #XM sees OE or UE in any case.
        return "SSE: PE is set beside an unmasked OE or UE also where the result was exact"
    return None


def _only_precision_differs(case: Case, expected: Outcome, got: Outcome) -> bool:
    """Whether #XM for an unmasked overflow or underflow differs in MXCSR.PE and in nothing else."""
    want, have = expected.state.mxcsr, got.state.mxcsr
    unmasked = want & ~(want >> 7) & _OE_UE
    if expected.vector != XM or not unmasked or have != want | _PE:
        return False
    image = got.state.fxsave
    image = image[:24] + want.to_bytes(4, "little") + image[28:]
    same = replace(got, state=got.state.replace(fxsave=image))
    return not compare(expected, same, case)
