"""AES-NI, PCLMULQDQ, SHA, and AES and PCLMULQDQ with a VEX prefix (VAES, VPCLMULQDQ).

The host's own instructions do it, as nothing else is as fast or as quiet about its
operands. Intel SDM vol. 2, under each name.
"""

from __future__ import annotations

from ringzero.isa.x86.insn.lanes import Twins, enter_twins, names
from ringzero.isa.x86.insn.sse_operands import (
    combine,
    enter,
    high,
    imm8,
    low,
    read_aligned,
    transform,
    vector,
)
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import host_asm, select, u128, v128

SDM = "Intel SDM vol. 2"


def _two_operands(mnemonic: str, encoding: str, needs: str) -> None:
    def semantic(m: Operation) -> None:
        second = read_aligned(m, 1)
        m.write(0, combine(mnemonic, m.read(0), second))

    form = f"{encoding} /r : Vx Wx"
    enter(mnemonic, [form], semantic, SDM, sse=True, fast=True, needs=needs)


for _index, _mnemonic in enumerate(("aesenc", "aesenclast", "aesdec", "aesdeclast")):
    _two_operands(_mnemonic, f"66 0F 38 {0xDC + _index:02X}", "aes")
for _mnemonic, _opcode in {
    "sha1nexte": 0xC8, "sha1msg1": 0xC9, "sha1msg2": 0xCA, "sha256msg1": 0xCC, "sha256msg2": 0xCD,
}.items():  # fmt: skip
    _two_operands(_mnemonic, f"NP 0F 38 {_opcode:02X}", "sha_ni")


@instruction("66 0F 38 DB /r : Vx Wx", sse=True, fast=True, needs="aes")
def aesimc(m: Operation) -> None:
    "AESIMC (Intel SDM vol. 2A)."
    m.write(0, transform("aesimc", read_aligned(m, 1)))


@instruction("66 0F 3A DF /r : Vx Wx Ib", sse=True, fast=True, needs="aes")
def aeskeygenassist(m: Operation) -> None:
    "AESKEYGENASSIST (Intel SDM vol. 2A): the immediate goes into doublewords 1 and 3."
    value = host_asm(v128, "aeskeygenassist $$0, $1, $0", "=x,x", read_aligned(m, 1))
    imm = u128(imm8(m, 2))
    m.write(0, value ^ v128((imm << 32) | (imm << 96)))


@instruction("66 0F 3A 44 /r : Vx Wx Ib", sse=True, fast=True, needs="pclmulqdq")
def pclmulqdq(m: Operation) -> None:
    "PCLMULQDQ (Intel SDM vol. 2B): bits 0 and 4 of the immediate choose quadwords."
    second = read_aligned(m, 1)
    first = m.read(0)
    imm = imm8(m, 2)
    left = vector(select((imm & 1) != 0, high(first), low(first)))
    right = vector(select((imm & 16) != 0, high(second), low(second)))
    m.write(0, host_asm(v128, "pclmulqdq $$0, $2, $0", "=x,0,x", left, right))


@instruction("NP 0F 38 CB /r : Vx Wx", sse=True, fast=True, needs="sha_ni")
def sha256rnds2(m: Operation) -> None:
    "SHA256RNDS2 (Intel SDM vol. 2B): XMM0 has the words and constants."
    second = read_aligned(m, 1)
    asm = "sha256rnds2 %xmm0, $2, $0"
    words = m.cpu.xmm[0]
    m.write(0, host_asm(v128, asm, "=x,0,x,{xmm0}", m.read(0), second, words))


@instruction("NP 0F 3A CC /r : Vx Wx Ib", sse=True, fast=True, needs="sha_ni")
def sha1rnds4(m: Operation) -> None:
    "SHA1RNDS4 (Intel SDM vol. 2B): bits 1:0 of the immediate choose function and constant."
    second = read_aligned(m, 1)
    first = m.read(0)
    imm = imm8(m, 2) & 3
    result = first
    for number in range(4):
        if imm == number:
            asm = f"sha1rnds4 $${number}, $2, $0"
            result = host_asm(v128, asm, "=x,0,x", first, second)
    m.write(0, result)


_VECTORS = names("aesenc aesenclast aesdec aesdeclast pclmulqdq")
enter_twins(
    __name__,
    "crypto",
    Twins(
        unary=names("aesimc aeskeygenassist"),
        both=_VECTORS,
        left_out=names("sha1nexte sha1msg1 sha1msg2 sha256msg1 sha256msg2 sha256rnds2 sha1rnds4"),
    ),
)
