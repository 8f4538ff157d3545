"""A named machine that the user's own command runs, in its own process and on its terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from ringzero.api.values import ExitRecord
from ringzero.control.host import reaper
from ringzero.control.host.directory import Claim, MachineDirectory
from ringzero.control.machine.actions import HANDLERS
from ringzero.control.machine.hub import Hub
from ringzero.control.machine.keeper import Keeper
from ringzero.errors import RingzeroError
from ringzero.host.jail import confine
from ringzero.settings import Jail
from ringzero.vm.exit import Exit
from ringzero.vm.guest.agent import Agent


class SharedLine:
    """A line of the guest as the user's own session sees it, one of several."""

    def __init__(self, hub: Hub, line: Any) -> None:
        self._hub = hub
        self._line = line
        self._sink: Callable[[bytes], None] | None = None

    @property
    def on_output(self) -> Callable[[bytes], None] | None:
        """Who takes the guest's output, besides those who are attached."""
        return self._sink

    @on_output.setter
    def on_output(self, sink: Callable[[bytes], None] | None) -> None:
        self._sink = sink
        if sink is not None:
            self._hub.copy_to(sink)

    def write(self, data: bytes) -> None:
        """Send what the user types."""
        self._line.write(data)

    def resize(self, rows: int, columns: int) -> None:
        """Tell the guest the size of the user's terminal."""
        self._line.resize(rows, columns)


class ForegroundMachine:
    """A kept machine with the interface of the machine itself, for the user's session."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._machine = keeper.machine
        self.serial = SharedLine(keeper.serial, keeper.machine.serial)
        self.console = SharedLine(keeper.console, keeper.machine.console)

    @property
    def directory(self) -> MachineDirectory:
        """Where others find it."""
        return self._keeper.directory

    @property
    def agent(self) -> Agent:
        """The protocol with ringzero's own guests."""
        return self._machine.agent

    def start(self) -> None:
        """Let the guest run."""
        self._keeper.start()

    def wait(self, timeout: float | None = None) -> Exit | None:
        """Wait for the end of the guest; None when `timeout` seconds are over."""
        return self._machine.wait(timeout)

    def stop(self) -> None:
        """End the guest at once."""
        self._machine.stop()

    def stats(self) -> Mapping[str, Any]:
        """Where the time went."""
        return self._machine.stats()


class Foreground:
    """The block in which the user's command runs the machine; its end is written down."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._keeper: Keeper | None = None

    def keep(self, machine: Any) -> ForegroundMachine:
        """Keep the machine; return what the session is to use instead of it."""
        try:
            self._keeper = Keeper(machine, self._claim, HANDLERS)
            record = self._keeper.record
            if record.remove and record.jail != Jail.NONE.value:
                reaper.attend(self._keeper.directory)
        except BaseException:
            machine.stop()
            raise
        return ForegroundMachine(self._keeper)

    def conclude(self, code: int) -> int:
        """Note the exit code of the user's command; return the one to end with."""
        if self._keeper is None:
            return code
        detail = f"its command ended with status {code}"
        result = self._keeper.conclude(ExitRecord("command", detail, code, time.time()))
        return result.exit_code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        keeper = self._keeper
        if keeper is None:
            self._claim.discard()
            return
        if value is not None:
            code = value.exit_code if isinstance(value, RingzeroError) else os.EX_SOFTWARE
            if isinstance(value, KeyboardInterrupt):
                code = 130
            elif isinstance(value, SystemExit) and isinstance(value.code, int):
                code = value.code
            keeper.conclude(ExitRecord("command", str(value), code, time.time()))
        keeper.close()
        # A jailed one is waited for by who removes it.
        if keeper.record.remove and not confine.parts():
            self._claim.discard()
        else:
            self._claim.release()
