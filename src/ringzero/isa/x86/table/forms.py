"""The x86-64 instruction table: every encoding once, with its operands and semantics.

An instruction is one decorated function:

    @instruction(
        "00 /r : Eb Gb",
        "01 /r : Ev Gv",
        "83 /0 : Ev Ibs",
        rmw=True, lock=True,
    )
    def add(m: Operation) -> None:
        "ADD (Intel SDM vol. 2A)."

Each string is one *form*: encoding, colon, operands. The encoding is

    [NP|66|F3|F2] opcode bytes [+] [/r | /0../7 | =XX] [:m | :r]

A mandatory prefix comes first (NP: none of the three may be there; leave it
out where 66/F2/F3 have their ordinary meaning). `+` after the last opcode
byte: its low 3 bits name a register. `/r`: a ModRM byte; `/4`: one whose reg
field is 4; `=C8`: a ModRM byte of exactly that value. `:m` and `:r` restrict
to memory and to register operands. Two forms that match the same bytes are an
error when the table is built.

Operands are written as in the SDM's opcode map (vol. 2D, appendix A.2), an
addressing letter and a size:

    E  GPR or memory by ModRM.rm        G  GPR by ModRM.reg
    R  GPR by ModRM.rm, register only   M  memory only
    Z  GPR in the opcode byte           S  segment register by ModRM.reg
    C, D  control, debug register by ModRM.reg
    V  XMM by ModRM.reg   W  XMM or memory by ModRM.rm    U  XMM by ModRM.rm
    P  MMX by ModRM.reg   Q  MMX or memory by ModRM.rm    N  MMX by ModRM.rm
    F  x87 ST(i) by ModRM.rm
    I  immediate          J  branch displacement          O  memory at an absolute offset
    A  far pointer in the instruction
    H  XMM by VEX.vvvv    B  GPR by VEX.vvvv              L  XMM by bits 7:4 of an immediate

    b 8, w 16, d 32, q 64, x 128, qq 256 bits; v operand size (16, 32, 64);
    y 32, or 64 with REX.W; z 16 or 32 (an immediate of it is sign-extended);
    `Ibs`: 8 bits, sign-extended to the operand size.
    `M` without a size: an address only (LEA), or memory that the function
    reads and writes itself through m.address(n).

Fixed operands have their names: AL AX EAX RAX rAX (operand size) CL DX 1.

A form with a VEX prefix (SDM vol. 2A, 2.3) begins as the manual writes it:
"VEX.256.66.0F38.W0 36 /r : Vqq Hqq Wqq"; its length is 128, 256, LZ (0) or LIG (any).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LEGACY, MAP_0F, MAP_0F38, MAP_0F3A = range(4)
VEX_MAPS = {"0F": MAP_0F, "0F38": MAP_0F38, "0F3A": MAP_0F3A}
# Values of VEX.L and VEX.W that a word of a form's encoding stands for.
VEX_LENGTHS = {"128": (0,), "LZ": (0,), "256": (1,), "LIG": (0, 1)}
VEX_WIDTHS = {"W0": (0,), "W1": (1,), "WIG": (0, 1)}
# A value of the attribute `ends`.
IN_HANDLER = "handler"
# Letters of operands that are vector registers, or may be one.
VECTORS = "VWUHL"
MAPS = {b"": LEGACY, b"\x0f": MAP_0F, b"\x0f\x38": MAP_0F38, b"\x0f\x3a": MAP_0F3A}
SIZES = {"b": 8, "w": 16, "d": 32, "q": 64, "x": 128, "qq": 256}
FIXED = ("AL", "AX", "EAX", "RAX", "rAX", "CL", "DX", "1")
_OPERAND = re.compile(r"([A-Z])(bs|qq|[bwdqxvyz])?")


class TableError(Exception):
    """The instruction table contradicts itself; raised at import time."""


@dataclass(frozen=True)
class Operand:
    """One operand of a form: `letter` and `size` as in the module docstring; fixed ones by name."""

    letter: str
    size: str
    fixed: str = ""

    @property
    def is_modrm_rm(self) -> bool:
        """Whether ModRM.rm names it and it may be memory."""
        return self.letter in "EWQM" and not self.fixed

    @property
    def is_immediate(self) -> bool:
        return self.letter in "IJOA" and not self.fixed

    def bits(self, operand_size: int) -> int:
        """Return the width in bits under an operand size of 16, 32 or 64."""
        if self.fixed:
            widths = {"AL": 8, "CL": 8, "AX": 16, "DX": 16, "EAX": 32, "RAX": 64, "1": 8}
            return widths.get(self.fixed, operand_size)
        if self.size in SIZES:
            return SIZES[self.size]
        if self.size in ("v", "bs", "z"):
            return operand_size
        if self.size == "y":
            return 64 if operand_size == 64 else 32
        return 0


def parse_operand(text: str) -> Operand:
    """Parse one operand; raises TableError."""
    if text in FIXED:
        return Operand("", "", fixed=text)
    match = _OPERAND.fullmatch(text)
    if match is None:
        raise TableError(f"unknown operand {text!r}")
    return Operand(match[1], match[2] or "")


@dataclass(frozen=True)
class Vex:
    """The values of VEX.L and of VEX.W with which a form is encoded."""

    lengths: tuple[int, ...]
    widths: tuple[int, ...]


@dataclass
class Form:
    """One encoding of one instruction."""

    mnemonic: str
    text: str
    function: Callable[[Any], None]
    prefix: int | None  # None: any; 0: none of 66/F2/F3; else that byte
    opcode_map: int
    opcode: int
    opcode_register: bool
    has_modrm: bool
    digit: int | None
    exact: int | None
    restrict: str  # "", "m", "r"
    operands: tuple[Operand, ...]
    attributes: dict[str, Any]
    vex: Vex | None = None
    index: int = field(default=-1)

    @property
    def may_be_memory(self) -> bool:
        return self.has_modrm and self.restrict != "r" and (self.exact is None or self.exact < 0xC0)

    @property
    def may_be_register(self) -> bool:
        return self.restrict != "m" and (self.exact is None or self.exact >= 0xC0)

    @property
    def uses_vvvv(self) -> bool:
        """Whether VEX.vvvv names an operand; otherwise it must be 1111b."""
        return any(o.letter in "HB" and not o.fixed for o in self.operands)

    @property
    def sized(self) -> bool:
        """Whether its meaning depends on the operand size."""
        return bool(self.attributes.get("sized")) or any(
            o.size in ("v", "y", "z", "bs") or o.fixed == "rAX" for o in self.operands
        )

    def matches_modrm(self, modrm: int) -> bool:
        """Return whether a ModRM byte selects this form."""
        if self.exact is not None:
            return modrm == self.exact
        if self.digit is not None and modrm >> 3 & 7 != self.digit:
            return False
        is_register = modrm >= 0xC0
        return not (is_register and self.restrict == "m") and not (
            not is_register and self.restrict == "r"
        )


FORMS: list[Form] = []


def parse_vex(text: str) -> tuple[Vex, int, int]:
    """Return what VEX.<length>.<prefix>.<map>.<width> says: fields, mandatory prefix, map.

    No prefix stands for none of 66, F2, F3, no width for WIG; raises TableError.
    """
    words = text.split(".")
    prefix, widths = 0, VEX_WIDTHS["WIG"]
    try:
        if words[-1] in VEX_WIDTHS:
            widths = VEX_WIDTHS[words.pop()]
        if len(words) > 3:
            prefix = int(words.pop(2), 16)
        _, length, opcode_map = words
        return Vex(VEX_LENGTHS[length], widths), prefix, VEX_MAPS[opcode_map]
    except (KeyError, ValueError) as fault:
        raise TableError(f"cannot parse {text!r}") from fault


def parse_form(
    mnemonic: str, text: str, function: Callable[[Any], None], attributes: dict[str, Any]
) -> Form:
    """Parse a form's text; raises TableError."""
    encoding, _, operand_text = text.partition(" : ")
    tokens = encoding.split()
    prefix: int | None = None
    vex: Vex | None = None
    vex_map = LEGACY
    if tokens[0].startswith("VEX."):
        vex, prefix, vex_map = parse_vex(tokens.pop(0))
    elif tokens[0] == "NP":
        prefix = 0
        tokens.pop(0)
    elif tokens[0] in ("66", "F2", "F3") and len(tokens) > 1 and re.match("[0-9A-F]", tokens[1]):
        prefix = int(tokens.pop(0), 16)
    opcode_bytes = bytearray()
    register = has_modrm = False
    digit = exact = None
    restrict = ""
    for token in tokens:
        body, _, restricted = token.partition(":")
        restrict = restricted or restrict
        if body.startswith("/"):
            has_modrm = True
            digit = None if body == "/r" else int(body[1:])
        elif body.startswith("="):
            has_modrm = True
            exact = int(body[1:], 16)
        else:
            register = body.endswith("+")
            opcode_bytes.append(int(body.rstrip("+"), 16))
    leading = bytes(opcode_bytes[:-1])
    if leading not in MAPS or restrict not in ("", "m", "r"):
        raise TableError(f"{mnemonic}: cannot parse {text!r}")
    operands = tuple(parse_operand(t) for t in operand_text.split())
    if vex is not None and leading:
        raise TableError(f"{mnemonic}: {text!r} names its opcode map twice")
    if not has_modrm and any(o.letter in "EGRMSCDVWUPQNF" and not o.fixed for o in operands):
        raise TableError(f"{mnemonic}: {text!r} has operands of a ModRM byte but none is declared")
    return Form(
        mnemonic, text, function, prefix, vex_map or MAPS[leading], opcode_bytes[-1], register,
        has_modrm, digit, exact, restrict, operands, attributes, vex,
    )  # fmt: skip


