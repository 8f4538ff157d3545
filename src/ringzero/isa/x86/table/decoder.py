"""The decoder: tables built from the instruction table, and native code that reads them.

Two levels: the opcode table gives, for mode, mandatory prefix, opcode map and
opcode byte (with a VEX prefix: VEX.L and VEX.W in place of the mode), a form or a
group; a group gives a form for every ModRM byte.
Prefixes, ModRM, SIB and immediates are those of the SDM vol. 2, chapter 2.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

from ringzero.isa.x86.cpu import (
    DS,
    MODE_16,
    MODE_64,
    SS,
    Cpu,
    Insn,
    Segment,
)
from ringzero.isa.x86.table.entry import (
    DEFAULT_64,
    ENDS,
    FORCE_64,
    HAS_MODRM,
    IGNORE_66,
    OPCODE_REGISTER,
    USES_VVVV,
    VSIB,
    WIDE_ONLY,
    FormEntry,
)
from ringzero.isa.x86.table.forms import MAP_0F, MAP_0F3A, Form, TableError
from ringzero.native import (
    i8,
    i16,
    i32,
    i64,
    load,
    native,
    pointer,
    select,
    staged,
    u8,
    u16,
    u32,
    u64,
)

# Order of mandatory prefixes in the opcode table.
PREFIXES = (0, 0x66, 0xF3, 0xF2)
GROUP = 0x8000

# What decode() returns.
DECODED, UNKNOWN = 0, 1
MAX_LENGTH = 15

# Kinds of immediate.
IMM_NONE, IMM_8, IMM_16, IMM_Z, IMM_V, IMM_ADDRESS = range(6)


@dataclass(frozen=True)
class DecoderTables:
    """The opcode and group tables, as arrays of u16."""

    opcodes: array[int]
    groups: array[int]


def opcode_index(mode64: bool, prefix: int, opcode_map: int, opcode: int) -> int:
    """Return the place of an opcode in the opcode table; `prefix` indexes PREFIXES."""
    return ((int(mode64) * 4 + prefix) * 4 + opcode_map) * 256 + opcode


# Places in the opcode table: of encodings without VEX prefix, and of those with one.
_LEGACY_PLACES = 2 * 4 * 4 * 256
_VEX_PLACES = 4 * 4 * 4 * 256


def vex_index(length: int, width: int, prefix: int, opcode_map: int, opcode: int) -> int:
    """Return the place of an opcode with a VEX prefix: VEX.L, VEX.W, VEX.pp (as in PREFIXES)."""
    fields = (length * 2 + width) * 4 + prefix
    return _LEGACY_PLACES + (fields * 4 + opcode_map) * 256 + opcode


def _places(form: Form) -> list[int]:
    """Return the places of a form in the opcode table."""
    if form.vex is not None:
        prefix = PREFIXES.index(form.prefix or 0)
        return [
            vex_index(length, width, prefix, form.opcode_map, form.opcode)
            for length in form.vex.lengths
            for width in form.vex.widths
        ]
    opcodes = range(form.opcode, form.opcode + 8) if form.opcode_register else (form.opcode,)
    return [
        opcode_index(mode64, number, form.opcode_map, opcode)
        for mode64 in (False, True)
        if not form.attributes.get("no64" if mode64 else "only64")
        for number, prefix in enumerate(PREFIXES)
        if form.prefix is None or form.prefix == prefix
        for opcode in opcodes
    ]


def build_tables(forms: list[Form]) -> DecoderTables:
    """Build the tables; raises TableError when two forms claim the same bytes.

    Form n appears as n + 1; 0 means that nothing is there.
    """
    slots: dict[int, list[Form]] = {}
    for form in forms:
        for index in _places(form):
            slots.setdefault(index, []).append(form)
    opcodes_table = array("H", bytes(2 * (_LEGACY_PLACES + _VEX_PLACES)))
    groups = array("H")
    known: dict[tuple[int, ...], int] = {}
    for index, claimants in slots.items():
        if not any(f.has_modrm for f in claimants):
            if len(claimants) > 1:
                raise TableError(_overlap(claimants))
            opcodes_table[index] = claimants[0].index + 1
            continue
        group = []
        for modrm in range(256):
            matching = [f for f in claimants if not f.has_modrm or f.matches_modrm(modrm)]
            matching = [f for f in matching if f.attributes.get("replaces")] or matching
            if len(matching) > 1:
                raise TableError(_overlap(matching) + f" at ModRM {modrm:02X}")
            group.append(matching[0].index + 1 if matching else 0)
        key = tuple(group)
        if key not in known:
            known[key] = len(groups) // 256
            groups.extend(group)
        opcodes_table[index] = GROUP | known[key]
    return DecoderTables(opcodes_table, groups)


def _overlap(forms: list[Form]) -> str:
    return "overlapping encodings: " + ", ".join(f"{f.mnemonic} ({f.text})" for f in forms)


def immediates(form: Form) -> tuple[int, int]:
    """Return the kinds of a form's first and second immediate."""
    kinds = []
    for operand in form.operands:
        if operand.letter == "L":
            kinds.append(IMM_8)
        if not operand.is_immediate:
            continue
        if operand.letter == "O":
            kinds.append(IMM_ADDRESS)
        elif operand.letter == "A":
            kinds += [IMM_Z, IMM_16]
        else:
            sizes = {"b": IMM_8, "bs": IMM_8, "w": IMM_16, "z": IMM_Z, "v": IMM_V}
            kinds.append(sizes[operand.size])
    kinds += [IMM_NONE] * (2 - len(kinds))
    return kinds[0], kinds[1]


