"""Where our engine and the host CPU may differ: each case by name, with its reason.

Only what the manual leaves open, or where the manual and the hosts we have
measured say different things. Everything else that differs is a fault.
"""

from __future__ import annotations

from dataclasses import replace

from tests.oracle.compare import compare
from tests.oracle.model import AC, PF, XM, Case, Outcome
from tests.oracle.native_runtime import BASE

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
    if got.vector == PF and got.address >> 32 == BASE >> 32:
        return "the address is that of the program that runs cases natively"
    raised = expected.state.mxcsr & ~(expected.state.mxcsr >> 7)
    if raised & _OE_UE and got.state.mxcsr & _PE and _only_flags_differ(case, expected, got, _PE):
        # Whether the result was exact besides is not to be had from the host while its own
        # exceptions are masked (isa/x86/mxcsr.py); the handler of #XM sees OE or UE in any case.
        return "SSE: PE is set beside an unmasked OE or UE also where the result was exact"
    if name in ("dpps", "dppd") and _only_flags_differ(case, expected, got, _OE_UE | _PE):
        # SDM vol. 2A, DPPS: each product and each sum is looked at by itself, in an order
        # that it leaves open; we ask the host once for all.
        return "DPPS, DPPD: masked flags of the products beside an unmasked exception of a sum"
    return None


def _only_flags_differ(case: Case, expected: Outcome, got: Outcome, flags: int) -> bool:
    """Whether two #XM differ in some of these MXCSR `flags` and in nothing else."""
    want, have = expected.state.mxcsr, got.state.mxcsr
    if expected.vector != XM or (want ^ have) & ~flags:
        return False
    image = got.state.fxsave
    image = image[:24] + want.to_bytes(4, "little") + image[28:]
    same = replace(got, state=got.state.replace(fxsave=image))
    return not compare(expected, same, case)
