"""Expected against got: what differs and matters, in words."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tests.oracle.encodings import disassemble
from tests.oracle.model import (
    CODE_BASE,
    CRASHED,
    DATA_BASE,
    DATA_SIZE,
    FLAG_BITS,
    GPR_NAMES,
    LINE,
    PF,
    TIMED_OUT,
    UNSUPPORTED,
    VECTOR_NAMES,
    Case,
    Outcome,
    initial_memory,
)
from tests.oracle.undefined import Undefined, undefined

_FSW_BITS = ("IE", "DE", "ZE", "OE", "UE", "PE", "SF", "ES", "C0", "C1", "C2")


def vector_name(vector: int) -> str:
    """ "#GP", or what a pseudo vector means."""
    names = {TIMED_OUT: "timed out", CRASHED: "crashed", UNSUPPORTED: "unsupported"}
    return VECTOR_NAMES.get(vector) or names.get(vector, f"vector {vector}")


def comparable(expected: Outcome, got: Outcome) -> bool:
    """Whether both ran; an outcome that timed out or crashed natively shows nothing."""
    return expected.vector not in (TIMED_OUT, CRASHED, UNSUPPORTED) and got.vector != UNSUPPORTED


def compare(expected: Outcome, got: Outcome, case: Case) -> list[str]:
    """One line per difference that matters; empty when `got` is right.

    What the manual leaves undefined for the case's instruction is ignored, and
    approximate results are compared with the manual's tolerance.
    """
    if expected == got or not comparable(expected, got):
        return []
    return list(_differences(expected, got, case, undefined(case)))


def _differences(expected: Outcome, got: Outcome, case: Case, undef: Undefined) -> Iterator[str]:
    if expected.vector != got.vector:
        yield f"ends with {vector_name(expected.vector)}, got {vector_name(got.vector)}"
    elif (expected.error_code ^ got.error_code) & ~_host_specific(expected.vector):
        yield f"error code: expected {expected.error_code:#x}, got {got.error_code:#x}"
    if abs(expected.address - got.address) >= undef.fault_span:
        yield f"CR2: expected {expected.address:#x}, got {got.address:#x}"
    want, have = expected.state, got.state
    if want.rip != have.rip:
        yield f"rip: expected {want.rip:#x}, got {have.rip:#x}"
    for number, name in enumerate(GPR_NAMES):
        if want.gpr[number] != have.gpr[number] and number not in undef.registers:
            yield f"{name}: expected {want.gpr[number]:#x}, got {have.gpr[number]:#x}"
    wrong = (want.rflags ^ have.rflags) & ~undef.flags
    if wrong:
        yield "rflags: " + _bits(wrong, want.rflags, FLAG_BITS)
    if want.fxsave != have.fxsave:
        yield from _fx_differences(expected, got, undef)
    partial = expected.vector == got.vector == PF and undef.fault_span > 1
    if expected.memory != got.memory and not partial:
        yield from _memory_differences(expected, got, case, undef)


def _host_specific(vector: int) -> int:
    """Error-code bits that a host's own memory management decides.

    Whether a page is "present" for #PF is: a page that was never touched, and the
    upper half of the address space, differ between kernels.
    """
    return 1 if vector == PF else 0


def _bits(wrong: int, want: int, names: dict[str, int]) -> str:
    parts = [
        f"{name} should be {int(bool(want & bit))}" for name, bit in names.items() if wrong & bit
    ]
    rest = wrong & ~sum(names.values())
    if rest:
        parts.append(f"other bits {rest:#x}")
    return ", ".join(parts)


def _fx_differences(expected: Outcome, got: Outcome, undef: Undefined) -> Iterator[str]:
    want, have = expected.state, got.state
    if want.fcw != have.fcw:
        yield f"fcw: expected {want.fcw:#06x}, got {have.fcw:#06x}"
    wrong = (want.fsw ^ have.fsw) & ~undef.fsw
    if wrong & 0x3800:
        yield f"x87 top: expected {want.fsw >> 11 & 7}, got {have.fsw >> 11 & 7}"
    if wrong & ~0x3800:
        names = {name: 1 << i for i, name in enumerate(_FSW_BITS)} | {"C3": 0x4000, "B": 0x8000}
        yield "fsw: " + _bits(wrong & ~0x3800, want.fsw, names)
    if want.ftw != have.ftw:
        yield f"x87 tags: expected {want.ftw:#010b}, got {have.ftw:#010b}"
    if want.mxcsr != have.mxcsr:
        yield f"mxcsr: expected {want.mxcsr:#06x}, got {have.mxcsr:#06x}"
    for i in range(8):
        a, b = want.st(i), have.st(i)
        if a != b and not _close_extended(a, b, undef.x87_ulp):
            yield f"st{i}: expected {_extended(a)}, got {_extended(b)}"
    for i in range(16):
        a, b = want.xmm(i), have.xmm(i)
        if a != b and not _close_singles(a, b, undef.single_error):
            yield f"xmm{i}: expected {a[::-1].hex()}, got {b[::-1].hex()}"


def _extended(value: bytes) -> str:
    mantissa, exponent = struct.unpack("<QH", value)
    return f"{exponent:04x}:{mantissa:016x}"


def _close_extended(a: bytes, b: bytes, ulp: int) -> bool:
    """Whether two 80-bit values of one sign lie within `ulp` units in the last place."""
    if not ulp or (a[9] ^ b[9]) & 0x80:
        return False
    x, y = (
        ((int.from_bytes(v[8:], "little") & 0x7FFF) << 63) + int.from_bytes(v[:8], "little")
        for v in (a, b)
    )
    return abs(x - y) <= ulp


def _close_singles(a: bytes, b: bytes, error: float) -> bool:
    if not error:
        return False
    for lane in range(0, 16, 4):
        if a[lane : lane + 4] == b[lane : lane + 4]:
            continue
        (x,), (y,) = struct.unpack_from("<f", a, lane), struct.unpack_from("<f", b, lane)
        if not abs(x - y) <= error * max(abs(x), abs(y)) or abs(x) == abs(y):
            return False
    return True


def _memory_differences(
    expected: Outcome, got: Outcome, case: Case, undef: Undefined
) -> Iterator[str]:
    code, data = initial_memory(case)
    want, have = dict(expected.memory), dict(got.memory)
    ignored = {a for start, length in undef.memory for a in range(start, start + length)}
    wrong: list[tuple[int, int, int]] = []
    for line in sorted(want.keys() | have.keys()):
        base, before = (DATA_BASE, data) if line >= DATA_BASE else (CODE_BASE, code)
        original = bytes(before[line - base : line - base + LINE])
        pair = zip(want.get(line, original), have.get(line, original), strict=True)
        wrong += [
            (line + i, x, y) for i, (x, y) in enumerate(pair) if x != y and line + i not in ignored
        ]
    start = 0
    while start < len(wrong):
        end = start + 1
        while end < len(wrong) and wrong[end][0] == wrong[end - 1][0] + 1:
            end += 1
        run = wrong[start:end]
        yield (
            f"memory at {run[0][0]:#x}: expected {bytes(x for _, x, _ in run).hex()},"
            f" got {bytes(y for _, _, y in run).hex()}"
        )
        start = end


def explain(expected: Outcome, got: Outcome, case: Case) -> str:
    """A mismatch for a reader: the instruction, its inputs, the differences."""
    state = case.state
    text = disassemble(case.code, state.rip, case.mode) if case.mnemonic else "program"
    lines = [
        f"{text}    ; {case.code[:32].hex(' ')} at {state.rip:#x}, mode {case.mode}",
        "  in:  " + " ".join(f"{n}={v:#x}" for n, v in zip(GPR_NAMES, state.gpr, strict=True)),
        f"       rflags={state.rflags:#x} fcw={state.fcw:#x} fsw={state.fsw:#x}"
        f" ftw={state.ftw:#x} mxcsr={state.mxcsr:#x}",
    ]
    if case.mnemonic[:1] == "f" or "mm" in text:
        lines += [f"       st{i}={_extended(state.st(i))}" for i in range(8)]
        lines += [f"       xmm{i}={state.xmm(i)[::-1].hex()}" for i in range(16)]
    lines += [
        f"       [{address:#x}] = {content.hex()}"
        for address, content in case.memory
        if DATA_BASE <= address < DATA_BASE + DATA_SIZE
    ]
    return "\n".join(lines + ["  " + line for line in compare(expected, got, case)])