def entry_flags(form: Form) -> int:
    """Return FormEntry.flags of a form."""
    d64 = bool(form.attributes.get("d64"))
    ends = bool(form.attributes.get("ends"))
    return (
        HAS_MODRM * form.has_modrm
        | DEFAULT_64 * d64
        | FORCE_64 * (d64 and ends and not form.attributes.get("d66"))
        | IGNORE_66 * (form.prefix == 0x66 and not form.attributes.get("narrow66"))
        | OPCODE_REGISTER * form.opcode_register
        | ENDS * ends
        | USES_VVVV * form.uses_vvvv
        | VSIB * bool(form.attributes.get("vsib"))
        | WIDE_ONLY * (form.vex is not None and bool(form.attributes.get("only64")))
    )


_ZERO = Cpu.offset_of("zero")
_REGS = Cpu.offset_of("regs")
_NEXT_RIP = Cpu.offset_of("next_rip")
_SEGMENTS = Cpu.offset_of("seg")
# 16-bit addressing (SDM vol. 2, table 2-1): base and index register by ModRM.rm.
_BASE16 = (3, 3, 5, 5, 6, 7, 5, 3)
_INDEX16 = (6, 7, 6, 7, None, None, None, None)


@staged
def _register_offset(number: Any) -> Any:
    return u32(number) * 8 + _REGS


@staged
def _byte_register(number: Any, rex: Any) -> Any:
    """Byte offset in Cpu.regs of an 8-bit register: AH to BH without REX, else the low bytes."""
    high = (rex == 0) & (number >= 4) & (number < 8)
    return u8(select(high, (number - 4) * 8 + 1, number * 8))


@staged
def _signed_byte(p: Any) -> Any:
    return u64(i64(i8(load(u8, p))))


@staged
def _signed_word(p: Any) -> Any:
    return u64(i64(i16(load(u16, p))))


@staged
def _signed_dword(p: Any) -> Any:
    return u64(i64(i32(load(u32, p))))


@native(inline="never")
def decode_memory16(cpu: Cpu, insn: Insn, p: u64, modrm: u64) -> u64:
    """Decode 16-bit addressing after a ModRM byte; return the bytes used."""
    mod, rm = modrm >> 6, modrm & 7
    used = u64(0)
    insn.index = _ZERO
    insn.scale = 0
    for number in range(8):
        if rm == number:
            insn.base = _BASE16[number] * 8 + _REGS
            index = _INDEX16[number]
            if index is not None:
                insn.index = index * 8 + _REGS
    if mod == 1:
        insn.disp = _signed_byte(p)
        used = u64(1)
    elif mod == 2 or rm == 6:
        insn.disp = _signed_word(p)
        used = u64(2)
        if mod == 0:
            insn.base = _ZERO
    in_stack = (rm == 2) | (rm == 3) | ((rm == 6) & (mod != 0))
    if insn.segment_override == 0xFF:
        insn.segment = select(in_stack, u32(SS * Segment.size), u32(DS * Segment.size)) + _SEGMENTS
    return used


@native(inline="never")
def decode_memory(cpu: Cpu, insn: Insn, p: u64, modrm: u64, rex: u64, mode: u32) -> u64:
    """Decode 32 and 64-bit addressing after a ModRM byte; return the bytes used."""
    mod, rm = modrm >> 6, modrm & 7
    used = u64(0)
    base = rm | ((rex & 1) << 3)
    insn.index = _ZERO
    insn.scale = 0
    if rm == 4:
        sib = u64(load(u8, p))
        used = u64(1)
        base = (sib & 7) | ((rex & 1) << 3)
        index = ((sib >> 3) & 7) | ((rex & 2) << 2)
        if index != 4:
            insn.index = _register_offset(index)
            insn.scale = u8(sib >> 6)
    insn.base = _register_offset(base)
    if mod == 1:
        insn.disp = _signed_byte(p + used)
        used += 1
    elif mod == 2:
        insn.disp = _signed_dword(p + used)
        used += 4
    elif (base & 7) == 5:
        insn.disp = _signed_dword(p + used)
        used += 4
        insn.base = select((rm == 5) & (mode == MODE_64), u32(_NEXT_RIP), u32(_ZERO))
    stack = ((base == 4) | (base == 5)) & (insn.base != _ZERO) & (insn.base != _NEXT_RIP)
    if insn.segment_override == 0xFF:
        if mode == MODE_64:
            insn.segment = _ZERO
        else:
            insn.segment = select(stack, u32(SS * Segment.size), u32(DS * Segment.size)) + _SEGMENTS
    return used


