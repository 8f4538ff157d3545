"""Operations of the native language that have no operator in Python."""

from __future__ import annotations

from typing import Any

from ringzero.native.generation import Symbol, as_value, builder, convert
from ringzero.native.types import Int, boolean, unsigned

U64 = unsigned(64)


def load(kind: Any, address: Any, offset: Any = 0) -> Any:
    """Load a `kind` from the host address (u64) plus `offset` bytes; any alignment."""
    return builder().load(kind, convert(U64, address), offset)


def store(kind: Any, address: Any, value: Any, offset: Any = 0) -> None:
    """Store `value` as a `kind` at the host address (u64) plus `offset` bytes."""
    builder().store(kind, convert(U64, address), offset, as_value(value, kind))


def pointer(kind: Any, address: Any) -> Any:
    """Return the host address (u64) as a pointer to the Struct `kind`."""
    return builder().convert(kind, convert(U64, address))


def address_of(value: Any) -> Any:
    """Return the host address (u64) of the struct that a pointer value points to."""
    return convert(U64, value)


def select(condition: Any, yes: Any, no: Any) -> Any:
    """Return `yes` or `no`, both evaluated, without a branch."""
    if isinstance(condition, bool):
        return yes if condition else no
    if not isinstance(yes, Symbol):
        yes = as_value(yes, no.kind)
    return builder().select(condition, yes, as_value(no, yes.kind))


def popcount(value: Any) -> Any:
    """Return the number of ones, in the value's own type."""
    return builder().intrinsic("ctpop", value.kind, [value])


def byte_swap(value: Any) -> Any:
    """Reverse the bytes of a 16, 32 or 64-bit value."""
    return builder().intrinsic("bswap", value.kind, [value])


def leading_zeros(value: Any) -> Any:
    """Count the zeros above the highest one; the width when the value is 0."""
    return builder().intrinsic("ctlz", value.kind, [value, as_value(False, boolean)])


def trailing_zeros(value: Any) -> Any:
    """Count the zeros below the lowest one; the width when the value is 0."""
    return builder().intrinsic("cttz", value.kind, [value, as_value(False, boolean)])


def funnel_left(high: Any, low: Any, count: Any) -> Any:
    """Return the upper half of high:low << (count mod width)."""
    return builder().intrinsic("fshl", high.kind, [high, low, convert(high.kind, count)])


def funnel_right(high: Any, low: Any, count: Any) -> Any:
    """Return the lower half of high:low >> (count mod width)."""
    return builder().intrinsic("fshr", high.kind, [high, low, convert(high.kind, count)])


def sign(value: Any) -> Any:
    """Return whether the highest bit is set."""
    return Int(value.kind.bits, signed=True)(value) < 0


def compare_exchange(kind: Any, address: Any, expected: Any, desired: Any) -> Any:
    """Atomically replace `expected` at a host address by `desired`; return what was there."""
    return builder().atomic(
        "cmpxchg", kind, convert(U64, address), as_value(expected, kind), as_value(desired, kind)
    )


def fetch(operator: str, kind: Any, address: Any, operand: Any) -> Any:
    """Atomically combine ("add", "sub", "and", "or", "xor", "xchg"); return what was there."""
    return builder().atomic(operator, kind, convert(U64, address), as_value(operand, kind))


def fence() -> None:
    """Order all earlier memory accesses before all later ones."""
    builder().emit("fence seq_cst")


def copy_memory(to: Any, source: Any, count: Any) -> None:
    """memcpy: `count` bytes between host addresses that do not overlap."""
    builder().bulk("memcpy", convert(U64, to), convert(U64, source), convert(U64, count))


def fill_memory(to: Any, byte: Any, count: Any) -> None:
    """memset: `count` bytes at a host address."""
    builder().bulk("memset", convert(U64, to), convert(unsigned(8), byte), convert(U64, count))


def host_asm(result: Any, text: str, constraints: str, *arguments: Any) -> Any:
    """Run host instructions: LLVM inline assembly (AT&T syntax, LLVM constraint string).

    `result` is the type of the one output, or None. The one place where
    semantics may lean on the host's own instruction set.
    """
    return builder().assembly(result, text, constraints, arguments)


def unreachable() -> None:
    """Say that control never comes here."""
    builder().unreachable()


def long_jump(buffer: Any) -> None:
    """Leave all native frames up to the one that armed `buffer` (a host address)."""
    builder().long_jump(convert(U64, buffer))


def call_address(address: Any, result: Any, *arguments: Any) -> Any:
    """Call the native function (C convention) at a host address."""
    return builder().call_address(convert(U64, address), result, arguments)


def read_host_tsc(ordered: bool = True) -> Any:
    """Return the host's time-stamp counter (u64), read after all earlier loads if `ordered`.

    Without LFENCE the host may read it before them (SDM vol. 2B, RDTSC).
    """
    text = "rdtsc; shlq $$32, %rdx; orq %rdx, %rax"
    return host_asm(U64, "lfence; " * ordered + text, "={rax},~{rdx},~{flags}")
