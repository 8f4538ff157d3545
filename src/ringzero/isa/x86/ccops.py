"""What `cc_op` may be: the kinds and widths of operations that leave lazy flags behind.

What each keeps is said in `flags`.
"""

from __future__ import annotations

STATUS, ADD, ADC, SUB, SBB, LOGIC, INC, DEC, SHL, SAR, MUL = range(11)
KINDS = (ADD, ADC, SUB, SBB, LOGIC, INC, DEC, SHL, SAR, MUL)
LOG2 = {8: 0, 16: 1, 32: 2, 64: 3}
# What `cc_op` is below, for arrays by it; STATUS has only the first of its four.
CC_OPS = (len(KINDS) + 1) * len(LOG2)
# Condition codes: the low four bits of the opcodes of Jcc, SETcc, CMOVcc (SDM vol. 1, app. B).
CONDITIONS = 16


def cc_op(kind: int, bits: int) -> int:
    """Return the `cc_op` of an operation kind at a width."""
    return kind * len(LOG2) + LOG2[bits]


def cc_ops() -> list[int]:
    """Return every cc_op there is: STATUS, and each kind at each width."""
    return [STATUS, *(cc_op(kind, bits) for kind in KINDS for bits in LOG2)]
