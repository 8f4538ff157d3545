"""Where Unicorn 2.1 (QEMU 5's TCG) is known to be wrong, so that the rest can be trusted.

Every entry was found by comparing it with the host CPU.
"""

from __future__ import annotations

from tests.oracle.encodings import names
from tests.oracle.model import AC, CRASHED, FLAG_BITS, GP, MF, PF, SS, UD, XM, Case, Outcome

_MXCSR_AT = 144 + 24
_ST_AT = 144 + 32
_FLUSHING = 0x8040
_INTEGER = names("mov add adc sub sbb and xor shl shr sar rol ror")
_SSSE3 = names(
    """pshufb phaddw phaddd phaddsw pmaddubsw phsubw phsubd phsubsw psignb psignw psignd
    pmulhrsw pabsb pabsw pabsd palignr"""
)
_HORIZONTAL = names("phaddw phaddd phaddsw phsubw phsubd phsubsw")
_RCP = names("rcpps rcpss rsqrtps rsqrtss")
_LOCK, _REPNE = 0xF0, 0xF2


def known_deviation(case: Case, expected: Outcome, got: Outcome) -> str | None:
    """What is known about this difference, or None if it is news."""
    mnemonic = case.mnemonic
    head = case.code[:4]
    if got.vector == CRASHED:
        return "aborts or loops (LOCK with BTS, BTR or BTC of a register; others)"
    if expected.vector == UD and _LOCK in head:
        return "accepts LOCK before anything"
    if expected.vector == AC or case.state.rflags & FLAG_BITS["AC"]:
        return "checks no alignment for AC"
    if expected.vector == SS or (case.mode == 32 and expected.vector == GP):
        return "checks no segment limit; #GP where it should be #SS"
    if mnemonic[0] == "f" or mnemonic == "wait":
        return "x87: no stack faults, no C1, DE or PE, unmasked exceptions come late"
    if XM in {expected.vector, got.vector}:
        return "raises no SSE exceptions"
    if expected.vector == GP and got.vector != GP and _touches_xmm(case):
        return "checks no 16-byte alignment"
    if expected.vector == MF:
        return "reports no pending x87 exception at MMX instructions"
    if mnemonic in ("jmp", "call", "ret") and got.state.rip > 1 << 47:
        return "jumps to non-canonical addresses"
    if mnemonic in ("shld", "shrd", "rcl", "rcr"):
        return "counts above the operand size in immediates and rotates through CF"
    if mnemonic == "nop" and b"\x0f\x18" in case.code:
        return "refuses PREFETCH with a register operand"
    if mnemonic == "clflush":
        return "does not check the address of CLFLUSH"
    if mnemonic == "neg" and _LOCK in head:
        return "computes the flags of LOCK NEG wrongly"
    if mnemonic == "cmpxchg":
        return "zero-extends a 32-bit register destination or EAX when it is not written"
    if mnemonic.startswith("cmp") and got.vector == UD:
        return "rejects reserved bits in the predicate of CMPPS and its kin"
    if mnemonic.startswith("round") and PF in {expected.vector, got.vector}:
        return "reads 16 bytes for ROUNDSD and ROUNDSS"
    if mnemonic in _SSSE3 and 0x66 not in case.code[: case.code.index(0x0F)]:
        return "does not enter MMX mode in SSSE3 instructions"
    if mnemonic in _HORIZONTAL:
        return "overwrites the source of horizontal operations with equal operands"
    if case.state.mxcsr & _FLUSHING and mnemonic not in _INTEGER:
        return "flushes denormals neither in (DAZ) nor out (FTZ) in some instructions"
    if mnemonic[-2:] in ("ps", "pd", "ss", "sd") and _other_nan(expected, got):
        return "picks the NaN with the larger significand, not the first"
    if mnemonic.startswith("pcmp") and mnemonic[4:6] in ("is", "es"):
        return "takes reserved bits of the string comparison's control byte"
    if expected.vector == got.vector == PF:
        return "read-modify-write faults as a read, and at another address when it crosses pages"
    if mnemonic in ("lahf", "sahf") and any(byte >> 4 == 4 for byte in head[:-1]):
        return "takes SPL for AH when LAHF or SAHF has a REX prefix"
    if mnemonic == "ret":
        return "sign-extends the immediate of RET"
    if mnemonic in ("loope", "loopne") and _REPNE in head:
        return "lets a REPNE prefix turn LOOPE into LOOPNE"
    if mnemonic in _RCP:
        return "computes reciprocals of denormals"
    if _sse_or_mmx_state(expected, got):
        return "sets no MXCSR flags; MMX writes do not set bits 79:64; memory CVTPI2PS enters MMX"
    return None


def _touches_xmm(case: Case) -> bool:
    return b"\x0f" in case.code[:5]


def _other_nan(expected: Outcome, got: Outcome) -> bool:
    """Whether every vector register that differs holds a NaN in both outcomes."""
    pairs = [(expected.state.xmm(i), got.state.xmm(i)) for i in range(16)]
    return all(
        a == b or any(_is_nan(a, lane) and _is_nan(b, lane) for lane in range(0, 16, 4))
        for a, b in pairs
    )


def _is_nan(vector: bytes, lane: int) -> bool:
    """A single-precision NaN, or the upper half of a double one."""
    return int.from_bytes(vector[lane : lane + 4], "little") & 0x7F80_0000 == 0x7F80_0000


def _sse_or_mmx_state(expected: Outcome, got: Outcome) -> bool:
    """Whether all that differs is MXCSR flags, and tops, tags and exponents of MMX."""
    want, have = bytearray(expected.state.raw), bytearray(got.state.raw)
    for raw in (want, have):
        raw[_MXCSR_AT] &= 0xC0
        raw[144 + 2 : 144 + 5] = bytes(3)
        for slot in range(_ST_AT, _ST_AT + 128, 16):
            raw[slot + 8 : slot + 10] = b"\0\0"
    if want[_ST_AT : _ST_AT + 128] != have[_ST_AT : _ST_AT + 128]:
        same_x87 = {bytes(want[i : i + 8]) for i in range(_ST_AT, _ST_AT + 128, 16)} == {
            bytes(have[i : i + 8]) for i in range(_ST_AT, _ST_AT + 128, 16)
        }
        if not same_x87:
            return False
        want[_ST_AT : _ST_AT + 128] = have[_ST_AT : _ST_AT + 128] = bytes(128)
    return want == have and expected.memory == got.memory
