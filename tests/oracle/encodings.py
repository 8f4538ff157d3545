"""Which instruction encodings exist, from the opcode maps, named by Capstone.

Every opcode of the one-byte, 0F, 0F 38 and 0F 3A maps is tried with no prefix,
66, F2, F3 (and the pairs), REX.W, each ModRM digit, register and memory forms.
What Capstone decodes to the same text is the same form and kept once. Left
out: what must not or cannot be compared natively, and all that an x86-64-v2
CPU lacks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import capstone
from capstone import x86_const as x86


def names(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


_FORBIDDEN_GROUPS: Final = frozenset(
    getattr(x86, "X86_GRP_" + name)
    for name in names("""3DNOW ADX AES AVX AVX2 AVX512 BMI BMI2 BWI CDI DQI ERI F16C FMA FMA4
    FSGSBASE INT IRET PCLMUL PFI PRIVILEGE RTM SGX SHA SMAP SSE4A TBM VLX VM XOP""")
)
_FORBIDDEN: Final = names(
    """
    syscall sysenter sysexit sysret int int1 iret iretd iretq hlt
    in out insb insw insd outsb outsw outsd
    ljmp lcall retf retfq
    rdtsc rdtscp rdpmc rdrand rdseed rdpid cpuid xgetbv xsetbv
    xsave xsave64 xsavec xsavec64 xsaveopt xsaveopt64 xsaves xsaves64
    xrstor xrstor64 xrstors xrstors64
    lds les lfs lgs lss
    monitor mwait monitorx mwaitx umonitor umwait tpause
    clflushopt clwb clzero cldemote ptwrite serialize
    sgdt sidt sldt str smsw lmsw lgdt lidt lldt ltr lar lsl verr verw arpl
    vmcall vmmcall vmfunc getsec rsm pcommit encls enclu skinit stgi clgi
    lzcnt tzcnt movbe adcx adox pclmulqdq
    aesenc aesenclast aesdec aesdeclast aesimc aeskeygenassist
    movdiri movdir64b enqcmd enqcmds wbnoinvd wbinvd invd
    rdsspd rdsspq incsspd incsspq wrssd wrssq wrussd wrussq rstorssp saveprevssp
    setssbsy clrssbsy xabort xbegin xend xtest
    extrq insertq movntss movntsd femms loadall bndcl bndcn bndcu bndldx bndmk bndmov bndstx
    gf2p8affineinvqb gf2p8affineqb gf2p8mulb rdfsbase rdgsbase wrfsbase wrgsbase swapgs
    invpcid invept invvpid invlpg invlpga vmload vmsave vmrun clac stac pconfig
    sha1rnds4 sha1nexte sha1msg1 sha1msg2 sha256rnds2 sha256msg1 sha256msg2
    pfrcpv pfrsqrtv feni8087_nop fdisi8087_nop fsetpm
    clts rdmsr wrmsr rdpkru wrpkru enclv prefetchwt1 fstpnce
    montmul xcryptcbc xcryptcfb xcryptctr xcryptecb xcryptofb xsha1 xsha256 xstore
    """
)

_BRANCHES: Final = frozenset(
    [x86.X86_GRP_BRANCH_RELATIVE, x86.X86_GRP_CALL, x86.X86_GRP_JUMP, x86.X86_GRP_RET]
)
_TRAPS: Final = names("int3 into")
"""Members of Capstone's group of interrupts that stay inside the process (INT1 would, but
hosts that are guests themselves report its RIP wrongly)."""

_NO_MODRM_0F: Final = frozenset(
    b"\x05\x06\x07\x08\x09\x0b\x0e\x30\x31\x32\x33\x34\x35\x37\x77\xa0\xa1\xa2\xa8\xa9\xaa"
    + bytes(range(0x80, 0x90))
    + bytes(range(0xC8, 0xD0))
)
_MODRM_1: Final = frozenset(
    [op for row in range(0, 0x40, 8) for op in range(row, row + 4)]
    + [0x62, 0x63, 0x69, 0x6B, *range(0x80, 0x90), 0xC0, 0xC1, 0xC4, 0xC5, 0xC6, 0xC7]
    + [*range(0xD0, 0xD4), *range(0xD8, 0xE0), 0xF6, 0xF7, 0xFE, 0xFF]
)
_NOT_OPCODES_1: Final = frozenset(
    [0x0F, 0x26, 0x2E, 0x36, 0x3E, *range(0x64, 0x68), 0xF0, 0xF2, 0xF3]
)
_ABSENT_64: Final = frozenset(
    b"\x06\x07\x0e\x16\x17\x1e\x1f\x27\x2f\x37\x3f\x60\x61\x62\x82\x9a\xc4\xc5\xce\xd4\xd5\xd6\xea"
    + bytes(range(0x40, 0x50))
)
_SEGMENT_LOADS: Final = frozenset(
    bytes.fromhex(opcode) for opcode in names("8c 8e 06 07 0e 16 17 1e 1f 0fa0 0fa1 0fa8 0fa9")
)
"""MOV and POP to segment registers; also their stores, as selectors are the host's."""
_RM_SELECTS: Final = frozenset(
    [bytes([op]) for op in range(0xD8, 0xE0)] + [b"\x0f\x01", b"\x0f\x1e", b"\x0f\xae"]
)
"""Opcodes in which the rm field of a register form chooses the instruction."""
_PREFIXES: Final = (b"", b"\x66", b"\xf2", b"\xf3", b"\x66\xf2", b"\x66\xf3")


