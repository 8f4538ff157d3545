"""Bit tests, scans and counts (Intel SDM vol. 2, under each name)."""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import ARITHMETIC_FLAGS, CF, EXIT_RANDOM, RAX, RBX, RCX, RDX, ZF
from ringzero.isa.x86.privileged.faults import external
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import i64, leading_zeros, select, staged, trailing_zeros, u32, u64, u128

BT, BTS, BTR, BTC = range(4)


@staged
def _new_value(operation: int, value: Any, bit: Any) -> Any:
    if operation == BTS:
        return value | bit
    if operation == BTR:
        return value & ~bit
    return value ^ bit


@staged
def _bit_operation(m: Operation, operation: int) -> None:
    number = m.T(m.read(1)) & (m.size - 1)
    value = m.read(0)
    bit = m.T(1) << number
    if operation != BT:
        m.write(0, _new_value(operation, value, bit))
    m.set_status(u64((value >> number) & 1), CF)


def _bit_instructions() -> None:
    names = ("bt", "bts", "btr", "btc")
    for operation, (name, register, digit) in enumerate(
        zip(names, ("A3", "AB", "B3", "BB"), (4, 5, 6, 7), strict=True)
    ):

        def by_immediate(m: Operation, operation: int = operation) -> None:
            """BT, BTS, BTR, BTC with a bit number inside the operand."""
            _bit_operation(m, operation)

        def in_memory(m: Operation, operation: int = operation) -> None:
            """BT ... with a bit number that may reach outside the memory operand."""
            number = i64(m.S(m.read(1)))
            log2 = {16: 4, 32: 5, 64: 6}[m.size]
            m.displace(u64((number >> log2) * (m.size // 8)))
            _bit_operation(m, operation)

        writes = operation != BT
        instruction(f"0F BA /{digit} : Ev Ib", name=name, rmw=writes, lock=writes, fast=True)(
            by_immediate
        )
        instruction(f"0F {register} /r:r : Ev Gv", name=name, rmw=writes, fast=True)(by_immediate)
        instruction(f"0F {register} /r:m : Ev Gv", name=name, rmw=writes, lock=writes, fast=True)(
            in_memory
        )


_bit_instructions()


@staged
def _scan(m: Operation, forward: bool) -> None:
    value = m.read(1)
    if forward:
        found = trailing_zeros(value)
    else:
        found = m.T(m.size - 1) - leading_zeros(value)
    # Of 0 the destination is undefined: it stays as it is, all 64 bits, on every processor.
    if value != 0:
        m.write(0, found)
    m.set_status(select(value == 0, u64(ZF), u64(0)), ARITHMETIC_FLAGS)


@instruction("0F BC /r : Gv Ev", fast=True)
def bsf(m: Operation) -> None:
    """BSF (F3 0F BC is TZCNT on processors with BMI1, which x86-64-v2 has not)."""
    _scan(m, True)


@instruction("0F BD /r : Gv Ev", fast=True)
def bsr(m: Operation) -> None:
    """BSR (F3 0F BD is LZCNT on processors with it, which x86-64-v2 has not)."""
    _scan(m, False)


@instruction("0F C7 /1:m : M", rmw=True, lock=True, sized=True)
def cmpxchg8b(m: Operation) -> None:
    """CMPXCHG8B and, with REX.W, CMPXCHG16B (16-byte aligned, #GP otherwise)."""
    if m.size == 64:
        expected = (u128(m.get(RDX, u64)) << 64) | u128(m.get(RAX, u64))
        desired = (u128(m.get(RCX, u64)) << 64) | u128(m.get(RBX, u64))
        old = m.exchange_pair(u128, expected, desired)
        if old != expected:
            m.set(RAX, u64(old))
            m.set(RDX, u64(old >> 64))
        m.set_status(select(old == expected, u64(ZF), u64(0)), ZF)
    else:
        low_expected = (u64(m.get(RDX, u32)) << 32) | u64(m.get(RAX, u32))
        low_desired = (u64(m.get(RCX, u32)) << 32) | u64(m.get(RBX, u32))
        low_old = m.exchange_pair(u64, low_expected, low_desired)
        if low_old != low_expected:
            m.set(RAX, u32(low_old))
            m.set(RDX, u32(low_old >> 32))
        m.set_status(select(low_old == low_expected, u64(ZF), u64(0)), ZF)


@instruction("0F C7 /6:r : Rv")
def rdrand(m: Operation) -> None:
    """RDRAND: 64 bits from the host's own generator; it never runs dry, so CF is always 1."""
    value = external(m.cpu, u32(EXIT_RANDOM), u64(0), u32(8), u64(0))
    m.write(0, m.T(value))
    m.set_status(u64(CF), ARITHMETIC_FLAGS)
