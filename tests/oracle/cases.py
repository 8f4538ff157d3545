"""Random cases: a `Form` filled with registers, an address and an immediate, and a state.

Most addresses point into the data pages, and what lies there is an operand
from the corner pools; a few cross a page, reach the read-only page, the hole
behind it or a non-canonical address, so that every fault is seen too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Final

from tests.oracle.encodings import Form, enumerate_forms, has_modrm, names
from tests.oracle.model import (
    ARITH_FLAGS,
    CODE_BASE,
    CODE_MIDDLE,
    CODE_SIZE,
    DATA_BASE,
    DATA_SIZE,
    FIXED_FLAGS,
    FLAG_BITS,
    FS_BASE,
    GS_BASE,
    PAGE,
    RAX,
    RBP,
    RBX,
    RCX,
    RDI,
    RDX,
    RO_BASE,
    RSI,
    RSP,
    Case,
    State,
)
from tests.oracle.operands import Operands

_LOCKABLE: Final = names(
    "add or adc sbb and sub xor not neg inc dec xchg xadd cmpxchg cmpxchg8b cmpxchg16b bts btr btc"
)
_STACK: Final = names("push pop call ret leave enter pushf pushfq popf popfq")
_STRING: Final = frozenset(
    op + size for op in ("movs", "cmps", "scas", "lods", "stos") for size in "bwdq"
)
_BIT_TESTS: Final = names("bt bts btr btc")
_FX_RESTORE: Final = names("fxrstor fxrstor64 ldmxcsr")
_SHORT_BRANCHES: Final = frozenset((*range(0x70, 0x80), *range(0xE0, 0xE4), 0xEB))
_SEGMENT_FS, _SEGMENT_GS = 0x64, 0x65


class Generator:
    """Makes cases of forms; the same seed gives the same cases."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.operands = Operands(self.rng)

    def cases(self, forms: Iterable[Form], per_form: int) -> list[Case]:
        """`per_form` cases of every form."""
        return [self.case(form) for form in forms for _ in range(per_form)]

    def case(self, form: Form) -> Case:
        """One case of `form`."""
        return _Builder(self, form).build()


