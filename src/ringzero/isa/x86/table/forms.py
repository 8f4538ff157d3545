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

    b 8, w 16, d 32, q 64, x 128 bits; v operand size (16, 32, 64);
    y 32, or 64 with REX.W; z 16 or 32 (an immediate of it is sign-extended);
    `Ibs`: 8 bits, sign-extended to the operand size.
    `M` without a size: an address only (LEA), or memory that the function
    reads and writes itself through m.address(n).

Fixed operands have their names: AL AX EAX RAX rAX (operand size) CL DX 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LEGACY, MAP_0F, MAP_0F38, MAP_0F3A = range(4)
MAPS = {b"": LEGACY, b"\x0f": MAP_0F, b"\x0f\x38": MAP_0F38, b"\x0f\x3a": MAP_0F3A}
SIZES = {"b": 8, "w": 16, "d": 32, "q": 64, "x": 128}
FIXED = ("AL", "AX", "EAX", "RAX", "rAX", "CL", "DX", "1")
_OPERAND = re.compile(r"([A-Z])(bs|[bwdqxvyz])?")


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
    index: int = field(default=-1)

    @property
    def may_be_memory(self) -> bool:
        return self.has_modrm and self.restrict != "r" and (self.exact is None or self.exact < 0xC0)

    @property
    def may_be_register(self) -> bool:
        return self.restrict != "m" and (self.exact is None or self.exact >= 0xC0)

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


def parse_form(
    mnemonic: str, text: str, function: Callable[[Any], None], attributes: dict[str, Any]
) -> Form:
    """Parse a form's text; raises TableError."""
    encoding, _, operand_text = text.partition(" : ")
    tokens = encoding.split()
    prefix: int | None = None
    if tokens[0] == "NP":
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
    if not has_modrm and any(o.letter in "EGRMSCDVWUPQNF" and not o.fixed for o in operands):
        raise TableError(f"{mnemonic}: {text!r} has operands of a ModRM byte but none is declared")
    return Form(
        mnemonic, text, function, prefix, MAPS[leading], opcode_bytes[-1], register,
        has_modrm, digit, exact, restrict, operands, attributes,
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
    ends        ends a translated block: a jump, or a change of mode, paging, flags
    sized       behaves by operand size though no operand says so
    fpu         needs CR0.EM = CR0.TS = 0 (#NM otherwise)
    mmx, sse    the same, but #UD when CR0.EM is set;  sse: and when CR4.OSFXSR is not
    privileged  #GP(0) when CPL is not 0
    condition   the condition code (0-15) of a CMOVcc or SETcc
    fast        the translator compiles it into stencils with registers pinned; "r", "m": only
                where ModRM names a register, or memory
    unread      its operands are not looked at (NOP)
    """

    def enter(function: Callable[[Any], None]) -> Callable[[Any], None]:
        mnemonic = name or function.__name__.rstrip("_")
        for text in forms:
            form = parse_form(mnemonic, text, function, attributes)
            form.index = len(FORMS)
            FORMS.append(form)
        return function

    return enter
