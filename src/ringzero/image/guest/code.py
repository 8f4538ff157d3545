"""Machine code of x86-64 with labels, for the guest's small programs."""

from __future__ import annotations

import struct
from typing import Self

# Registers as `mov r32, imm32` names them, in the order of a system call's arguments
# (System V ABI, A.2.1).
_MOV = {
    "edi": b"\xbf",
    "esi": b"\xbe",
    "edx": b"\xba",
    "r10d": b"\x41\xba",
    "r8d": b"\x41\xb8",
}
_MOV_EAX, _SYSCALL = b"\xb8", b"\x0f\x05"
# Jumps and calls with a displacement of 32 bits (SDM vol. 2, CALL, JMP and Jcc).
_JUMPS = {
    "call": b"\xe8",
    "jmp": b"\xe9",
    "jb": b"\x0f\x82",
    "jae": b"\x0f\x83",
    "je": b"\x0f\x84",
    "jl": b"\x0f\x8c",
    "jne": b"\x0f\x85",
    "js": b"\x0f\x88",
    "jle": b"\x0f\x8e",
}


def system_call(number: int, **registers: int) -> bytes:
    """Return a system call with constants in `registers` (edi, esi, edx, r10d, r8d)."""
    code = b"".join(_MOV[name] + struct.pack("<I", value) for name, value in registers.items())
    return code + _MOV_EAX + struct.pack("<I", number) + _SYSCALL


class Code:
    """Instructions one after the other; jumps go to labels."""

    def __init__(self) -> None:
        self._code = bytearray()
        self._labels: dict[str, int] = {}
        # Where displacements to labels belong.
        self._jumps: list[tuple[int, str]] = []

    def add(self, *instructions: bytes) -> Self:
        """Append encoded instructions."""
        self._code += b"".join(instructions)
        return self

    def label(self, name: str) -> Self:
        """Call this place `name`."""
        self._labels[name] = len(self._code)
        return self

    def jump(self, mnemonic: str, label: str) -> Self:
        """Append a jump: jmp, jb, jae, je, jl, jne, js or jle; or a call."""
        self._code += _JUMPS[mnemonic]
        self._jumps.append((len(self._code), label))
        self._code += bytes(4)
        return self

    def build(self) -> bytes:
        """Return the code, which may lie at any address."""
        for place, label in self._jumps:
            struct.pack_into("<i", self._code, place, self._labels[label] - place - 4)
        return bytes(self._code)


class Texts:
    """Texts that end with a NUL, each at an address of its own."""

    def __init__(self, base: int) -> None:
        self._base, self.data = base, b""
        self._places: dict[str, int] = {}

    def at(self, text: str) -> int:
        if text not in self._places:
            self._places[text] = self._base + len(self.data)
            self.data += text.encode() + b"\0"
        return self._places[text]
