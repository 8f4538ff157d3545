"""SSE moves: between XMM registers, memory and general registers; non-temporal; masks.

Intel SDM vol. 2, chapters 3 and 4; the grouping is that of vol. 1, chapters 10 to 12.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import RDI
from ringzero.isa.x86.insn.sse_operands import (
    enter,
    high,
    low,
    pair,
    read_aligned,
    transform,
    vector,
    write_aligned,
)
from ringzero.isa.x86.privileged.alignment import check_alignment
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import host_asm, staged, u8, u32, u64, u128

# --- whole registers -------------------------------------------------------


@instruction("NP 0F 28 /r : Vx Wx", "NP 0F 29 /r : Wx Vx", sse=True, fast=True)
def movaps(m: Operation) -> None:
    "MOVAPS (Intel SDM vol. 2B)."
    write_aligned(m, 0, read_aligned(m, 1))


@instruction("66 0F 28 /r : Vx Wx", "66 0F 29 /r : Wx Vx", sse=True, fast=True)
def movapd(m: Operation) -> None:
    "MOVAPD (Intel SDM vol. 2B)."
    write_aligned(m, 0, read_aligned(m, 1))


@instruction("66 0F 6F /r : Vx Wx", "66 0F 7F /r : Wx Vx", sse=True, fast=True)
def movdqa(m: Operation) -> None:
    "MOVDQA (Intel SDM vol. 2B)."
    write_aligned(m, 0, read_aligned(m, 1))


@instruction("NP 0F 10 /r : Vx Wx", "NP 0F 11 /r : Wx Vx", sse=True, fast=True)
def movups(m: Operation) -> None:
    "MOVUPS (Intel SDM vol. 2B)."
    m.write(0, m.read(1))


@instruction("66 0F 10 /r : Vx Wx", "66 0F 11 /r : Wx Vx", sse=True, fast=True)
def movupd(m: Operation) -> None:
    "MOVUPD (Intel SDM vol. 2B)."
    m.write(0, m.read(1))


@instruction("F3 0F 6F /r : Vx Wx", "F3 0F 7F /r : Wx Vx", sse=True, fast=True)
def movdqu(m: Operation) -> None:
    "MOVDQU (Intel SDM vol. 2B)."
    m.write(0, m.read(1))


@instruction("F2 0F F0 /r:m : Vx Mx", sse=True, fast=True)
def lddqu(m: Operation) -> None:
    "LDDQU (Intel SDM vol. 2A)."
    m.write(0, m.read(1))


def _non_temporal(mnemonic: str, form: str) -> None:
    def semantic(m: Operation) -> None:
        write_aligned(m, 0, m.read(1))

    enter(mnemonic, [form], semantic, "Intel SDM vol. 2B", sse=True, fast=True)


_non_temporal("movntps", "NP 0F 2B /r:m : Mx Vx")
_non_temporal("movntpd", "66 0F 2B /r:m : Mx Vx")
_non_temporal("movntdq", "66 0F E7 /r:m : Mx Vx")


@instruction("66 0F 38 2A /r:m : Vx Mx", sse=True, fast=True)
def movntdqa(m: Operation) -> None:
    "MOVNTDQA (Intel SDM vol. 2B)."
    m.write(0, read_aligned(m, 1))


@instruction("NP 0F C3 /r:m : My Gy", sse=True, fast=True)
def movnti(m: Operation) -> None:
    "MOVNTI (Intel SDM vol. 2B)."
    m.write(0, m.read(1))


# --- scalars and halves ----------------------------------------------------


@instruction("F3 0F 10 /r:r : Vd Wd", "F3 0F 11 /r : Wd Vd", sse=True, fast=True)
def movss(m: Operation) -> None:
    "MOVSS (Intel SDM vol. 2B): between registers and to memory."
    m.write(0, m.read(1))


@instruction("F3 0F 10 /r:m : Vx Md", name="movss", sse=True, fast=True)
def movss_load(m: Operation) -> None:
    "MOVSS from memory clears the rest of the register (Intel SDM vol. 2B)."
    m.write(0, vector(m.read(1)))


@instruction("F2 0F 10 /r:r : Vq Wq", "F2 0F 11 /r : Wq Vq", name="movsd", sse=True, fast=True)
def movsd_scalar(m: Operation) -> None:
    "MOVSD (Intel SDM vol. 2B): between registers and to memory."
    m.write(0, m.read(1))


@instruction("F2 0F 10 /r:m : Vx Mq", name="movsd", sse=True, fast=True)
def movsd_load(m: Operation) -> None:
    "MOVSD from memory clears the rest of the register (Intel SDM vol. 2B)."
    m.write(0, vector(m.read(1)))


@instruction(
    "66 0F 6E /r : Vx Ey",
    "F3 0F 7E /r : Vx Wq",
    name="movd",
    sse=True,
    fast=True,
)
def movd_load(m: Operation) -> None:
    "MOVD, MOVQ into an XMM register (Intel SDM vol. 2B)."
    m.write(0, vector(m.read(1)))


@instruction("66 0F 7E /r : Ey Vq", name="movd", sse=True, fast=True)
def movd_store(m: Operation) -> None:
    "MOVD, MOVQ to a general register or memory (Intel SDM vol. 2B)."
    value = m.read(1)
    m.write(0, value if m.size == 64 else u32(value))


@instruction("66 0F D6 /r:m : Mq Vq", name="movq", sse=True, fast=True)
def movq_store(m: Operation) -> None:
    "MOVQ to memory (Intel SDM vol. 2B)."
    m.write(0, m.read(1))


@instruction("66 0F D6 /r:r : Ux Vq", name="movq", sse=True, fast=True)
def movq_register(m: Operation) -> None:
    "MOVQ between XMM registers clears the upper half (Intel SDM vol. 2B)."
    m.write(0, vector(m.read(1)))


@instruction("NP 0F 12 /r:r : Vq Ux", sse=True, fast=True)
def movhlps(m: Operation) -> None:
    "MOVHLPS (Intel SDM vol. 2B)."
    m.write(0, high(m.read(1)))


@instruction("NP 0F 16 /r:r : Vx Uq", sse=True, fast=True)
def movlhps(m: Operation) -> None:
    "MOVLHPS (Intel SDM vol. 2B)."
    m.write(0, pair(low(m.read(0)), m.read(1)))


def _low_half(mnemonic: str, prefix: str) -> None:
    def semantic(m: Operation) -> None:
        m.write(0, m.read(1))

    forms = [f"{prefix} 0F 12 /r:m : Vq Mq", f"{prefix} 0F 13 /r:m : Mq Vq"]
    enter(mnemonic, forms, semantic, "Intel SDM vol. 2B", sse=True, fast=True)


def _high_half(mnemonic: str, prefix: str) -> None:
    def load_half(m: Operation) -> None:
        half = m.read(1)
        m.write(0, pair(low(m.read(0)), half))

    def store_half(m: Operation) -> None:
        m.write(0, high(m.read(1)))

    section = "Intel SDM vol. 2B"
    enter(mnemonic, [f"{prefix} 0F 16 /r:m : Vx Mq"], load_half, section, sse=True, fast=True)
    enter(mnemonic, [f"{prefix} 0F 17 /r:m : Mq Vx"], store_half, section, sse=True, fast=True)


_low_half("movlps", "NP")
_low_half("movlpd", "66")
_high_half("movhps", "NP")
_high_half("movhpd", "66")


def _duplicate(mnemonic: str, form: str, *, aligned: bool) -> None:
    def semantic(m: Operation) -> None:
        if aligned:
            m.write(0, transform(mnemonic, read_aligned(m, 1)))
        else:
            value = m.read(1)
            m.write(0, pair(value, value))

    enter(mnemonic, [form], semantic, "Intel SDM vol. 2B", sse=True, fast=True)


_duplicate("movsldup", "F3 0F 12 /r : Vx Wx", aligned=True)
_duplicate("movshdup", "F3 0F 16 /r : Vx Wx", aligned=True)
_duplicate("movddup", "F2 0F 12 /r : Vx Wq", aligned=False)


# --- masks -----------------------------------------------------------------


def _sign_mask(mnemonic: str, form: str) -> None:
    def semantic(m: Operation) -> None:
        m.write(0, host_asm(u32, f"{mnemonic} $1, $0", "=r,x", m.read(1)))

    enter(mnemonic, [form], semantic, "Intel SDM vol. 2B", sse=True, fast=True)


_sign_mask("movmskps", "NP 0F 50 /r:r : Gd Ux")
_sign_mask("movmskpd", "66 0F 50 /r:r : Gd Ux")
_sign_mask("pmovmskb", "66 0F D7 /r:r : Gd Ux")


@staged
def masked_store(m: Operation, value: Any, bits: Any, count: int) -> None:
    """Store those of `count` bytes of a v128 at DS:rDI whose bit in `bits` (u32) is set.

    DS may be overridden; the address has the instruction's address size.
    """
    check_alignment(m.cpu, m.string_address(RDI, u64(0)), 8, 1)
    index = u64(0)
    rest = u128(value)
    while index < count:
        if ((bits >> index) & 1) != 0:
            m.store(u8, m.string_address(RDI, index), u8(rest))
        rest = rest >> 8
        index += 1


@instruction("66 0F F7 /r:r : Vx Ux", sse=True)
def maskmovdqu(m: Operation) -> None:
    "MASKMOVDQU (Intel SDM vol. 2B)."
    value, mask = m.read(0), m.read(1)
    bits = host_asm(u32, "pmovmskb $1, $0", "=r,x", mask)
    masked_store(m, value, bits, 16)


# --- widening and narrowing moves (SSE4.1) ----------------------------------

# The end of the name (pmovsxbw) and the size of the source, in the order of the opcodes.
_WIDENINGS = (("bw", "q"), ("bd", "d"), ("bq", "w"), ("wd", "q"), ("wq", "d"), ("dq", "q"))


def _widen(mnemonic: str, form: str) -> None:
    def semantic(m: Operation) -> None:
        m.write(0, transform(mnemonic, vector(m.read(1))))

    enter(mnemonic, [form], semantic, "Intel SDM vol. 2B", sse=True, fast=True)


for _index, (_kind, _size) in enumerate(_WIDENINGS):
    _widen(f"pmovsx{_kind}", f"66 0F 38 {0x20 + _index:02X} /r : Vx W{_size}")
    _widen(f"pmovzx{_kind}", f"66 0F 38 {0x30 + _index:02X} /r : Vx W{_size}")
