"""What gdb is told of an x86-64 vCPU: its registers, in gdb's order and names.

The features are those of gdb's own descriptions (Debugging with GDB, appendix G.5.7): core, sse,
segments and, where the state has the upper halves of YMM registers, avx. Control registers are a
feature of our own, which gdb shows among the system registers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from ringzero.core.memory import GuestMemory
from ringzero.errors import InvalidValueError
from ringzero.isa.contract import DebugRegister, DebugTarget
from ringzero.isa.x86.shutdown import physical_address
from ringzero.isa.x86.state import GPR_NAMES, CpuState
from ringzero.records import replace

_ORDER = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *GPR_NAMES[8:])
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
_FLAG_BITS = {
    "CF": 0, "": 1, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "TF": 8, "IF": 9, "DF": 10, "OF": 11,
    "NT": 14, "RF": 16, "VM": 17, "AC": 18, "VIF": 19, "VIP": 20, "ID": 21,
}  # fmt: skip
_MXCSR_BITS = {
    "IE": 0, "DE": 1, "ZE": 2, "OE": 3, "UE": 4, "PE": 5, "DAZ": 6, "IM": 7, "DM": 8, "ZM": 9,
    "OM": 10, "UM": 11, "PM": 12, "FZ": 15,
}  # fmt: skip
# Places in an XSAVE area (SDM vol. 1, 13.4): offset and width in bytes.
_FCW, _FSW, _FTW, _FOP, _FIP, _FDP, _MXCSR = (
    (0, 2), (2, 2), (4, 1), (6, 2), (8, 4), (16, 4), (24, 4)
)  # fmt: skip
_FISEG, _FOSEG = (12, 2), (20, 2)
_ST, _XMM, _XSTATE_BV, _YMM_HIGH = 32, 160, 512, 576
_X87, _SSE, _AVX = 1, 2, 4
# An XSAVE area that has the upper halves of the YMM registers.
_WITH_AVX = _YMM_HIGH + 16 * 16
# What a component that XSTATE_BV leaves out has instead (SDM vol. 1, 13.6).
_FCW_INITIAL = 0x37F


class X86Target(DebugTarget[CpuState]):
    """Implements the contract."""

    def registers(self, state: CpuState) -> tuple[DebugRegister, ...]:
        """Return them, the upper halves of YMM registers only where there are any."""
        core = [DebugRegister(name, 64) for name in (*_ORDER, "rip")]
        core += [DebugRegister(name, 32) for name in ("eflags", *_SEGMENTS)]
        core += [DebugRegister(f"st{n}", 80) for n in range(8)]
        names = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
        core += [DebugRegister(name, 32) for name in names]
        sse = [DebugRegister(f"xmm{n}", 128) for n in range(16)] + [DebugRegister("mxcsr", 32)]
        bases = [DebugRegister(name, 64) for name in ("fs_base", "gs_base")]
        control = [DebugRegister(name, 64) for name in _CONTROL]
        upper = [DebugRegister(f"ymm{n}h", 128) for n in range(16)] if _has_avx(state) else []
        return (*core, *sse, *bases, *upper, *control)

    def describe(self, state: CpuState) -> str:
        """Return the target description."""
        lines = [
            '<?xml version="1.0"?>',
            '<!DOCTYPE target SYSTEM "gdb-target.dtd">',
            "<target><architecture>i386:x86-64</architecture>",
            '<feature name="org.gnu.gdb.i386.core">',
            _flags("i386_eflags", _FLAG_BITS),
        ]
        features = {
            "xmm0": ("org.gnu.gdb.i386.sse", _VECTOR + _flags("i386_mxcsr", _MXCSR_BITS)),
            "fs_base": ("org.gnu.gdb.i386.segments", ""),
            "ymm0h": ("org.gnu.gdb.i386.avx", ""),
            "cr0": ("org.ringzero.x86.control", ""),
        }
        for register in self.registers(state):
            if register.name in features:
                name, types = features[register.name]
                lines.append(f'</feature><feature name="{name}">{types}')
            lines.append(
                f'<reg name="{register.name}" bitsize="{register.bits}" type="{_type(register)}"/>'
            )
        return "\n".join([*lines, "</feature></target>"])

    def read(self, state: CpuState, name: str) -> int:
        """Return a register; raises KeyError."""
        if name in GPR_NAMES:
            return state.gpr[GPR_NAMES.index(name)]
        if name == "eflags":
            return state.rflags & 0xFFFF_FFFF
        if name in _SEGMENTS:
            return int(getattr(state, name).selector)
        if name in ("fs_base", "gs_base"):
            return int(getattr(state, name[:2]).base)
        if name == "rip" or name in _CONTROL:
            return int(getattr(state, name))
        return _FLOATING[name](state)

    def write(self, state: CpuState, name: str, value: int) -> CpuState:
        """Return the state with a register changed; raises KeyError, InvalidValueError."""
        if value == self.read(state, name):
            return state
        if name in GPR_NAMES:
            return state.with_gpr(**{name: value})
        if name == "eflags":
            return replace(state, rflags=value)
        if name in ("fs_base", "gs_base"):
            segment = replace(getattr(state, name[:2]), base=value)
            return replace(state, **{name[:2]: segment})
        if name == "rip" or name in _CONTROL:
            return replace(state, **{name: value})
        place = _place(name)
        if place is None:
            raise InvalidValueError(f"{name} cannot be changed from here")
        offset, width, component = place
        area = bytearray(state.xsave)
        area[offset : offset + width] = value.to_bytes(width, "little")
        known = int.from_bytes(area[_XSTATE_BV : _XSTATE_BV + 8], "little")
        if not known & component:
            _initialize(area, component, (offset, width))
            area[_XSTATE_BV : _XSTATE_BV + 8] = (known | component).to_bytes(8, "little")
        return replace(state, xsave=bytes(area))

    def where(self, state: CpuState) -> int:
        """Return the linear address of the next instruction."""
        if state.cs.attributes & 1 << 9:
            return state.rip
        return state.cs.base + state.rip & 0xFFFF_FFFF

    def physical(self, state: CpuState, memory: GuestMemory, address: int) -> int | None:
        """Return where a linear address leads, or None."""
        return physical_address(state, memory, address)


_VECTOR = (
    '<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>'
    '<vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/>'
    '<vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/>'
    '<union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>'
    '<field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/>'
    '<field name="v4_int32" type="v4i32"/><field name="v2_int64" type="v2i64"/>'
    '<field name="uint128" type="uint128"/></union>'
)


def _flags(name: str, bits: dict[str, int]) -> str:
    fields = "".join(
        f'<field name="{text}" start="{bit}" end="{bit}"/>' for text, bit in bits.items()
    )
    return f'<flags id="{name}" size="4">{fields}</flags>'


def _type(register: DebugRegister) -> str:
    """Return a register's type, of those that gdb has or the description defines."""
    special = {
        "rip": "code_ptr", "rsp": "data_ptr", "rbp": "data_ptr",
        "eflags": "i386_eflags", "mxcsr": "i386_mxcsr",
    }  # fmt: skip
    if register.name in special:
        return special[register.name]
    if register.name.startswith("ymm"):
        return "uint128"
    return {80: "i387_ext", 128: "vec128", 64: "int64", 32: "int"}[register.bits]


