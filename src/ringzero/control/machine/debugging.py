"""A kept machine as gdb's target: it is paused, goes on and ends as for any other client."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from ringzero.api.values import ExitRecord, Status
from ringzero.control.machine.keeper import Keeper
from ringzero.errors import ConflictError


class KeptTarget:
    """A `ringzero.vm.gdb.stub.Target`."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self.machine: Any = keeper.machine

    def pause(self) -> bool:
        """Stop it; False where it stands still already. Raises ConflictError before it runs."""
        try:
            self._keeper.pause()
        except ConflictError:
            if self._keeper.status is Status.PAUSED:
                return False
            if self._keeper.status is not Status.STOPPING:
                raise
            # On its way down its guest may come to a breakpoint as well.
            self.machine.pause()
        return True

    def resume(self) -> None:
        """Let it go on, if nobody else has."""
        if self._keeper.status is Status.STOPPING:
            self.machine.resume()
            return
        with contextlib.suppress(ConflictError):
            self._keeper.resume()

    def kill(self) -> None:
        """End it."""
        self._keeper.expect(ExitRecord("killed", "by a debugger", 137, time.time()))
        self.machine.stop()