UNDEFINED: Final = "undefined"
"""The mnemonic of encodings that name no instruction."""


@dataclass(frozen=True, slots=True)
class Form:
    """One encoding with holes for registers, address and immediate.

    `digit` and `rm` are the fixed ModRM fields (None: any register). `memory`
    is None without ModRM. `immediate` counts the bytes behind the address.
    """

    mnemonic: str
    text: str
    mode: int
    prefixes: bytes
    rex_w: bool
    opcode: bytes
    memory: bool | None
    digit: int | None
    rm: int | None
    immediate: int


@functools.cache
def disassembler(mode: int, detail: bool = False) -> capstone.Cs:
    """Capstone for mode 64 or 32, Intel syntax."""
    engine = capstone.Cs(
        capstone.CS_ARCH_X86, capstone.CS_MODE_64 if mode == 64 else capstone.CS_MODE_32
    )
    engine.detail = detail
    return engine


def disassemble(code: bytes, address: int = 0, mode: int = 64) -> str:
    """The first instruction as text, or its bytes where Capstone knows none."""
    for _, _, mnemonic, operands in disassembler(mode).disasm_lite(code, address, 1):
        return f"{mnemonic} {operands}".strip()
    return f".byte {code.hex(' ')}"


@functools.cache
def enumerate_forms(mode: int = 64) -> tuple[Form, ...]:
    """All forms of the mode, in opcode order."""
    forms: dict[tuple[object, ...], Form] = {}
    for opcode in _opcodes(mode):
        for form in _merge_registers(list(_probe_opcode(opcode, mode))):
            forms.setdefault((form.opcode, form.text, form.immediate), form)
    for form in _unnamed(mode):
        forms[form.opcode, form.text, form.digit] = form
    return tuple(forms.values())


def _unnamed(mode: int) -> Iterator[Form]:
    """What every CPU executes though Capstone does not decode it.

    The second encodings of some x87 instructions, and the NOPs reserved for hints.
    """
    aliases = {(0xDC, 2): "fcom", (0xDC, 3): "fcomp", (0xDD, 1): "fxch", (0xDE, 2): "fcomp",
               (0xDF, 1): "fxch", (0xDF, 2): "fstp", (0xDF, 3): "fstp"}  # fmt: skip
    for (op, digit), mnemonic in aliases.items():
        text = f"{mnemonic} (second encoding)"
        yield Form(mnemonic, text, mode, b"", False, bytes([op]), False, digit, None, 0)
    for op in (0x18, 0x1A, 0x1B, 0x1C, 0x1D, 0x1E):
        yield Form("nop", "nop (hint)", mode, b"", False, bytes([0x0F, op]), False, None, None, 0)


def _opcodes(mode: int) -> Iterator[bytes]:
    for op in range(256):
        if op in _NOT_OPCODES_1 or (mode == 64 and op in _ABSENT_64):
            continue
        if mode == 32 and op in (0x62, 0xC4, 0xC5):  # with register operands: EVEX and VEX
            if op == 0x62:
                yield bytes([op])
            continue
        yield bytes([op])
    for op in range(256):
        if op not in (0x38, 0x3A, 0x0F, 0x24, 0x26, 0x36, 0x39):
            yield bytes([0x0F, op])
    for escape in (0x38, 0x3A):
        for op in range(256):
            yield bytes([0x0F, escape, op])


def has_modrm(opcode: bytes) -> bool:
    """Whether a ModRM byte follows (Intel SDM vol. 2 appendix A)."""
    if opcode[0] != 0x0F:
        return opcode[0] in _MODRM_1
    return len(opcode) == 3 or opcode[1] not in _NO_MODRM_0F