@staged
def _immediate(insn: Any, p: Any, used: Any, kind: Any, op_size: Any, address_size: Any) -> Any:
    """Return an immediate and the bytes used after it."""
    value = u64(0)
    length = u64(1)
    if kind == IMM_8:
        value = _signed_byte(p + used)
    elif kind == IMM_16 or (kind != IMM_ADDRESS and op_size == 1):
        value = _signed_word(p + used)
        length = u64(2)
    elif kind == IMM_Z or (kind == IMM_V and op_size == 2):
        value = _signed_dword(p + used)
        length = u64(4)
    elif kind == IMM_V or address_size == 3:
        value = load(u64, p + used)
        length = u64(8)
    elif address_size == 2:
        value = u64(load(u32, p + used))
        length = u64(4)
    else:
        value = u64(load(u16, p + used))
        length = u64(2)
    return value, used + length


@staged
def _vex_follows(mode: Any, p: Any, used: Any, byte: Any) -> Any:
    """Whether `byte` begins a VEX prefix: outside 64-bit mode LES and LDS are there, too.

    Those have operands in memory. Code of 16 bits is not looked at.
    """
    registers = (load(u8, p + used + 1) & 0xC0) == 0xC0
    return ((byte & 0xFE) == 0xC4) & ((mode == MODE_64) | ((mode != MODE_16) & registers))


