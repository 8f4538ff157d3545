"""What a session or a keeper needs of a machine, and what they agree upon.

`ringzero.vm.machine.Machine` is a `KeptGuest`; so is whatever stands between it and its user.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from ringzero.vm.exit import Exit
from ringzero.vm.guest.agent import Agent

if TYPE_CHECKING:
    from ringzero.vm.guest.identity import Identity

# A command's input is read no faster than the guest takes it, beyond this many bytes.
INPUT_AHEAD = 1 << 20
# How long a guest may take to write its disks and switch itself off, in seconds.
SHUTDOWN = 10.0
# A guest that reboots ends the run, because a direct boot cannot begin again
# by itself; this exit code lets a script tell it from a power-off.
REBOOT_CODE = 3


class Line(Protocol):
    """A byte channel of the machine: the serial line, or the console."""

    on_output: Callable[[bytes], None] | None

    def write(self, data: bytes) -> None:
        """Send what the user types."""
        ...


class Console(Line, Protocol):
    """The virtio console, which has a size."""

    def resize(self, rows: int, columns: int) -> None:
        """Tell the guest the size of the user's terminal."""
        ...


class Guest(Protocol):
    """A machine as its user's session sees it."""

    @property
    def agent(self) -> Agent:
        """The protocol with ringzero's own guests."""
        ...

    @property
    def serial(self) -> Line:
        """The first serial line."""
        ...

    @property
    def console(self) -> Console:
        """The virtio console (hvc0)."""
        ...

    def start(self) -> None:
        """Let the guest run."""
        ...

    def wait(self, timeout: float | None = None) -> Exit | None:
        """Wait for the end of the guest; None when `timeout` seconds are over."""
        ...

    def stop(self) -> None:
        """End the guest at once, and free everything."""
        ...

    def stats(self) -> Mapping[str, Any]:
        """Where the time went; nested mappings of numbers."""
        ...


class KeptGuest(Guest, Protocol):
    """A machine as its keeper sees it, who shares, copies and ends it."""

    @property
    def config(self) -> Any:
        """The machine's description."""
        ...

    @property
    def nets(self) -> Any:
        """Its network interfaces (`ringzero.vm.nets.Nets`)."""
        ...

    @property
    def shares(self) -> Any:
        """Its shared folders (`ringzero.vm.shares.Shares`)."""
        ...

    @property
    def blocks(self) -> Any:
        """Block jobs on its disks, and exports of them (`ringzero.vm.blocks.Blocks`)."""
        ...

    def pause(self) -> None:
        """Stop the guest; returns when its state stands still."""
        ...

    def resume(self) -> None:
        """Let the guest go on."""
        ...

    def frozen(self) -> AbstractContextManager[None]:
        """Keep the machine paused for a `with` block."""
        ...

    def seed(self, clones: int = 1) -> Any:
        """Return what the machine is now, for `clones` copies to grow from; it is to be closed."""
        ...

    def grow(self, seed: Any, identity: Identity) -> Any:
        """Return a paused copy, in this process or one forked from it."""
        ...

    def snapshot(
        self, name: str, *, memory: bool = True, compress: bool = False, store: Any = None
    ) -> Any:
        """Save the machine as it is now under a name, while it runs on."""
        ...

    def revert(self, snapshot: Any, identity: Identity | None = None) -> None:
        """Become what a snapshot holds, in place."""
        ...

    def press_power_button(self) -> bool:
        """Ask the guest's system to shut down; False where the board has no such button."""
        ...

    def leave(self) -> None:
        """In a forked process: let go of the machine's sockets on the host."""
        ...

    def prepare_confinement(self) -> None:
        """Do what its process cannot do any more once it is confined; before `start`."""
        ...

    def disks_still(self) -> AbstractContextManager[None]:
        """Have nobody use the disks in the block: no guest, block job or export."""
        ...

    def keep_from_children(self) -> None:
        """Leave the machine's memory out of processes forked from now on."""
        ...