class _Builder:
    """The parts of one case while they are chosen."""

    def __init__(self, generator: Generator, form: Form) -> None:
        self.rng = generator.rng
        self.operands = generator.operands
        self.form = form
        self.wide = form.mode == 64
        self.bits = 64 if self.wide else 32
        self.mask = (1 << self.bits) - 1
        self.gpr = self.operands.gprs()
        self.memory: list[tuple[int, bytes]] = []
        self.legacy = b""
        self.rex = 8 if form.rex_w else 0
        self.modrm = b""
        self.immediate = b""
        self.address: int | None = None
        self.relative_at: int | None = None
        self.rip = CODE_MIDDLE if self.rng.random() < 0.9 else CODE_MIDDLE + 0xF0

    def build(self) -> Case:
        rng = self.rng
        form = self.form
        self._implicit_registers()
        self.immediate = self._immediate()
        if form.memory is not None:
            digit = rng.randrange(8) if form.digit is None else form.digit
            if form.memory:
                self._memory_operand(digit)
            else:
                rm = rng.randrange(8) if form.rm is None else form.rm
                self.modrm = bytes([0xC0 | digit << 3 | rm])
                if form.rm is None and self.wide and rng.random() < 0.4:
                    self.rex |= 1
            if form.digit is None and self.wide and rng.random() < 0.4:
                self.rex |= 4
        elif self.wide and rng.random() < 0.1 and not form.prefixes.endswith(b"\xf3"):
            self.rex |= 1
        self._odd_prefixes()
        special = _SPECIAL.get(form.mnemonic)
        if special is not None:
            special(self)
        if form.memory:
            self._place_operand()
        code = self._encode()
        if not self.wide:
            self.gpr = [value & self.mask for value in self.gpr[:8]] + [0] * 8
        flags = FIXED_FLAGS | rng.getrandbits(12) & ARITH_FLAGS
        if rng.random() < 0.25:
            flags |= FLAG_BITS["DF"]
        if rng.random() < 0.01:
            flags |= FLAG_BITS["AC"]
        state = State.build(self.gpr, self.rip, flags, self.operands.fxsave())
        return Case(code, state, tuple(self.memory), form.mode, form.mnemonic)

    def _encode(self) -> bytes:
        form = self.form
        rex = b""
        if self.wide and (self.rex or self.rng.random() < 0.05):
            rex = bytes([0x40 | self.rex])
        head = self.legacy + form.prefixes + rex + form.opcode
        if self.relative_at is not None and self.address is not None:
            end = self.rip + len(head) + len(self.modrm) + len(self.immediate)
            displacement = (self.address - end) & 0xFFFF_FFFF
            self.modrm = self.modrm[: self.relative_at] + displacement.to_bytes(4, "little")
        return head + self.modrm + self.immediate

    def _odd_prefixes(self) -> None:
        """LOCK where it is allowed and (rarely) where it is not; ignored segment overrides."""
        rng = self.rng
        form = self.form
        kind = rng.random()
        if form.mnemonic in _LOCKABLE and form.memory and form.opcode[0] not in (0x02, 0x03):
            if kind < 0.2:
                self.legacy = b"\xf0" + self.legacy
                if self.address is not None and self.relative_at is None:
                    self._realign()
        elif kind < 0.01:
            self.legacy = b"\xf0" + self.legacy
        elif kind < 0.02 and form.mnemonic[0] != "j" and self.wide:
            self.legacy = rng.choice((b"\x2e", b"\x3e", b"\x26", b"\x36")) + self.legacy

    def _realign(self) -> None:
        """Keep locked operands inside a cache line: hosts may punish split locks."""
        if self.address is None:
            return
        shift = self.address & 15
        self.address -= shift
        for register in self._moved_by_address:
            self.gpr[register] = (self.gpr[register] - shift) & self._address_mask | (
                self.gpr[register] & ~self._address_mask
            )

    # Registers and immediates

    def data_address(self, room: int = 64, align: int = 1) -> int:
        """An address in the writable data pages with `room` bytes behind it."""
        return DATA_BASE + self.rng.randrange(64, DATA_SIZE - room, align)

    def _implicit_registers(self) -> None:
        rng = self.rng
        gpr = self.gpr
        kind = rng.random()
        if kind < 0.9 or self.form.mnemonic not in _STACK:
            gpr[RSP] = self.data_address(512, 8) + (256 if kind < 0.8 else 3)
        elif kind < 0.96:
            gpr[RSP] = rng.choice((DATA_BASE, RO_BASE, RO_BASE + PAGE)) + rng.randrange(-8, 9)
        if self.form.mnemonic in ("leave", "enter"):
            gpr[RBP] = self.data_address(256, 8) + 128
        if self.form.mnemonic in _STRING:
            self._string_registers()

    def _string_registers(self) -> None:
        rng = self.rng
        gpr = self.gpr
        gpr[RSI] = self.data_address(512) + 256
        kind = rng.random()
        gpr[RDI] = self.data_address(512) + 256
        if kind < 0.2:
            gpr[RDI] = gpr[RSI] + rng.randrange(-9, 10)
        elif kind < 0.3:
            gpr[RDI] = rng.choice((DATA_BASE, RO_BASE)) + rng.randrange(-32, 33)
        elif kind < 0.4:
            gpr[RSI] = rng.choice((DATA_BASE, RO_BASE + PAGE)) + rng.randrange(-32, 33)
        gpr[RCX] = rng.randrange(33) if rng.random() < 0.95 else rng.randrange(5000)
        if rng.random() < 0.3:
            gpr[RAX] = rng.randrange(3) * 0x0101_0101_0101_0101
        if rng.random() < 0.3:
            fill = bytes([gpr[RAX] & 0xFF]) * 64
            for address in (gpr[RDI], gpr[RSI]):
                if address - 32 >= DATA_BASE and address + 32 <= DATA_BASE + DATA_SIZE:
                    self.memory.append((address - 32, fill))

    def _immediate(self) -> bytes:
        form = self.form
        rng = self.rng
        size = form.immediate
        if size == 0:
            return b""
        opcode = form.opcode
        if opcode[0] in (0xA0, 0xA1, 0xA2, 0xA3) and not has_modrm(opcode):
            self.address = self._target()
            return (self.address & (1 << 8 * size) - 1).to_bytes(size, "little")
        short = (
            opcode[0] == 0xEB or opcode[0] in range(0x70, 0x80) or opcode[0] in range(0xE0, 0xE4)
        )
        if short and opcode[0] != 0x0F:
            return bytes([rng.randrange(0xF0)])  # not onto itself
        near = opcode in (b"\xe8", b"\xe9") or (opcode[0] == 0x0F and opcode[1] & 0xF0 == 0x80)
        if near and rng.random() < 0.9:
            return (rng.randrange(-0xE00, 0xE00) & 0xFFFF_FFFF).to_bytes(4, "little")
        if rng.random() < 0.5:
            return (rng.choice(self.operands.integers) & (1 << 8 * size) - 1).to_bytes(
                size, "little"
            )
        return rng.randbytes(size)

    # Memory operands

    def _target(self) -> int:
        """The linear address of a memory operand."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.78:
            return self.data_address(576, 16)
        if kind < 0.92:
            return self.data_address(576)
        if kind < 0.95:
            return DATA_BASE + PAGE * rng.randrange(1, 4) - rng.randrange(1, 16)
        if kind < 0.97:
            return RO_BASE + rng.randrange(-8, PAGE - 600)
        if kind < 0.98:
            return RO_BASE + PAGE - rng.randrange(16)
        if kind < 0.99 or not self.wide:
            return RO_BASE + PAGE * rng.randrange(1, 9) + rng.randrange(PAGE)
        return rng.getrandbits(64) | 1 << 62

    def _memory_operand(self, digit: int) -> None:
        """ModRM, SIB and displacement for a target, and the registers that lead there."""
        rng = self.rng
        self.address = target = self._target()
        self._address_mask = (1 << self.bits) - 1
        self._moved_by_address: tuple[int, ...] = ()
        segment = rng.random()
        if segment < 0.03:
            self.legacy += bytes([_SEGMENT_FS])
            target -= FS_BASE
        elif segment < 0.06:
            self.legacy += bytes([_SEGMENT_GS])
            target -= GS_BASE
        elif self.wide and segment < 0.1 and target < 1 << 32:
            self.legacy += b"\x67"
            self._address_mask = (1 << 32) - 1
        target &= (1 << 64) - 1
        kind = rng.random()
        signed = target if target < 1 << 63 else target - (1 << 64)
        if kind < 0.08 and self.wide and abs(signed - self.rip) < 1 << 30 and segment > 0.06:
            self.modrm = bytes([digit << 3 | 5])
            self.relative_at = 1
        elif kind < 0.16 and -(1 << 31) <= signed < 1 << 31:
            displacement = (signed & 0xFFFF_FFFF).to_bytes(4, "little")
            if self.wide or rng.random() < 0.5:
                self.modrm = bytes([digit << 3 | 4, 0x25]) + displacement
            else:
                self.modrm = bytes([digit << 3 | 5]) + displacement
        elif kind < 0.6:
            self._base_operand(digit, target)
        else:
            self._scaled_operand(digit, target)

    def _base_operand(self, digit: int, target: int) -> None:
        base = self.rng.choice((0, 1, 2, 3, 5, 6, 7))
        mod, displacement = self._displacement()
        if mod == 0 and base == RBP:
            mod, displacement = 1, 0
        self._append(mod << 6 | digit << 3 | base, b"", mod, displacement)
        self._lead(base | self._extend(1), target - displacement)

    def _scaled_operand(self, digit: int, target: int) -> None:
        rng = self.rng
        scale = rng.randrange(4)
        index = rng.randrange(8)
        extended = self._extend(2)
        base = rng.randrange(8)
        if base == RBP and rng.random() < 0.5:
            displacement = rng.randrange(-0x8000, 0x8000)
            sib = bytes([scale << 6 | index << 3 | base])
            wanted = (target - displacement) & ((1 << scale) - 1)
            displacement += wanted
            self._append(digit << 3 | 4, sib, 2, displacement)
            if index | extended == RSP:
                self.address = displacement
                return
            value = ((target - displacement) & self._address_mask) >> scale
            self._lead(index | extended, value, relative=scale == 0)
            return
        base_register = base | self._extend(1)
        mod, displacement = self._displacement()
        if mod == 0 and base == RBP:
            mod, displacement = 1, 0
        sib = bytes([scale << 6 | index << 3 | base])
        self._append(mod << 6 | digit << 3 | 4, sib, mod, displacement)
        index_register = index | extended
        offset = 0
        if index_register != RSP:
            if index_register == base_register:
                if scale:
                    self.address = None
                    return
                self._lead(base_register, ((target - displacement) & self._address_mask) >> 1,
                           relative=False)  # fmt: skip
                self.address = None
                return
            if rng.random() < 0.7:
                self.gpr[index_register] = rng.randrange(256)
            offset = self.gpr[index_register] << scale
        self._lead(base_register, target - displacement - offset)

    def _extend(self, bit: int) -> int:
        """8 when REX.B (1) or REX.X (2) is chosen."""
        if self.wide and self.rng.random() < 0.35:
            self.rex |= bit
            return 8
        return 0

    def _displacement(self) -> tuple[int, int]:
        rng = self.rng
        mod = rng.randrange(3)
        if mod == 0:
            return 0, 0
        return mod, rng.randrange(-128, 128) if mod == 1 else rng.randrange(-(1 << 31), 1 << 31)

    def _append(self, modrm: int, sib: bytes, mod: int, displacement: int) -> None:
        size = (0, 1, 4)[mod]
        tail = (displacement & (1 << 8 * size) - 1).to_bytes(size, "little")
        self.modrm = bytes([modrm]) + sib + tail

    def _lead(self, register: int, value: int, relative: bool = True) -> None:
        """Set an address register; with 32-bit addresses the upper half stays noise."""
        mask = self._address_mask
        self.gpr[register] = value & mask | self.gpr[register] & ~mask & (1 << 64) - 1
        if relative:
            self._moved_by_address = (register,)

    def _place_operand(self) -> None:
        """A corner operand where the memory operand is."""
        address = self.address
        if address is not None and self.rng.random() < 0.85:
            self.place(address, self.operands.vector())

    def place(self, address: int, content: bytes) -> None:
        """Initial memory, where it lies in the writable pages."""
        if DATA_BASE <= address <= DATA_BASE + DATA_SIZE - len(content):
            self.memory.append((address, content))

    @property
    def width(self) -> int:
        """Operand size in bits, as prefixes and opcode tell."""
        if self.form.rex_w:
            return 64
        return 16 if b"\x66" in self.form.prefixes else 32


def _small_dividend(builder: _Builder) -> None:
    """Most divisions should not overflow."""
    if builder.rng.random() < 0.6:
        builder.gpr[RDX] = builder.rng.choice((0, 0, (1 << 64) - 1, 1))
        if builder.rng.random() < 0.3:
            builder.gpr[RAX] &= 0xFF


def _bit_offset(builder: _Builder) -> None:
    """A register bit offset reaches memory far away: keep most of them near."""
    form = builder.form
    if form.memory and form.immediate == 0 and builder.rng.random() < 0.95:
        register = builder.modrm[0] >> 3 & 7 | (8 if builder.rex & 4 else 0)
        if register in getattr(builder, "_moved_by_address", ()):
            return
        offset = builder.rng.randrange(-2048, 2048)
        sib_uses = builder.gpr[register]
        builder.gpr[register] = offset & builder.mask
        if builder.modrm[0] & 7 == 4 and sib_uses != builder.gpr[register]:
            builder.address = None


def _compare_exchange(builder: _Builder) -> None:
    """Half of the time the comparison succeeds."""
    if builder.address is None or builder.rng.random() < 0.5:
        return
    accumulator = builder.gpr[RAX] & builder.mask
    if builder.form.mnemonic == "cmpxchg":
        builder.place(builder.address, accumulator.to_bytes(8, "little"))
    else:
        half = 8 if builder.form.mnemonic == "cmpxchg16b" else 4
        mask = (1 << 8 * half) - 1
        pair = (builder.gpr[RAX] & mask) | (builder.gpr[RDX] & mask) << 8 * half
        builder.place(builder.address, pair.to_bytes(2 * half, "little"))
    builder.address = None


def _code_pointer(builder: _Builder) -> None:
    """Indirect jumps and returns mostly go somewhere inside the code pages."""
    if builder.rng.random() < 0.1:
        return
    pointer = CODE_BASE + builder.rng.randrange(CODE_SIZE)
    form = builder.form
    if form.mnemonic == "ret":
        builder.place(builder.gpr[RSP] & builder.mask, pointer.to_bytes(8, "little"))
    elif form.memory and builder.address is not None:
        builder.place(builder.address, pointer.to_bytes(8, "little"))
        builder.address = None
    elif form.memory is False:
        register = builder.modrm[0] & 7 | (8 if builder.rex & 1 else 0)
        builder.gpr[register] = pointer


def _pop_flags(builder: _Builder) -> None:
    """Any flags but TF, whose trap is tested by itself."""
    flags = builder.rng.getrandbits(64) & ~FLAG_BITS["TF"]
    builder.place(builder.gpr[RSP] & builder.mask, flags.to_bytes(8, "little"))


def _frame(builder: _Builder) -> None:
    """ENTER: mostly small frames and few nested ones."""
    size = builder.rng.randrange(128)
    level = builder.rng.choice((0, 0, 0, 1, 2, 5, 31, 32, 33))
    builder.immediate = size.to_bytes(2, "little") + bytes([level])


def _translate(builder: _Builder) -> None:
    builder.gpr[RBX] = builder.data_address(512)


def _mask_move(builder: _Builder) -> None:
    builder.gpr[RDI] = builder.data_address(64)


def _restore_image(builder: _Builder) -> None:
    """FXRSTOR and LDMXCSR of something valid, most of the time."""
    if builder.address is None or builder.rng.random() < 0.1:
        return
    image = bytearray(builder.operands.fxsave())
    if builder.form.mnemonic == "ldmxcsr":
        image = image[24:28]
    builder.place(builder.address, bytes(image))
    builder.address = None


def _restore_environment(builder: _Builder) -> None:
    """FLDENV, FRSTOR: a control and status word that agree on pending exceptions."""
    if builder.address is None:
        return
    image = builder.operands.fxsave()
    size = 2 if b"\x66" in builder.form.prefixes else 4
    words = [image[0:2], image[2:4], builder.rng.randbytes(2)]
    builder.place(builder.address, b"".join(word.ljust(size, b"\xff") for word in words))
    builder.address = None


def _load_control(builder: _Builder) -> None:
    if builder.address is not None:
        builder.place(builder.address, builder.operands.fxsave()[:2])
        builder.address = None


def _decimal(builder: _Builder) -> None:
    """FBLD: digits, most of the time."""
    rng = builder.rng
    if builder.address is not None and rng.random() < 0.8:
        digits = bytes(rng.randrange(10) | rng.randrange(10) << 4 for _ in range(9))
        builder.place(builder.address, digits + bytes([rng.choice((0, 0x80))]))
        builder.address = None


_SPECIAL: Final[dict[str, Callable[[_Builder], None]]] = {
    "div": _small_dividend,
    "idiv": _small_dividend,
    **dict.fromkeys(_BIT_TESTS, _bit_offset),
    "cmpxchg": _compare_exchange,
    "cmpxchg8b": _compare_exchange,
    "cmpxchg16b": _compare_exchange,
    "jmp": _code_pointer,
    "call": _code_pointer,
    "ret": _code_pointer,
    "popf": _pop_flags,
    "popfq": _pop_flags,
    "popfd": _pop_flags,
    "enter": _frame,
    "xlatb": _translate,
    "maskmovq": _mask_move,
    "maskmovdqu": _mask_move,
    **dict.fromkeys(_FX_RESTORE, _restore_image),
    "fldenv": _restore_environment,
    "frstor": _restore_environment,
    "fldcw": _load_control,
    "fbld": _decimal,
}


def select_forms(mode: int = 64, only: str | None = None) -> list[Form]:
    """The forms of a mode; with `only` those in a comma list (a * at the end matches more)."""
    forms = enumerate_forms(mode)
    if not only:
        return list(forms)
    patterns = only.split(",")
    return [
        form
        for form in forms
        if any(
            form.mnemonic.startswith(p[:-1]) if p.endswith("*") else form.mnemonic == p
            for p in patterns
        )
    ]
