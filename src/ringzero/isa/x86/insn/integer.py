"""Integer arithmetic, logic and data movement (Intel SDM vol. 2, under each name)."""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86 import ccops
from ringzero.isa.x86.cpu import AF, ARITHMETIC_FLAGS, CF, DE, OF, PF, RAX, RDX, SF, ZF
from ringzero.isa.x86.flags import status_of
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import (
    byte_swap,
    i64,
    native,
    select,
    sign,
    signed,
    staged,
    u8,
    u16,
    u32,
    u64,
    u128,
    unsigned,
)


def _alu_forms(base: int, digit: int) -> list[str]:
    """Return the nine encodings that ADD, OR, ADC, SBB, AND, SUB, XOR and CMP share."""
    return [
        f"{base:02X} /r : Eb Gb",
        f"{base + 1:02X} /r : Ev Gv",
        f"{base + 2:02X} /r : Gb Eb",
        f"{base + 3:02X} /r : Gv Ev",
        f"{base + 4:02X} : AL Ib",
        f"{base + 5:02X} : rAX Iz",
        f"80 /{digit} : Eb Ib",
        f"81 /{digit} : Ev Iz",
        f"83 /{digit} : Ev Ibs",
    ]


# 82 is an alias of 80 outside 64-bit mode.
def _alias(digit: int) -> list[str]:
    return [f"82 /{digit} : Eb Ib"]


@instruction(*_alu_forms(0x00, 0), rmw=True, lock=True, fast=True)
@instruction(*_alias(0), rmw=True, lock=True, no64=True)
def add(m: Operation) -> None:
    """ADD."""
    source = m.read(1)
    result = m.read(0) + source
    m.write(0, result)
    m.set_flags(ccops.ADD, result, source)


@instruction(*_alu_forms(0x10, 2), rmw=True, lock=True, fast=True)
@instruction(*_alias(2), rmw=True, lock=True, no64=True)
def adc(m: Operation) -> None:
    """ADC: add with carry."""
    source = m.read(1)
    carry = m.T(m.flag(CF))
    result = m.read(0) + source + carry
    m.write(0, result)
    m.set_flags(ccops.ADC, result, source, carry)


@instruction(*_alu_forms(0x18, 3), rmw=True, lock=True, fast=True)
@instruction(*_alias(3), rmw=True, lock=True, no64=True)
def sbb(m: Operation) -> None:
    """SBB: subtract with borrow."""
    source = m.read(1)
    borrow = m.T(m.flag(CF))
    result = m.read(0) - source - borrow
    m.write(0, result)
    m.set_flags(ccops.SBB, result, source, borrow)


@instruction(*_alu_forms(0x28, 5), rmw=True, lock=True, fast=True)
@instruction(*_alias(5), rmw=True, lock=True, no64=True)
def sub(m: Operation) -> None:
    """SUB."""
    source = m.read(1)
    result = m.read(0) - source
    m.write(0, result)
    m.set_flags(ccops.SUB, result, source)


@instruction(*_alu_forms(0x38, 7), fast=True)
@instruction(*_alias(7), no64=True)
def cmp(m: Operation) -> None:
    """CMP."""
    source = m.read(1)
    m.set_flags(ccops.SUB, m.read(0) - source, source)


@instruction(*_alu_forms(0x08, 1), rmw=True, lock=True, fast=True)
@instruction(*_alias(1), rmw=True, lock=True, no64=True)
def or_(m: Operation) -> None:
    """OR."""
    source = m.read(1)
    result = m.read(0) | source
    m.write(0, result)
    m.set_flags(ccops.LOGIC, result)


@instruction(*_alu_forms(0x20, 4), rmw=True, lock=True, fast=True)
@instruction(*_alias(4), rmw=True, lock=True, no64=True)
def and_(m: Operation) -> None:
    """AND."""
    source = m.read(1)
    result = m.read(0) & source
    m.write(0, result)
    m.set_flags(ccops.LOGIC, result)