@functools.cache
def undefined_forms(mode: int = 64) -> tuple[Form, ...]:
    """Encodings that Capstone knows nothing of: they should raise #UD.

    The host has the last word, as it may be newer than Capstone: where it does
    not raise #UD, there is nothing to compare.
    """
    shapes = [shape for opcode in _opcodes(mode) for shape in _shapes(opcode, mode)]
    if mode == 64:
        rex_and_vex = {0x62, 0xC4, 0xC5, *range(0x40, 0x50)}
        absent = [bytes([op]) for op in sorted(_ABSENT_64 - rex_and_vex)]
        shapes += [
            Form(UNDEFINED, "", mode, b"", False, opcode, None, None, None, 0) for opcode in absent
        ]
    hints = frozenset(form.opcode for form in _unnamed(mode))
    return tuple(
        shape
        for shape in shapes
        if len(shape.prefixes) < 2 and shape.opcode not in hints and _decode(shape) is None
    )


def _shapes(opcode: bytes, mode: int) -> Iterator[Form]:
    """Every combination of prefixes, REX.W and ModRM fields that can matter."""
    for prefixes in _PREFIXES:
        for rex_w in (False, True) if mode == 64 else (False,):
            fields: list[tuple[bool | None, int | None, int | None]] = [(None, None, None)]
            if has_modrm(opcode):
                rms = range(8) if opcode in _RM_SELECTS else (None,)
                fields = [(True, digit, 3) for digit in range(8)]
                fields += [(False, digit, rm) for digit in range(8) for rm in rms]
            for memory, digit, rm in fields:
                yield Form(UNDEFINED, "", mode, prefixes, rex_w, opcode, memory, digit, rm, 0)


def _head(shape: Form) -> bytes:
    """The bytes up to the ModRM byte, with register 0 where any is allowed."""
    head = shape.prefixes + (b"\x48" if shape.rex_w else b"") + shape.opcode
    if shape.digit is not None:
        head += bytes([(0 if shape.memory else 0xC0) | shape.digit << 3 | (shape.rm or 0)])
    return head


def _decode(shape: Form) -> capstone.CsInsn | None:
    decoded = disassembler(shape.mode, detail=True).disasm(_head(shape) + b"\x11" * 12, 0x1000, 1)
    return next(decoded, None)


def _probe_opcode(opcode: bytes, mode: int) -> Iterator[Form]:
    """The shapes of an opcode that may be executed natively, named."""
    if opcode in _SEGMENT_LOADS:
        return
    for shape in _shapes(opcode, mode):
        insn = _decode(shape)
        if insn is None or not _wanted(shape, insn):
            continue
        yield replace(
            shape,
            mnemonic=insn.insn_name(),
            text=f"{insn.mnemonic} {insn.op_str}".strip(),
            immediate=insn.size - len(_head(shape)),
        )


def _wanted(shape: Form, insn: capstone.CsInsn) -> bool:
    mnemonic = insn.insn_name()
    groups = set(insn.groups)
    if (mnemonic in _FORBIDDEN or groups & _FORBIDDEN_GROUPS) and mnemonic not in _TRAPS:
        return False
    if b"\x66" in shape.prefixes and groups & _BRANCHES:
        return False  # AMD and Intel differ: the one truncates RIP, the other ignores 66
    return insn.size >= len(_head(shape)) and mnemonic[0] != "v"


def _merge_registers(forms: list[Form]) -> Iterator[Form]:
    """Fold forms which differ only in the registers that a ModRM field names."""
    groups: dict[tuple[object, ...], list[Form]] = {}
    for form in forms:
        key = (form.prefixes, form.rex_w, form.memory, form.immediate)
        groups.setdefault(key, []).append(form)
    for group in groups.values():
        by_digit: dict[int | None, list[Form]] = {}
        for form in group:
            by_digit.setdefault(form.digit, []).append(form)
        folded = [_fold(members, "rm") for members in by_digit.values()]
        if len(folded) == 8 and all(len(row) == 1 for row in folded):
            singles = [row[0] for row in folded]
            yield from _fold(singles, "digit")
        else:
            for row in folded:
                yield from row


def _fold(forms: list[Form], field: str) -> list[Form]:
    """One form with `field` open, when all eight values name the same instruction."""
    first = forms[0]
    if field == "rm" and first.rm is None:
        return forms
    if len(forms) != 8 or any(form.mnemonic != first.mnemonic for form in forms):
        return forms
    return [replace(first, digit=None) if field == "digit" else replace(first, rm=None)]