def _has_avx(state: CpuState) -> bool:
    return len(state.xsave) >= _WITH_AVX


def _component(state: CpuState, component: int) -> bool:
    """Whether the area holds a component, which otherwise is in its initial state."""
    return bool(struct.unpack_from("<Q", state.xsave, _XSTATE_BV)[0] & component)


def _bytes(state: CpuState, offset: int, width: int, component: int, initial: int = 0) -> int:
    if not _component(state, component):
        return initial
    return int.from_bytes(state.xsave[offset : offset + width], "little")


def _tags(state: CpuState) -> int:
    """Return the tag word in full: 3 for an empty register, 1 for a zero, 2 for a special value."""
    if not _component(state, _X87):
        return 0xFFFF
    short, top = state.xsave[_FTW[0]], state.xsave[_FSW[0] + 1] >> 3 & 7
    word = 0
    for physical in range(8):
        at = _ST + 16 * (physical - top & 7)
        mantissa, exponent = struct.unpack_from("<QH", state.xsave, at)
        exponent &= 0x7FFF
        if not short >> physical & 1:
            tag = 3
        elif exponent == 0 and mantissa == 0:
            tag = 1
        elif exponent in (0, 0x7FFF) or not mantissa >> 63:
            tag = 2
        else:
            tag = 0
        word |= tag << 2 * physical
    return word


def _field(place: tuple[int, int], initial: int = 0) -> Callable[[CpuState], int]:
    return lambda state: _bytes(state, *place, _X87, initial)


def _wide(offset: int, width: int, component: int) -> Callable[[CpuState], int]:
    return lambda state: _bytes(state, offset, width, component)


_FLOATING: dict[str, Callable[[CpuState], int]] = {
    **{f"st{n}": _wide(_ST + 16 * n, 10, _X87) for n in range(8)},
    **{f"xmm{n}": _wide(_XMM + 16 * n, 16, _SSE) for n in range(16)},
    **{f"ymm{n}h": _wide(_YMM_HIGH + 16 * n, 16, _AVX) for n in range(16)},
    "fctrl": _field(_FCW, _FCW_INITIAL),
    "fstat": _field(_FSW),
    "ftag": _tags,
    "fiseg": _field(_FISEG),
    "fioff": _field(_FIP),
    "foseg": _field(_FOSEG),
    "fooff": _field(_FDP),
    "fop": _field(_FOP),
    # XRSTOR loads it from the area whatever XSTATE_BV says (SDM vol. 1, 13.8.1).
    "mxcsr": lambda state: int.from_bytes(state.xsave[24:28], "little"),
}


def _place(name: str) -> tuple[int, int, int] | None:
    """Return offset, width and component of a register that may be changed in the area."""
    for prefix, start, width, component in (
        ("xmm", _XMM, 16, _SSE), ("ymm", _YMM_HIGH, 16, _AVX), ("st", _ST, 10, _X87),
    ):  # fmt: skip
        number = name.removeprefix(prefix).removesuffix("h")
        if name.startswith(prefix) and number.isdecimal():
            return start + 16 * int(number), width, component
    return (*_MXCSR, _SSE) if name == "mxcsr" else (*_FCW, _X87) if name == "fctrl" else None


def _initialize(area: bytearray, component: int, kept: tuple[int, int]) -> None:
    """Give a component its initial state, but for what was just written."""
    start, end = {
        _X87: (0, 24), _SSE: (_XMM, _XMM + 256), _AVX: (_YMM_HIGH, _YMM_HIGH + 256)
    }[component]  # fmt: skip
    offset, width = kept
    written = bytes(area[offset : offset + width])
    area[start:end] = bytes(end - start)
    if component == _X87:
        area[_ST : _ST + 128] = bytes(128)
        area[:2] = _FCW_INITIAL.to_bytes(2, "little")
    area[offset : offset + width] = written


TARGET = X86Target()
