"""The native language: a typed subset of Python that `jit` compiles to host code.

Two kinds of functions. A `@native` function becomes a native function with
typed parameters. A `@staged` function runs at generation time inside its
caller, like a macro that understands `if` and `while`. Both work on two kinds
of things: *values* (typed, known when the code runs) and ordinary Python
objects (known at generation time). Where everything in an expression is known
it is computed at once; an `if` on a known condition is decided at once and the
other branch leaves no trace; `for` over a Python iterable is unrolled.

Rules: integers have a width and wrap; both sides of an operator have one type
(a Python int takes the other side's); conversion is written `u64(x)`; a shift
count must be less than the width; a comparison gives a boolean; `and`, `or`,
`not` on booleans short-circuit. A variable that changes at run time starts as
a value: `count = u64(0)`, not `count = 0`.

May import: the ground. Never sees LLVM.
"""

from ringzero.native.functions import NativeFunction, StagedFunction, native, staged
from ringzero.native.ops import (
    address_of,
    byte_swap,
    call_address,
    compare_exchange,
    copy_memory,
    fence,
    fetch,
    fill_memory,
    funnel_left,
    funnel_right,
    host_asm,
    leading_zeros,
    load,
    long_jump,
    pointer,
    popcount,
    read_host_tsc,
    select,
    sign,
    store,
    trailing_zeros,
    unreachable,
)
from ringzero.native.types import (
    Struct,
    boolean,
    field,
    i8,
    i16,
    i32,
    i64,
    i128,
    signed,
    u8,
    u16,
    u32,
    u64,
    u128,
    unsigned,
    v128,
)
from ringzero.native.values import ArrayRef, Value

__all__ = [
    "ArrayRef",
    "NativeFunction",
    "StagedFunction",
    "Struct",
    "Value",
    "address_of",
    "boolean",
    "byte_swap",
    "call_address",
    "compare_exchange",
    "copy_memory",
    "fence",
    "fetch",
    "field",
    "fill_memory",
    "funnel_left",
    "funnel_right",
    "host_asm",
    "i8",
    "i16",
    "i32",
    "i64",
    "i128",
    "leading_zeros",
    "load",
    "long_jump",
    "native",
    "pointer",
    "popcount",
    "read_host_tsc",
    "select",
    "sign",
    "signed",
    "staged",
    "store",
    "trailing_zeros",
    "u8",
    "u16",
    "u32",
    "u64",
    "u128",
    "unreachable",
    "unsigned",
    "v128",
]