@instruction(*_alu_forms(0x30, 6), rmw=True, lock=True, fast=True)
@instruction(*_alias(6), rmw=True, lock=True, no64=True)
def xor(m: Operation) -> None:
    """XOR."""
    source = m.read(1)
    result = m.read(0) ^ source
    m.write(0, result)
    m.set_flags(ccops.LOGIC, result)


@instruction(
    "84 /r : Eb Gb", "85 /r : Ev Gv", "A8 : AL Ib", "A9 : rAX Iz",
    "F6 /0 : Eb Ib", "F6 /1 : Eb Ib", "F7 /0 : Ev Iz", "F7 /1 : Ev Iz", fast=True,
)  # fmt: skip
def test(m: Operation) -> None:
    """TEST."""
    source = m.read(1)
    m.set_flags(ccops.LOGIC, m.read(0) & source)


@instruction("FE /0 : Eb", "FF /0 : Ev", rmw=True, lock=True, fast=True)
@instruction("40+ : Zv", no64=True)
def inc(m: Operation) -> None:
    """INC."""
    carry = m.T(m.flag(CF))
    result = m.read(0) + 1
    m.write(0, result)
    m.set_flags(ccops.INC, result, carry)


@instruction("FE /1 : Eb", "FF /1 : Ev", rmw=True, lock=True, fast=True)
@instruction("48+ : Zv", no64=True)
def dec(m: Operation) -> None:
    """DEC."""
    carry = m.T(m.flag(CF))
    result = m.read(0) - 1
    m.write(0, result)
    m.set_flags(ccops.DEC, result, carry)


@instruction("F6 /3 : Eb", "F7 /3 : Ev", rmw=True, lock=True, fast=True)
def neg(m: Operation) -> None:
    """NEG."""
    source = m.read(0)
    result = m.T(0) - source
    m.write(0, result)
    m.set_flags(ccops.SUB, result, source)


@instruction("F6 /2 : Eb", "F7 /2 : Ev", rmw=True, lock=True, fast=True)
def not_(m: Operation) -> None:
    """NOT."""
    m.write(0, ~m.read(0))


# --- multiplication and division ---------------------------------------------


@staged
def _widen(kind: Any, value: Any, is_signed: bool) -> Any:
    return kind(signed(value.kind.bits)(value)) if is_signed else kind(value)


@staged
def _multiply(m: Operation, is_signed: bool) -> None:
    bits = m.size
    T, D = m.T, unsigned(bits * 2)
    product = _widen(D, m.get(RAX, T), is_signed) * _widen(D, m.read(0), is_signed)
    low, high = T(product), T(product >> bits)
    if bits == 8:
        m.set(RAX, product)
    else:
        m.set(RAX, low)
        m.set(RDX, high)
    overflows = product != _widen(D, low, is_signed)
    m.set_flags(ccops.MUL, low, T(overflows))


@instruction("F6 /4 : Eb", "F7 /4 : Ev", fast=True)
def mul(m: Operation) -> None:
    """MUL: unsigned multiply into DX:AX, EDX:EAX or RDX:RAX."""
    _multiply(m, False)


@instruction("F6 /5 : Eb", "F7 /5 : Ev", name="imul", fast=True)
def imul_one(m: Operation) -> None:
    """IMUL, one operand."""
    _multiply(m, True)


@staged
def _multiply_signed(m: Operation, left: Any, right: Any) -> None:
    D = signed(m.size * 2)
    product = D(m.S(left)) * D(m.S(right))
    low = m.T(product)
    m.write(0, low)
    m.set_flags(ccops.MUL, low, m.T(product != D(m.S(low))))


@instruction("0F AF /r : Gv Ev", name="imul", fast=True)
def imul_two(m: Operation) -> None:
    """IMUL, two operands."""
    _multiply_signed(m, m.read(0), m.read(1))


@instruction("69 /r : Gv Ev Iz", "6B /r : Gv Ev Ibs", name="imul", fast=True)
def imul_three(m: Operation) -> None:
    """IMUL, three operands."""
    _multiply_signed(m, m.read(1), m.read(2))


