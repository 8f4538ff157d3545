"""SSE floating point: arithmetic, comparison, conversion, rounding, by the host's instructions.

The host's MXCSR holds the guest's rounding, DAZ and FTZ (see mxcsr.py), so
results and sticky flags are the hardware's own. Intel SDM vol. 1, chapters 10
to 12, and vol. 2.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import ARITHMETIC_FLAGS
from ringzero.isa.x86.insn import mxcsr, precision
from ringzero.isa.x86.insn.sse_integer import lane_mask
from ringzero.isa.x86.insn.sse_operands import enter, imm8, read_aligned
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import host_asm, staged, u32, u64, u128, v128

SDM = "Intel SDM vol. 2"
# Suffix of a data type: mandatory prefix, size of an operand in memory.
TYPES = {"ps": ("NP", "x"), "pd": ("66", "x"), "ss": ("F3", "d"), "sd": ("F2", "q")}


def _width(size: str) -> Any:
    return {"x": v128, "q": u64, "d": u32}[size]


@staged
def read_source(m: Operation, n: int, size: str) -> Any:
    """Read operand `n` of `size`; one of 128 bits in memory must be aligned."""
    return read_aligned(m, n) if size == "x" else m.read(n)


@staged
def operate(m: Operation, mnemonic: str, kind: Any, first: Any, second: Any) -> Any:
    """Return first `mnemonic` second, of `kind`; raises what is unmasked."""
    mxcsr.begin(m)
    result = host_asm(kind, f"{mnemonic} $2, $0", "=x,0,x", first, second)
    _settle(m, mnemonic, first, second)
    mxcsr.end(m)
    return result


@staged
def _settle(m: Operation, mnemonic: str, first: Any, second: Any) -> None:
    if m.checked and mnemonic in precision.STEPS:
        cpu = m.cpu
        if mxcsr.any_unmasked(cpu):
            precision.settle(cpu, precision.STEPS[mnemonic], first, second)


def _binary(mnemonic: str, form: str, size: str, *, exact: bool = False) -> None:
    # `exact` marks instructions that raise no exceptions (RCPPS).
    def semantic(m: Operation) -> None:
        second = read_source(m, 1, size)
        first = m.read(0)
        if exact:
            asm = f"{mnemonic} $2, $0"
            m.write(0, host_asm(_width(size), asm, "=x,0,x", first, second))
        else:
            m.write(0, operate(m, mnemonic, _width(size), first, second))

    enter(mnemonic, [form], semantic, SDM, sse=True, fast=True)


def _unary(mnemonic: str, form: str, size: str, *, exact: bool = False) -> None:
    def semantic(m: Operation) -> None:
        source = read_source(m, 1, size)
        if not exact:
            mxcsr.begin(m)
        result = host_asm(_width(size), f"{mnemonic} $1, $0", "=x,x", source)
        if not exact:
            mxcsr.end(m)
        m.write(0, result)

    enter(mnemonic, [form], semantic, SDM, sse=True, fast=True)


for _suffix, (_prefix, _size) in TYPES.items():
    for _name, _opcode in {
        "add": 0x58, "mul": 0x59, "sub": 0x5C, "min": 0x5D, "div": 0x5E, "max": 0x5F,
    }.items():  # fmt: skip
        _binary(_name + _suffix, f"{_prefix} 0F {_opcode:02X} /r : V{_size} W{_size}", _size)
    _unary("sqrt" + _suffix, f"{_prefix} 0F 51 /r : V{_size} W{_size}", _size)
    if _suffix in ("ps", "ss"):
        for _name, _opcode in {"rsqrt": 0x52, "rcp": 0x53}.items():
            _form = f"{_prefix} 0F {_opcode:02X} /r : V{_size} W{_size}"
            _unary(_name + _suffix, _form, _size, exact=True)

for _name, _opcode in {"haddp": 0x7C, "hsubp": 0x7D, "addsubp": 0xD0}.items():
    _binary(_name + "d", f"66 0F {_opcode:02X} /r : Vx Wx", "x")
    _binary(_name + "s", f"F2 0F {_opcode:02X} /r : Vx Wx", "x")


# --- comparison ------------------------------------------------------------

PREDICATES = ("eq", "lt", "le", "unord", "neq", "nlt", "nle", "ord")


def _compare(suffix: str, prefix: str, size: str) -> None:
    kind = _width(size)

    def semantic(m: Operation) -> None:
        second = read_source(m, 1, size)
        first = m.read(0)
        predicate = imm8(m, 2) & 7
        mxcsr.begin(m)
        result = first
        for number, word in enumerate(PREDICATES):
            if predicate == number:
                asm = f"cmp{word}{suffix} $2, $0"
                result = host_asm(kind, asm, "=x,0,x", first, second)
        mxcsr.end(m)
        m.write(0, result)

    form = f"{prefix} 0F C2 /r : V{size} W{size} Ib"
    enter("cmp" + suffix, [form], semantic, SDM, sse=True)


for _suffix, (_prefix, _size) in TYPES.items():
    _compare(_suffix, _prefix, _size)


def _compare_flags(mnemonic: str, form: str) -> None:
    def semantic(m: Operation) -> None:
        second = m.read(1)
        first = m.read(0)
        mxcsr.begin(m)
        asm = f"{mnemonic} $2, $1\nlahf\nmovzbl %ah, %eax"
        flags = host_asm(u32, asm, "={eax},x,x,~{flags}", first, second)
        mxcsr.end(m)
        # LAHF gives SF, ZF, AF, PF, CF in place, and bit 1.
        m.set_status(u64(flags & 0x45), ARITHMETIC_FLAGS)

    enter(mnemonic, [form], semantic, SDM, sse=True, fast=True)


_compare_flags("ucomiss", "NP 0F 2E /r : Vd Wd")
_compare_flags("ucomisd", "66 0F 2E /r : Vq Wq")
_compare_flags("comiss", "NP 0F 2F /r : Vd Wd")
_compare_flags("comisd", "66 0F 2F /r : Vq Wq")


# --- conversion ------------------------------------------------------------

# Between XMM registers: form, size of the result, size of the source.
CONVERSIONS = {
    "cvtps2pd": ("NP 0F 5A", "x", "q"), "cvtpd2ps": ("66 0F 5A", "x", "x"),
    "cvtss2sd": ("F3 0F 5A", "q", "d"), "cvtsd2ss": ("F2 0F 5A", "d", "q"),
    "cvtdq2ps": ("NP 0F 5B", "x", "x"), "cvtps2dq": ("66 0F 5B", "x", "x"),
    "cvttps2dq": ("F3 0F 5B", "x", "x"), "cvttpd2dq": ("66 0F E6", "x", "x"),
    "cvtpd2dq": ("F2 0F E6", "x", "x"), "cvtdq2pd": ("F3 0F E6", "x", "q"),
}  # fmt: skip


def _convert(mnemonic: str, encoding: str, result_size: str, source_size: str) -> None:
    def semantic(m: Operation) -> None:
        source = read_source(m, 1, source_size)
        mxcsr.begin(m)
        result = host_asm(_width(result_size), f"{mnemonic} $1, $0", "=x,x", source)
        _settle(m, mnemonic, source, v128(u128(0)))
        mxcsr.end(m)
        m.write(0, result)

    form = f"{encoding} /r : V{result_size} W{source_size}"
    enter(mnemonic, [form], semantic, SDM, sse=True, fast=True)


for _mnemonic, (_encoding, _to, _from) in CONVERSIONS.items():
    _convert(_mnemonic, _encoding, _to, _from)


def _from_integer(mnemonic: str, encoding: str, size: str) -> None:
    def semantic(m: Operation) -> None:
        source = m.read(1)
        suffix = "q" if source.kind.bits == 64 else "l"
        mxcsr.begin(m)
        result = host_asm(_width(size), f"{mnemonic}{suffix} $1, $0", "=x,r", source)
        mxcsr.end(m)
        m.write(0, result)

    enter(mnemonic, [f"{encoding} /r : V{size} Ey"], semantic, SDM, sse=True, fast=True)


_from_integer("cvtsi2ss", "F3 0F 2A", "d")
_from_integer("cvtsi2sd", "F2 0F 2A", "q")


def _to_integer(mnemonic: str, encoding: str, size: str) -> None:
    def semantic(m: Operation) -> None:
        source = m.read(1)
        mxcsr.begin(m)
        suffix, kind = ("q", u64) if m.size == 64 else ("l", u32)
        result = host_asm(kind, f"{mnemonic}{suffix} $1, $0", "=r,x", source)
        mxcsr.end(m)
        m.write(0, result)

    enter(mnemonic, [f"{encoding} /r : Gy W{size}"], semantic, SDM, sse=True, fast=True)


for _suffix, _encoding, _size in (("ss", "F3", "d"), ("sd", "F2", "q")):
    _to_integer(f"cvtt{_suffix}2si", f"{_encoding} 0F 2C", _size)
    _to_integer(f"cvt{_suffix}2si", f"{_encoding} 0F 2D", _size)


# --- rounding --------------------------------------------------------------


def _round(suffix: str, opcode: int, size: str) -> None:
    kind = _width(size)

    def semantic(m: Operation) -> None:
        source = read_source(m, 1, size)
        imm = imm8(m, 2) & 15
        mxcsr.begin(m)
        result = source
        for mode in range(16):
            if imm == mode:
                result = host_asm(kind, f"round{suffix} $${mode}, $1, $0", "=x,x", source)
        mxcsr.end(m)
        m.write(0, result)

    form = f"66 0F 3A {opcode:02X} /r : V{size} W{size} Ib"
    enter("round" + suffix, [form], semantic, SDM, sse=True)


_round("ps", 0x08, "x")
_round("pd", 0x09, "x")
_round("ss", 0x0A, "d")
_round("sd", 0x0B, "q")


# --- dot products ----------------------------------------------------------


@staged
def sum_by_steps(m: Operation, suffix: str, pairs: list[tuple[Any, Any]]) -> None:
    """Raise what is unmasked of the products, then of the sums: the later ones are not made.

    `pairs` are the operands, 128 bits of each; what any of them raises stops all.
    """
    if m.checked:
        cpu = m.cpu
        if mxcsr.any_unmasked(cpu):
            values = _operate_all(m, f"mulp{suffix}", pairs)
            for _ in range({"s": 2, "d": 1}[suffix]):
                values = _operate_all(m, f"haddp{suffix}", list(zip(values, values, strict=True)))


@staged
def _operate_all(m: Operation, mnemonic: str, pairs: list[tuple[Any, Any]]) -> list[Any]:
    """Return first `mnemonic` second of each pair; raises what is unmasked of all together."""
    mxcsr.begin(m)
    results = []
    for first, second in pairs:
        results.append(host_asm(v128, f"{mnemonic} $2, $0", "=x,0,x", first, second))
        _settle(m, mnemonic, first, second)
    mxcsr.end(m)
    return results


def _dot_product(mnemonic: str, opcode: int, bits: int) -> None:
    # The host multiplies all lanes and puts the sum in all: lanes that the
    # immediate leaves out are made +0 before, and cleared after.
    def semantic(m: Operation) -> None:
        second = read_aligned(m, 1)
        first = m.read(0)
        imm = imm8(m, 2)
        used = lane_mask(imm >> 4, bits)
        sum_by_steps(m, mnemonic[-1], [(first & used, second & used)])
        mxcsr.begin(m)
        asm = f"{mnemonic} $$0xff, $2, $0"
        result = host_asm(v128, asm, "=x,0,x", first & used, second & used)
        mxcsr.end(m)
        m.write(0, result & lane_mask(imm & 15, bits))

    form = f"66 0F 3A {opcode:02X} /r : Vx Wx Ib"
    enter(mnemonic, [form], semantic, SDM, sse=True)


_dot_product("dpps", 0x40, 32)
_dot_product("dppd", 0x41, 64)
