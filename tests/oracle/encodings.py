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
from dataclasses import dataclass
from typing import Final

import capstone
from capstone import x86_const as x86

_FORBIDDEN_GROUPS: Final = frozenset(
    getattr(x86, "X86_GRP_" + name)
    for name in """3DNOW ADX AES AVX AVX2 AVX512 BMI BMI2 BWI CDI DQI ERI F16C FMA FMA4 FSGSBASE
    INT IRET PCLMUL PFI PRIVILEGE RTM SGX SHA SMAP SSE4A TBM VLX VM XOP""".split()
)
_FORBIDDEN: Final = frozenset(
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
    """.split()
)

_NO_MODRM_0F: Final = frozenset(
    [0x05, 0x06, 0x07, 0x08, 0x09, 0x0B, 0x0E, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x37, 0x77]
    + [*range(0x80, 0x90), 0xA0, 0xA1, 0xA2, 0xA8, 0xA9, 0xAA, *range(0xC8, 0xD0)]
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
    [0x06, 0x07, 0x0E, 0x16, 0x17, 0x1E, 0x1F, 0x27, 0x2F, 0x37, 0x3F, 0x60, 0x61, 0x62, 0x82]
    + [0x9A, 0xC4, 0xC5, 0xCE, 0xD4, 0xD5, 0xD6, 0xEA, *range(0x40, 0x50)]
)
_SEGMENT_LOADS: Final = frozenset(
    [b"\x8e", b"\x07", b"\x17", b"\x1f", b"\x0f\xa1", b"\x0f\xa9", b"\x8c"]
    + [b"\x06", b"\x0e", b"\x16", b"\x1e", b"\x0f\xa0", b"\x0f\xa8"]
)
"""MOV and POP to segment registers; also their stores, as selectors are the host's."""
_RM_SELECTS: Final = frozenset(
    [bytes([op]) for op in range(0xD8, 0xE0)] + [b"\x0f\x01", b"\x0f\x1e", b"\x0f\xae"]
)
"""Opcodes in which the rm field of a register form chooses the instruction."""
_PREFIXES: Final = (b"", b"\x66", b"\xf2", b"\xf3", b"\x66\xf2", b"\x66\xf3")


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
    return tuple(forms.values())


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


def _probe_opcode(opcode: bytes, mode: int) -> Iterator[Form]:
    if opcode in _SEGMENT_LOADS:
        return
    for prefixes in _PREFIXES:
        for rex_w in (False, True) if mode == 64 else (False,):
            if not has_modrm(opcode):
                form = _probe(mode, prefixes, rex_w, opcode, None, None, None)
                if form is not None:
                    yield form
                continue
            for digit in range(8):
                form = _probe(mode, prefixes, rex_w, opcode, True, digit, 3)
                if form is not None:
                    yield form
                if opcode not in _RM_SELECTS:
                    form = _probe(mode, prefixes, rex_w, opcode, False, digit, None)
                    if form is not None:
                        yield form
                    continue
                for rm in range(8):
                    form = _probe(mode, prefixes, rex_w, opcode, False, digit, rm)
                    if form is not None:
                        yield form


def _probe(
    mode: int,
    prefixes: bytes,
    rex_w: bool,
    opcode: bytes,
    memory: bool | None,
    digit: int | None,
    rm: int | None,
) -> Form | None:
    rex = b"\x48" if rex_w else b""
    head = prefixes + rex + opcode
    if digit is not None:
        head += bytes([(0 if memory else 0xC0) | digit << 3 | (rm or 0)])
    for insn in disassembler(mode, detail=True).disasm(head + b"\x11" * 12, 0x1000, 1):
        mnemonic = insn.insn_name()
        groups = set(insn.groups)
        if mnemonic in _FORBIDDEN or groups & _FORBIDDEN_GROUPS or insn.size < len(head):
            return None
        if b"\x66" in prefixes and groups & {x86.X86_GRP_BRANCH_RELATIVE, x86.X86_GRP_CALL,
                                             x86.X86_GRP_JUMP, x86.X86_GRP_RET}:  # fmt: skip
            return None  # AMD and Intel differ: the one truncates RIP, the other ignores 66
        if mnemonic.startswith("v") or " " in mnemonic:
            return None
        text = f"{insn.mnemonic} {insn.op_str}".strip()
        immediate = insn.size - len(head)
        return Form(
            mnemonic, text, mode, prefixes, rex_w, opcode, memory, digit, rm, immediate
        )  # fmt: skip
    return None


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
    if len(forms) != 8 or any(f.mnemonic != first.mnemonic for f in forms):
        return forms
    values = {
        "mnemonic": first.mnemonic, "text": first.text, "mode": first.mode,
        "prefixes": first.prefixes, "rex_w": first.rex_w, "opcode": first.opcode,
        "memory": first.memory, "digit": first.digit, "rm": first.rm,
        "immediate": first.immediate, field: None,
    }  # fmt: skip
    return [Form(**values)]  # type: ignore[arg-type]