@native(inline="never")
def divide_wide(dividend: u128, divisor: u64) -> u128:
    """Divide 128 by 64 bits, bit by bit: the 64-bit quotient above the remainder.

    The host's compiler has no instruction for it that LLVM would use. The caller has
    checked that the quotient fits, which means that the upper half of the
    dividend is less than the divisor.
    """
    remainder = dividend >> 64
    low = u64(dividend)
    quotient = u64(0)
    wide = u128(divisor)
    for _ in range(u64(64)):
        remainder = (remainder << 1) | u128(low >> 63)
        low = low << 1
        quotient = quotient << 1
        if remainder >= wide:
            remainder -= wide
            quotient = quotient | 1
    return (u128(quotient) << 64) | remainder


@staged
def _divide_128(m: Operation, is_signed: bool) -> None:
    """DIV and IDIV of RDX:RAX by 64 bits."""
    divisor = m.read(0)
    high, low = m.get(RDX, u64), m.get(RAX, u64)
    dividend = (u128(high) << 64) | u128(low)
    negative = sign(high) if is_signed else u64(0) != 0
    divisor_negative = sign(divisor) if is_signed else u64(0) != 0
    magnitude = select(negative, u128(0) - dividend, dividend)
    by = select(divisor_negative, u64(0) - divisor, divisor)
    if u64(magnitude >> 64) >= by:
        m.fault(DE)
    both = divide_wide(magnitude, by)
    quotient, remainder = u64(both >> 64), u64(both)
    if is_signed:
        differs = negative ^ divisor_negative
        limit = select(differs, u64(1 << 63), u64((1 << 63) - 1))
        if quotient > limit:
            m.fault(DE)
        quotient = select(differs, u64(0) - quotient, quotient)
        remainder = select(negative, u64(0) - remainder, remainder)
    m.set(RAX, quotient)
    m.set(RDX, remainder)


@staged
def _divide(m: Operation, is_signed: bool) -> None:
    bits = m.size
    T = m.T
    D = signed(bits * 2) if is_signed else unsigned(bits * 2)
    W = unsigned(bits * 2)
    divisor = m.read(0)
    if divisor == 0:
        m.fault(DE)
    if bits == 8:
        dividend = D(m.get(RAX, u16))
    else:
        dividend = D((W(m.get(RDX, T)) << bits) | W(m.get(RAX, T)))
    wide = D(_widen(W, divisor, is_signed))
    if is_signed:
        # The most negative dividend by -1 overflows the host's division as well.
        lowest = D(1 << (bits * 2 - 1))
        if dividend == lowest and m.S(divisor) == -1:
            m.fault(DE)
    quotient = dividend // wide
    remainder = dividend % wide
    low = T(quotient)
    if quotient != D(_widen(W, low, is_signed)):
        m.fault(DE)
    if bits == 8:
        m.set(RAX, u16(low) | (u16(T(remainder)) << 8))
    else:
        m.set(RAX, low)
        m.set(RDX, T(remainder))


