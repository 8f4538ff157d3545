"""Exits: why `Vcpu.run` returned, as values. Here are those that every ISA has.

Those of one ISA only (x86's ports and model-specific registers) are in the
module of its name beside this one. `ringzero.vm.runloop` serves the ones here,
and asks the board for handlers of the others.
"""

from __future__ import annotations

from ringzero.records import record


class Exit:
    """Base of all exits."""

    __slots__ = ()


class Access(Exit):
    """Base of accesses to devices; made so often that it is no record, but the same to its users.

    Its `__slots__` are its fields, all of them integers.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        names: tuple[str, ...] = type(self).__slots__
        shown = ", ".join(f"{name}={getattr(self, name):#x}" for name in names)
        return f"{type(self).__name__}({shown})"

    def _values(self) -> tuple[int, ...]:
        names: tuple[str, ...] = type(self).__slots__
        return tuple(getattr(self, name) for name in names)


class MmioRead(Access):
    """A load of `width` bytes from a guest-physical address that is not RAM; answer it."""

    __slots__ = ("address", "width")

    def __init__(self, address: int, width: int) -> None:
        self.address, self.width = address, width


class MmioWrite(Access):
    """A store of `width` bytes to a guest-physical address that is not RAM."""

    __slots__ = ("address", "value", "width")

    def __init__(self, address: int, width: int, value: int) -> None:
        self.address, self.width, self.value = address, width, value


@record
class Halt(Exit):
    """The guest waits for an interrupt and none is pending; run again after `Vcpu.wait`."""


@record
class Shutdown(Exit):
    """The vCPU cannot go on; `detail` describes its last state."""

    detail: str


@record
class DebugStop(Exit):
    """A breakpoint, hook or single step of the host's debugger was reached."""

    address: int


@record
class Rested(Exit):
    """The vCPU has done no work for a while, and has given back what memory it can; run it again.

    Once after each time that it was busy, and before long sleeps; from engines that do this.
    """


@record
class Kicked(Exit):
    """`Vcpu.kick` was called, or the engine wants the run loop to look around."""
