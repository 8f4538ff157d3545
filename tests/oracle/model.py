"""What every oracle speaks: the guest window, `State`, `Case`, `Outcome`, `Executor`.

A case is a few bytes of user-mode code, a full user-mode register state and
some memory; it runs until the CPU raises an exception. Code pages are filled
with INT3, so that a case which runs to its end ends with #BP.

The guest window (all else is unmapped; `DATA_END` is followed by a hole):

    CODE_BASE  2 pages   read, write, execute
    DATA_BASE  4 pages   read, write
    RO_BASE    1 page    read only, right behind the data pages
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

PAGE: Final = 4096
LINE: Final = 64
"""Changed memory is reported in aligned lines of this many bytes."""

CODE_BASE: Final = 0x1000_0000
CODE_SIZE: Final = 2 * PAGE
CODE_MIDDLE: Final = CODE_BASE + PAGE - 0x100
"""Where code goes by default: short jumps stay inside, and it may cross a page."""
DATA_BASE: Final = 0x2000_0000
DATA_SIZE: Final = 4 * PAGE
RO_BASE: Final = DATA_BASE + DATA_SIZE
RO_SIZE: Final = PAGE
DATA_END: Final = RO_BASE + RO_SIZE
FS_BASE: Final = DATA_BASE + 0x140
GS_BASE: Final = DATA_BASE + 0x1180
"""Segment bases in every case, 64-bit mode only (32-bit code sees the same)."""

GPR_NAMES: Final = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)

FLAG_BITS: Final = {
    "CF": 0x1, "PF": 0x4, "AF": 0x10, "ZF": 0x40, "SF": 0x80, "TF": 0x100, "IF": 0x200,
    "DF": 0x400, "OF": 0x800, "NT": 0x4000, "RF": 0x10000, "AC": 0x40000, "ID": 0x200000,
}  # fmt: skip
ARITH_FLAGS: Final = 0x8D5
"""CF, PF, AF, ZF, SF, OF."""
USER_FLAGS: Final = ARITH_FLAGS | 0x244F00 & ~0x200
"""Flags which a case may choose: the arithmetic ones, TF, DF, NT, AC, ID."""
FIXED_FLAGS: Final = 0x202
"""Bit 1 and IF, which are set in every state."""

FXSAVE_SIZE: Final = 512
_RIP_OFFSET: Final = 128
_RFLAGS_OFFSET: Final = 136
_FX_OFFSET: Final = 144
STATE_SIZE: Final = _FX_OFFSET + FXSAVE_SIZE
_HEAD: Final = struct.Struct("<18Q")
_FX_HEAD: Final = struct.Struct("<HHBBHQQII")

VECTOR_NAMES: Final = {
    0: "#DE", 1: "#DB", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF",
    10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 19: "#XM",
}  # fmt: skip
DE, DB, BP, UD, SS, GP, PF, MF, AC, XM = 0, 1, 3, 6, 12, 13, 14, 16, 17, 19
TIMED_OUT: Final = -1
"""Pseudo vector: the case did not end in time; nothing else in the outcome counts."""
CRASHED: Final = -2
"""Pseudo vector: the executor died or gave up; nothing else in the outcome counts."""
SYSCALL: Final = -3
"""Pseudo vector: the case made a system call; state as of then."""
UNSUPPORTED: Final = -4
"""Pseudo vector: this executor cannot run this case."""


@dataclass(frozen=True, slots=True)
class State:
    """User-mode registers as one byte string, so that equality is one comparison.

    Layout (little endian): 16 GPRs in encoding order, RIP, RFLAGS, then the
    512-byte FXSAVE64 image. In the image FOP, FIP, FDP (AMD CPUs do not save
    them), MXCSR_MASK, the reserved upper bytes of each ST/MM slot and bytes
    416-511 are always zero. RFLAGS never has RF.
    """

    raw: bytes

    @classmethod
    def build(
        cls,
        gpr: Sequence[int] | Mapping[str, int] = (),
        rip: int = CODE_MIDDLE,
        rflags: int = FIXED_FLAGS,
        fxsave: bytes | None = None,
    ) -> State:
        """From registers: `gpr` by position or by name, missing ones are 0."""
        if isinstance(gpr, Mapping):
            values = [gpr.get(name, 0) for name in GPR_NAMES]
        else:
            values = [*gpr, *([0] * (16 - len(gpr)))]
        head = _HEAD.pack(*(v & (1 << 64) - 1 for v in values), rip, rflags | FIXED_FLAGS)
        return cls(head + (FX_INIT if fxsave is None else fxsave))

    @property
    def gpr(self) -> tuple[int, ...]:
        return _HEAD.unpack_from(self.raw)[:16]

    @property
    def rip(self) -> int:
        return int.from_bytes(self.raw[_RIP_OFFSET:_RFLAGS_OFFSET], "little")

    @property
    def rflags(self) -> int:
        return int.from_bytes(self.raw[_RFLAGS_OFFSET:_FX_OFFSET], "little")

    @property
    def fxsave(self) -> bytes:
        return self.raw[_FX_OFFSET:]

    @property
    def fcw(self) -> int:
        return int.from_bytes(self.raw[_FX_OFFSET : _FX_OFFSET + 2], "little")

    @property
    def fsw(self) -> int:
        return int.from_bytes(self.raw[_FX_OFFSET + 2 : _FX_OFFSET + 4], "little")

    @property
    def ftw(self) -> int:
        """The abridged tag byte: bit i set means that physical register i is in use."""
        return self.raw[_FX_OFFSET + 4]

    @property
    def mxcsr(self) -> int:
        return int.from_bytes(self.raw[_FX_OFFSET + 24 : _FX_OFFSET + 28], "little")

    def st(self, index: int) -> bytes:
        """ST(index), 10 bytes; MM registers are by physical number, not by this."""
        start = _FX_OFFSET + 32 + 16 * index
        return self.raw[start : start + 10]

    def xmm(self, index: int) -> bytes:
        start = _FX_OFFSET + 160 + 16 * index
        return self.raw[start : start + 16]

    def replace(
        self,
        gpr: Mapping[int, int] | None = None,
        rip: int | None = None,
        rflags: int | None = None,
        fxsave: bytes | None = None,
    ) -> State:
        """A copy with some registers (by number) replaced."""
        raw = bytearray(self.raw)
        for number, value in (gpr or {}).items():
            raw[8 * number : 8 * number + 8] = (value & (1 << 64) - 1).to_bytes(8, "little")
        if rip is not None:
            raw[_RIP_OFFSET:_RFLAGS_OFFSET] = rip.to_bytes(8, "little")
        if rflags is not None:
            raw[_RFLAGS_OFFSET:_FX_OFFSET] = rflags.to_bytes(8, "little")
        if fxsave is not None:
            raw[_FX_OFFSET:] = fxsave
        return State(bytes(raw))


def fx_image(
    fcw: int = 0x37F,
    fsw: int = 0,
    ftw: int = 0,
    mxcsr: int = 0x1F80,
    st: Iterable[bytes] = (),
    xmm: Iterable[bytes] = (),
) -> bytes:
    """An FXSAVE64 image in the normal form that `State` describes."""
    slots = (b"".join(value.ljust(16, b"\0") for value in values) for values in (st, xmm))
    return fx_image_of_slots(fcw, fsw, ftw, mxcsr, *slots)


def fx_image_of_slots(fcw: int, fsw: int, ftw: int, mxcsr: int, st: bytes, xmm: bytes) -> bytes:
    """The same, of registers one behind the other, 16 bytes each."""
    return b"".join(
        (
            _FX_HEAD.pack(fcw, fsw, ftw, 0, 0, 0, 0, mxcsr & 0xFFFF, 0),
            st.ljust(128, b"\0"),
            xmm.ljust(256, b"\0"),
            bytes(96),
        )
    )


FX_INIT: Final = fx_image()
"""The image after FNINIT with MXCSR at its reset value and all registers zero."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to execute, at `state.rip`, in user mode with the default memory image.

    `memory` is applied over `INITIAL_MEMORY` after `code` is placed. `mode` is
    64, or 32 for compatibility mode (flat segments; R8 to R15 are zero and the
    upper halves of the others too). `mnemonic` is for statistics and for the
    tables of undefined results; a program leaves it empty.
    """

    code: bytes
    state: State
    memory: tuple[tuple[int, bytes], ...] = ()
    mode: int = 64
    mnemonic: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a case ended: the exception, the state it saves, the memory that changed.

    `vector` is the exception (or a negative pseudo vector), `error_code` is 0
    for exceptions without one, `address` is CR2 for #PF and 0 otherwise.
    `state.rip` is the RIP that the exception pushes. `memory` holds the
    changed 64-byte lines of the window by address, ascending.
    """

    state: State
    vector: int
    error_code: int = 0
    address: int = 0
    memory: tuple[tuple[int, bytes], ...] = ()