@instruction("F6 /6 : Eb", "F7 /6 : Ev", fast=True)
def div(m: Operation) -> None:
    """DIV: unsigned divide; #DE on zero or a quotient that does not fit."""
    if m.size == 64:
        # Most 64-bit dividends have nothing in RDX; a 128-bit division is 10 times slower.
        divisor = m.read(0)
        if divisor == 0:
            m.fault(DE)
        if m.get(RDX, u64) == 0:
            dividend = m.get(RAX, u64)
            m.set(RAX, dividend // divisor)
            m.set(RDX, dividend % divisor)
        elif m.checked:
            _divide_128(m, False)
        else:
            m.defer()
    else:
        _divide(m, False)


@instruction("F6 /7 : Eb", "F7 /7 : Ev", fast=True)
def idiv(m: Operation) -> None:
    """IDIV: signed divide; #DE on zero or a quotient that does not fit."""
    if m.size == 64:
        divisor = i64(m.read(0))
        low = i64(m.get(RAX, u64))
        short = i64(m.get(RDX, u64)) == low >> 63
        if short and divisor != 0 and divisor != -1:
            m.set(RAX, u64(low // divisor))
            m.set(RDX, u64(low % divisor))
        elif m.checked:
            _divide_128(m, True)
        else:
            m.defer()
    else:
        _divide(m, True)


# --- shifts and rotates ------------------------------------------------------


def _shift_forms(digit: int) -> list[str]:
    return [
        f"D0 /{digit} : Eb 1", f"D1 /{digit} : Ev 1",
        f"D2 /{digit} : Eb CL", f"D3 /{digit} : Ev CL",
        f"C0 /{digit} : Eb Ib", f"C1 /{digit} : Ev Ib",
    ]  # fmt: skip


@staged
def _count(m: Operation) -> Any:
    """The shift count, masked to 5 bits, or 6 for 64-bit operands."""
    return m.shift_count(1)


@instruction(*_shift_forms(4), *_shift_forms(6), rmw=True, fast=True)
def shl(m: Operation) -> None:
    """SHL, SAL (/6 is an undocumented alias)."""
    count = _count(m)
    value = u64(m.read(0))
    if m.is_nonzero(count):
        before = m.T(value << (count - 1))
        result = m.T(before + before)
        m.write(0, result)
        m.set_flags(ccops.SHL, result, before)
    else:
        _write_back(m)


@instruction(*_shift_forms(5), rmw=True, fast=True)
def shr(m: Operation) -> None:
    """SHR."""
    count = _count(m)
    value = u64(m.read(0))
    if m.is_nonzero(count):
        before = value >> (count - 1)
        result = m.T(before >> 1)
        m.write(0, result)
        m.set_flags(ccops.SAR, result, m.T(before))
    else:
        _write_back(m)


@instruction(*_shift_forms(7), rmw=True, fast=True)
def sar(m: Operation) -> None:
    """SAR."""
    count = _count(m)
    value = i64(m.S(m.read(0)))
    if m.is_nonzero(count):
        before = value >> (count - 1)
        result = m.T(before >> 1)
        m.write(0, result)
        m.set_flags(ccops.SAR, result, m.T(before))
    else:
        _write_back(m)


@staged
def _write_back(m: Operation) -> None:
    """A count of 0 still writes the operand: a 32-bit register is zero-extended."""
    if m.size == 32 and not m.is_memory(0):
        m.write(0, m.read(0))


@staged
def _rotate_flags(m: Operation, carry: Any, overflow: Any) -> None:
    m.set_status(u64(carry) | (u64(overflow) << 11), CF | OF)


@instruction(*_shift_forms(0), rmw=True, fast=True)
def rol(m: Operation) -> None:
    """ROL; OF is as for a count of 1."""
    count = _count(m)
    value = m.read(0)
    if m.is_nonzero(count):
        turn = count & (m.size - 1)
        back = (m.size - turn) & (m.size - 1)
        result = (value << turn) | (value >> back)
        m.write(0, result)
        carry = (result & 1) != 0
        _rotate_flags(m, carry, sign(result) ^ carry)
    else:
        _write_back(m)


@instruction(*_shift_forms(1), rmw=True, fast=True)
def ror(m: Operation) -> None:
    """ROR; OF is as for a count of 1."""
    count = _count(m)
    value = m.read(0)
    if m.is_nonzero(count):
        turn = count & (m.size - 1)
        back = (m.size - turn) & (m.size - 1)
        result = (value >> turn) | (value << back)
        m.write(0, result)
        _rotate_flags(m, sign(result), sign(result ^ (result << 1)))
    else:
        _write_back(m)


@instruction(*_shift_forms(2), rmw=True)
def rcl(m: Operation) -> None:
    """RCL: rotate left through CF, by the count modulo width + 1."""
    count = _count(m)
    bits = m.size
    if bits < 32:
        count = count % (bits + 1)
    value = m.read(0)
    carry = m.flag(CF)
    if m.is_nonzero(count):
        # The operand with CF above it, as one number of width + 1 bits.
        whole = u128(value) | (u128(carry) << bits)
        n = u128(count)
        turned = (whole << n) | (whole >> (bits + 1 - n))
        result = m.T(turned)
        m.write(0, result)
        out = ((turned >> bits) & 1) != 0
        _rotate_flags(m, out, sign(result) ^ out)
    else:
        _write_back(m)


@instruction(*_shift_forms(3), rmw=True)
def rcr(m: Operation) -> None:
    """RCR: rotate right through CF, by the count modulo width + 1."""
    count = _count(m)
    bits = m.size
    if bits < 32:
        count = count % (bits + 1)
    value = m.read(0)
    carry = m.flag(CF)
    if m.is_nonzero(count):
        # The operand with CF above it, as one number of width + 1 bits.
        whole = u128(value) | (u128(carry) << bits)
        n = u128(count)
        turned = (whole >> n) | (whole << (bits + 1 - n))
        result = m.T(turned)
        m.write(0, result)
        _rotate_flags(m, ((turned >> bits) & 1) != 0, sign(result ^ (result << 1)))
    else:
        _write_back(m)


@instruction("0F A4 /r : Ev Gv Ib", "0F A5 /r : Ev Gv CL", rmw=True, fast="r")
def shld(m: Operation) -> None:
    """SHLD; a count above 16 of a 16-bit operand rotates the pair, as processors do."""
    bits = m.size
    count = m.shift_count(2)
    value, source = m.read(0), m.read(1)
    if m.is_nonzero(count):
        if bits == 16:
            pair = (u64(value) << 32) | (u64(source) << 16) | u64(source)
            result = u16((pair << count) >> 32)
            before = u16((pair << (count - 1)) >> 32)
        else:
            n = m.T(count)
            result = (value << n) | (source >> (bits - n))
            before = value << (n - 1)
        m.write(0, result)
        m.set_flags(ccops.SHL, result, before)
    else:
        _write_back(m)


@instruction("0F AC /r : Ev Gv Ib", "0F AD /r : Ev Gv CL", rmw=True, fast="r")
def shrd(m: Operation) -> None:
    """SHRD; a count above 16 of a 16-bit operand rotates the pair, as processors do."""
    bits = m.size
    count = m.shift_count(2)
    value, source = m.read(0), m.read(1)
    if m.is_nonzero(count):
        if bits == 16:
            pair = (u64(value) << 32) | (u64(source) << 16) | u64(value)
            result = u16(pair >> count)
            before = u16(pair >> (count - 1))
        else:
            n = m.T(count)
            result = (value >> n) | (source << (bits - n))
            before = value >> (n - 1)
        m.write(0, result)
        # CF is the last bit shifted out; OF tells a change of sign.
        status = status_of(ccops.SAR, result, before, m.T(0)) & ~OF
        changed = sign(result ^ value)
        m.set_status(status | (u64(changed) << 11), ARITHMETIC_FLAGS)
    else:
        _write_back(m)


# --- moves -------------------------------------------------------------------


@instruction(
    "88 /r : Eb Gb", "89 /r : Ev Gv", "8A /r : Gb Eb", "8B /r : Gv Ev",
    "B0+ : Zb Ib", "B8+ : Zv Iv", "C6 /0 : Eb Ib", "C7 /0 : Ev Iz",
    "A0 : AL Ob", "A1 : rAX Ov", "A2 : Ob AL", "A3 : Ov rAX", fast=True,
)  # fmt: skip
def mov(m: Operation) -> None:
    """MOV."""
    m.write(0, m.read(1))


@instruction("0F B6 /r : Gv Eb", "0F B7 /r : Gv Ew", fast=True)
def movzx(m: Operation) -> None:
    """MOVZX."""
    m.write(0, m.T(m.read(1)))


@instruction("0F BE /r : Gv Eb", "0F BF /r : Gv Ew", fast=True)
def movsx(m: Operation) -> None:
    """MOVSX."""
    source = m.read(1)
    m.write(0, m.T(m.S(signed(source.kind.bits)(source))))


@instruction("63 /r : Gv Ed", only64=True, fast=True)
def movsxd(m: Operation) -> None:
    """MOVSXD."""
    source = m.read(1)
    m.write(0, m.T(m.S(signed(32)(source))))


@instruction("8D /r:m : Gv M", fast=True)
def lea(m: Operation) -> None:
    """LEA."""
    m.write(0, m.T(m.effective_address(1)))


@instruction("86 /r : Eb Gb", "87 /r : Ev Gv", rmw=True, lock=True, atomic=True, fast=True)
def xchg(m: Operation) -> None:
    """XCHG; locked when an operand is memory."""
    first, second = m.read(0), m.read(1)
    m.write(0, second)
    m.write(1, first)


@instruction("90+ : Zv rAX", name="xchg", fast=True)
def xchg_rax(m: Operation) -> None:
    """XCHG with rAX; 90 is NOP in the table's eyes too, since EAX must not be truncated."""
    first, second = m.read(0), m.read(1)
    if m.is_register(0, RAX):
        return
    m.write(0, second)
    m.set(RAX, first)


@instruction("98", sized=True, fast=True)
def cwde(m: Operation) -> None:
    """CBW, CWDE, CDQE."""
    half = signed(m.size // 2)
    m.set(RAX, m.T(m.S(half(m.get(RAX, unsigned(m.size // 2))))))


@instruction("99", sized=True, fast=True)
def cdq(m: Operation) -> None:
    """CWD, CDQ, CQO."""
    m.set(RDX, m.T(m.S(m.get(RAX, m.T)) >> (m.size - 1)))


@instruction("0F C8+ : Zy", sized=True, fast=True)
def bswap(m: Operation) -> None:
    """BSWAP; of a 16-bit register the result is undefined, and 0 on processors."""
    if m.size == 16:
        m.write(0, u32(m.read(0)) & 0xFFFF0000)
    else:
        m.write(0, byte_swap(m.read(0)))


def _conditional(code: int, suffix: str) -> None:
    def cmov(m: Operation) -> None:
        """CMOVcc: the source is read in any case; a 32-bit destination is always extended."""
        source = m.read(1)
        m.write(0, select(m.condition(code), source, m.read(0)))

    def setcc(m: Operation) -> None:
        """SETcc."""
        m.write(0, u8(m.condition(code)))

    moves, sets = f"0F {0x40 + code:02X} /r : Gv Ev", f"0F {0x90 + code:02X} /r : Eb"
    instruction(moves, name="cmov" + suffix, condition=code, fast=True)(cmov)
    instruction(sets, name="set" + suffix, condition=code, fast=True)(setcc)


CONDITIONS = (
    "o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g",
)  # fmt: skip
for _code, _suffix in enumerate(CONDITIONS):
    _conditional(_code, _suffix)


@instruction("0F B0 /r : Eb Gb", "0F B1 /r : Ev Gv", rmw=True, lock=True, fast="m")
def cmpxchg(m: Operation) -> None:
    """CMPXCHG: memory is written in either case, a register only when the values are equal."""
    expected = m.get(RAX, m.T)
    old = m.read(0)
    equal = old == expected
    if m.is_memory(0):
        m.write(0, select(equal, m.read(1), old))
        if ~equal:
            m.set(RAX, old)
    elif equal:
        m.write(0, m.read(1))
    else:
        m.set(RAX, old)
    m.set_flags(ccops.SUB, expected - old, old)


@instruction("0F C0 /r : Eb Gb", "0F C1 /r : Ev Gv", rmw=True, lock=True, fast="m")
def xadd(m: Operation) -> None:
    """XADD."""
    old, source = m.read(0), m.read(1)
    result = old + source
    if m.is_memory(0):
        m.write(0, result)
        m.write(1, old)
    else:
        m.write(1, old)
        m.write(0, result)
    m.set_flags(ccops.ADD, result, source)


@instruction("27", no64=True)
def daa(m: Operation) -> None:
    """DAA."""
    al = m.get(RAX, u8)
    low = (al & 0xF) > 9 or m.flag(AF)
    carry = al > 0x99 or m.flag(CF)
    result = al + select(low, u8(6), u8(0)) + select(carry, u8(0x60), u8(0))
    m.set(RAX, result)
    m.set_flags(ccops.LOGIC, result)
    m.set_status(u64(carry) | (u64(low) << 4), CF | AF)


@instruction("2F", no64=True)
def das(m: Operation) -> None:
    """DAS."""
    al = m.get(RAX, u8)
    old_carry = m.flag(CF)
    low = (al & 0xF) > 9 or m.flag(AF)
    high = al > 0x99 or old_carry
    carry = high | (low & (al < 6))
    result = al - select(low, u8(6), u8(0)) - select(high, u8(0x60), u8(0))
    m.set(RAX, result)
    m.set_flags(ccops.LOGIC, result)
    m.set_status(u64(carry) | (u64(low) << 4), CF | AF)


@staged
def _ascii_adjust(m: Operation, subtract: bool) -> None:
    ax = m.get(RAX, u16)
    adjusts = (ax & 0xF) > 9 or m.flag(AF)
    step = select(adjusts, u16(0x106), u16(0))
    result = (ax - step if subtract else ax + step) & 0xFF0F
    m.set(RAX, result)
    m.set_flags(ccops.LOGIC, u8(result))
    m.set_status(u64(adjusts) | (u64(adjusts) << 4), CF | AF)


@instruction("37", no64=True)
def aaa(m: Operation) -> None:
    """AAA."""
    _ascii_adjust(m, False)


@instruction("3F", no64=True)
def aas(m: Operation) -> None:
    """AAS."""
    _ascii_adjust(m, True)


@instruction("D4 : Ib", no64=True)
def aam(m: Operation) -> None:
    """AAM."""
    base = u8(m.read(0))
    if base == 0:
        m.fault(DE)
    al = m.get(RAX, u8)
    result = al % base
    m.set(RAX, u16(result) | (u16(al // base) << 8))
    m.set_flags(ccops.LOGIC, result)


@instruction("D5 : Ib", no64=True)
def aad(m: Operation) -> None:
    """AAD."""
    ax = m.get(RAX, u16)
    result = u8(ax) + u8(ax >> 8) * u8(m.read(0))
    m.set(RAX, u16(result))
    m.set_flags(ccops.LOGIC, result)


@instruction("D6", no64=True)
def salc(m: Operation) -> None:
    """SALC: AL = CF ? FFh : 0 (undocumented, on every processor)."""
    m.set(RAX, select(m.flag(CF), u8(0xFF), u8(0)))


@instruction(
    "0F 1F /r : Ev", *(f"0F {n:02X} /r : Ev" for n in range(0x18, 0x1F)), fast=True, unread=True
)
def nop(m: Operation) -> None:
    """NOP with an operand that is not accessed, and hints that act as NOP (PREFETCHh, ENDBR)."""


@instruction("D7")
def xlat(m: Operation) -> None:
    """XLATB."""
    m.set(RAX, m.load(u8, m.string_address(3, u64(m.get(RAX, u8)))))


@instruction("F8", fast=True)
def clc(m: Operation) -> None:
    """CLC."""
    m.set_status(u64(0), CF)


@instruction("F9", fast=True)
def stc(m: Operation) -> None:
    """STC."""
    m.set_status(u64(CF), CF)


@instruction("F5")
def cmc(m: Operation) -> None:
    """CMC."""
    m.set_status(m.get_status() ^ CF, CF)


@instruction("9E")
def sahf(m: Operation) -> None:
    """SAHF."""
    m.set_status(u64(m.get(RAX, u16) >> 8), SF | ZF | AF | PF | CF)


@instruction("9F")
def lahf(m: Operation) -> None:
    """LAHF."""
    flags_byte = u16(u8(m.get_status() | 2))
    m.set(RAX, (m.get(RAX, u16) & 0xFF) | (flags_byte << 8))