def instruction(*forms: str, name: str | None = None, **attributes: Any) -> Callable[[Any], Any]:
    """Enter the decorated semantic function under each of `forms`.

    `name` is the mnemonic where it is not the function's own name (a trailing
    underscore is dropped). Attributes, all off by default:

    rmw         operand 0 is read and written: memory is checked for writing first
    lock        a LOCK prefix is allowed with a memory operand
    atomic      the memory operand is locked without the prefix (XCHG)
    d64         operand size is 64 bits in long mode by default (PUSH, near branches)
    d66         of those, one that ends a block and still has a 16-bit form with 66 (POPF)
    only64      does not exist outside 64-bit mode;  no64: does not exist in it
    ends        ends a translated block: a jump, or a change of mode, paging, flags;
                IN_HANDLER: where its handler runs it, while behind its stencil the block goes on
    shadows     holds interrupts off until the end of the next instruction, behind its stencil, too
    sized       behaves by operand size though no operand says so
    fpu         needs CR0.EM = CR0.TS = 0 (#NM otherwise)
    mmx, sse    the same, but #UD when CR0.EM is set;  sse: and when CR4.OSFXSR is not
    avx         needs the operating system's support: CR4.OSXSAVE, XCR0 (#UD), CR0.TS = 0 (#NM)
    privileged  #GP(0) when CPL is not 0
    condition   the condition code (0-15) of a CMOVcc or SETcc
    fast        the translator compiles it into stencils with registers pinned; "r", "m": only
                where ModRM names a register, or memory
    unread      its operands are not looked at (NOP)
    spilled     its stencils find general registers in the vCPU's struct, not in the host's;
                "m": only those with an operand in memory
    temporary   the number of its operand in VEX.vvvv, which its stencils without an operand in
                memory find in the temporary
    vsib        its memory operand has a vector of indices (SDM vol. 2A, 2.3.12)
    narrow66    its mandatory prefix 66 makes its operands 16 bits wide, too (MOVBE)
    replaces    it takes the place of a form of x86-64-v2 with the same encoding (LZCNT, BSR)
    needs       the host's feature, in LLVM's words, without which it raises #UD (aes, sha, fma)
    """

    def enter(function: Callable[[Any], None]) -> Callable[[Any], None]:
        mnemonic = name or function.__name__.rstrip("_")
        for text in forms:
            form = parse_form(mnemonic, text, function, attributes)
            form.index = len(FORMS)
            FORMS.append(form)
        return function

    return enter