class Executor(Protocol):
    """Anything that can run cases. Use as a context manager where it holds resources."""

    name: str

    def run(self, cases: list[Case]) -> list[Outcome]:
        """The outcomes in the order of the cases."""
        ...


def _initial_data() -> bytes:
    """Random bytes with small integers mixed in; the same in every run."""
    rng = random.Random("ringzero oracle data")
    data = bytearray(rng.randbytes(DATA_SIZE + RO_SIZE))
    for offset in range(0, len(data), 48):
        data[offset : offset + 8] = rng.choice((0, 1, 2, 3, 8, 31, 127)).to_bytes(8, "little")
    return bytes(data)


INITIAL_DATA: Final = _initial_data()
"""Contents of the data pages and the read-only page when a case starts."""


def initial_memory(case: Case) -> tuple[bytearray, bytearray]:
    """The code window and the data window (with the read-only page) when `case` starts."""
    code = bytearray(b"\xcc" * CODE_SIZE)
    data = bytearray(INITIAL_DATA)
    start = case.state.rip - CODE_BASE
    code[start : start + len(case.code)] = case.code
    for address, content in case.memory:
        target, base = (data, DATA_BASE) if address >= DATA_BASE else (code, CODE_BASE)
        target[address - base : address - base + len(content)] = content
    return code, data


def changed_lines(
    base: int, before: bytes | bytearray, after: bytes | bytearray
) -> list[tuple[int, bytes]]:
    """The 64-byte lines of `after` which differ, with their addresses."""
    if before == after:
        return []
    return [
        (base + i, bytes(after[i : i + LINE]))
        for page in range(0, len(before), PAGE)
        if before[page : page + PAGE] != after[page : page + PAGE]
        for i in range(page, page + PAGE, LINE)
        if before[i : i + LINE] != after[i : i + LINE]
    ]
