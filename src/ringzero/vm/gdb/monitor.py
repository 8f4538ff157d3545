"""What `monitor ...` in gdb does: a line in, text out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ringzero.errors import InvalidValueError
from ringzero.isa.contract import DebugRegister

_HELP = """\
help                this list
info registers      all registers of the thread that is chosen
info threads        the vCPUs, and what each is about to run
translate ADDRESS   where the page tables of the thread map a virtual address
phys on|off         memory is that of physical addresses from now on
quit                end the machine
"""


class Watched(Protocol):
    """What the commands need of a debugger's session."""

    by_physical: bool

    def registers(self) -> Iterable[tuple[DebugRegister, int]]:
        """Return the registers of the thread that is chosen."""
        ...

    def places(self) -> Iterable[tuple[int, int]]:
        """Return each vCPU's number and the address of its next instruction."""
        ...

    def physical(self, address: int) -> int | None:
        """Return where an address of the chosen thread leads."""
        ...

    def kill(self) -> None:
        """End the machine, and the session."""
        ...


def answer(stub: Watched, line: str) -> str:
    """Do one command; return what it says. Raises InvalidValueError for one that is not there."""
    words = line.split()
    match words:
        case [] | ["help"]:
            return _HELP
        case ["info", "registers"]:
            return "".join(
                f"{register.name:<8} {value:#0{register.bits // 4 + 2}x}\n"
                for register, value in stub.registers()
            )
        case ["info", "threads"]:
            return "".join(f"{index + 1}  vCPU {index}  {at:#x}\n" for index, at in stub.places())
        case ["translate", text]:
            try:
                address = int(text, 0)
            except ValueError:
                raise InvalidValueError(f"{text!r} is no address") from None
            found = stub.physical(address)
            return "not mapped\n" if found is None else f"{found:#x}\n"
        case ["phys", "on" | "off" as state]:
            stub.by_physical = state == "on"
            return f"addresses are {'physical' if stub.by_physical else 'virtual'} now\n"
        case ["quit"]:
            stub.kill()
            return "the machine ends\n"
    raise InvalidValueError(f"no such command: {line[:80]!r}; see `monitor help`")