@native(inline="never")
def decode(cpu: Cpu, insn: Insn, p: u64, mode: u32) -> u32:
    """Decode the instruction at host address `p`, where at least 32 bytes can be read.

    Fills `insn`; returns DECODED or UNKNOWN (#UD). The length may exceed what the
    caller has of guest code (it checks) and 15 (it raises #GP).
    """
    used = u64(0)
    operand_prefix = u32(0)
    address_prefix = u32(0)
    rep = u32(0)
    lock = u32(0)
    rex = u64(0)
    override = u32(0xFF)
    byte = u32(load(u8, p))
    while used < MAX_LENGTH:
        if byte == 0x66:
            operand_prefix = u32(1)
            rex = u64(0)
        elif byte == 0x67:
            address_prefix = u32(1)
            rex = u64(0)
        elif byte == 0xF0:
            lock = u32(1)
            rex = u64(0)
        elif (byte & 0xFE) == 0xF2:
            rep = byte
            rex = u64(0)
        elif (byte & 0xE7) == 0x26:
            if mode != MODE_64:
                override = (byte >> 3) & 3
            rex = u64(0)
        elif byte == 0x64 or byte == 0x65:
            override = byte - 0x60
            rex = u64(0)
        elif mode == MODE_64 and (byte & 0xF0) == 0x40:
            rex = u64(byte)
        else:
            break
        used += 1
        byte = u32(load(u8, p + used))
    opcode_map = u32(0)
    vvvv = u32(0)
    vex = u32(_vex_follows(mode, p, used, byte))
    index = u32(0)
    if vex != 0:
        used += 1
        fields = u32(load(u8, p + used))
        opcode_map = u32(MAP_0F)
        vex = ((fields >> 5) & 4) ^ 4
        if byte == 0xC4:
            # R, X and B lie as in a REX prefix, inverted.
            vex = (fields >> 5) ^ 7
            opcode_map = fields & 0x1F
            used += 1
            fields = u32(load(u8, p + used))
            vex = vex | ((fields >> 4) & 8)
        used += 1
        byte = u32(load(u8, p + used))
        vvvv = ((fields >> 3) & 15) ^ 15
        if mode != MODE_64:
            vex = vex & 8
            vvvv = vvvv & 7
        known = (opcode_map >= MAP_0F) & (opcode_map <= MAP_0F3A)
        if (operand_prefix | rep | lock | u32(rex)) != 0 or not known:
            insn.length = u8(used)
            return u32(UNKNOWN)
        selected = (((fields & 4) << 1) | ((vex & 8) >> 1) | (fields & 3)) << 10
        index = _LEGACY_PLACES + (selected | (opcode_map << 8) | byte)
        rex = u64(vex)
        vex = u32(1)
        used += 1
    else:
        if byte == 0x0F:
            used += 1
            byte = u32(load(u8, p + used))
            opcode_map = u32(1)
            if byte == 0x38 or byte == 0x3A:
                opcode_map = select(byte == 0x38, u32(2), u32(3))
                used += 1
                byte = u32(load(u8, p + used))
        used += 1
        prefix = operand_prefix
        if rep != 0:
            prefix = select(rep == 0xF3, u32(2), u32(3))
        is64 = u32(mode == MODE_64)
        index = (((is64 << 2) | prefix) << 10) | (opcode_map << 8) | byte
    form = u32(load(u16, cpu.opcode_table + (u64(index) << 1)))
    modrm = u64(load(u8, p + used))
    looked_at = used
    if (form & GROUP) != 0:
        # The ModRM byte says which instruction it is, so an unknown one has it, too.
        looked_at += 1
        group = ((form & (GROUP - 1)) << 8) | u32(modrm)
        form = u32(load(u16, cpu.group_table + (u64(group) << 1)))
    if form == 0:
        insn.length = u8(looked_at)
        return u32(UNKNOWN)
    form -= 1
    entry = pointer(FormEntry, cpu.form_table + u64(form) * FormEntry.size)
    flags = entry.flags
    absent = (flags & WIDE_ONLY) != 0 and mode != MODE_64
    if absent or (vvvv != 0 and (flags & USES_VVVV) == 0):
        insn.length = u8(looked_at)
        return u32(UNKNOWN)
    insn.vvvv = u8(vvvv)

    op_size = u32(2)
    address_size = u32(3)
    if mode == MODE_64:
        if (rex & 8) != 0 or (flags & FORCE_64) != 0:
            op_size = u32(3)
        elif operand_prefix != 0 and (flags & IGNORE_66) == 0:
            op_size = u32(1)
        elif (flags & DEFAULT_64) != 0:
            op_size = u32(3)
        if address_prefix != 0:
            address_size = u32(2)
    else:
        small = (mode == MODE_16) != ((operand_prefix != 0) & ((flags & IGNORE_66) == 0))
        op_size = select(small, u32(1), u32(2))
        small_address = (mode == MODE_16) != (address_prefix != 0)
        address_size = select(small_address, u32(1), u32(2))
    insn.op_size = u8(op_size)
    insn.address_size = u8(address_size)
    insn.address_mask = select(
        address_size == 3,
        u64(0xFFFFFFFFFFFFFFFF),
        select(address_size == 2, u64(0xFFFFFFFF), u64(0xFFFF)),
    )
    insn.form = u16(form)
    insn.rep = u8(rep)
    insn.lock = u8(lock)
    insn.opcode = u8(byte)
    insn.modrm = u8(modrm)
    insn.segment_override = u8(override)
    insn.disp = u64(0)
    insn.imm = u64(0)
    insn.imm2 = u64(0)
    insn.base = _ZERO
    insn.index = _ZERO
    insn.scale = 0
    if override != 0xFF:
        insn.segment = override * Segment.size + _SEGMENTS
    elif mode == MODE_64:
        insn.segment = _ZERO
    else:
        insn.segment = DS * Segment.size + _SEGMENTS
    memory = u32(0)
    if (flags & HAS_MODRM) != 0:
        used += 1
        reg = ((modrm >> 3) & 7) | ((rex & 4) << 1)
        rm = (modrm & 7) | ((rex & 1) << 3)
        insn.reg = u8(reg)
        insn.rm = u8(rm)
        insn.reg8 = _byte_register(reg, rex)
        insn.rm8 = _byte_register(rm, rex)
        if modrm < 0xC0:
            memory = u32(1)
            sib = u64(load(u8, p + used))
            if address_size == 1:
                used += decode_memory16(cpu, insn, p + used, modrm)
            else:
                used += decode_memory(cpu, insn, p + used, modrm, rex, mode)
            if (flags & VSIB) != 0:
                if address_size == 1 or (modrm & 7) != 4:
                    insn.length = u8(used)
                    return u32(UNKNOWN)
                insn.imm2 = ((sib >> 3) & 7) | ((rex & 2) << 2)
                insn.index = _ZERO
                insn.scale = u8(sib >> 6)
    else:
        number = u64(byte & 7) | ((rex & 1) << 3)
        insn.rm = u8(number)
        insn.rm8 = _byte_register(number, rex)
    insn.memory = u8(memory)
    if entry.imm1 != IMM_NONE:
        value, used = _immediate(insn, p, used, entry.imm1, op_size, address_size)
        insn.imm = value
        if entry.imm2 != IMM_NONE:
            value, used = _immediate(insn, p, used, entry.imm2, op_size, address_size)
            insn.imm2 = value
    insn.length = u8(used)
    slot = ((op_size - 1) << 2) | (memory << 1) | lock
    handler = entry.handlers[u64(slot)]
    insn.handler = handler
    if handler == 0:
        return u32(UNKNOWN)
    return u32(DECODED)
