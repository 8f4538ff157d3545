"""What is made of actions, whoever performs them: this host (`client`), or another one.

Commands in a guest and copies of files are done by a machine's actions (`ringzero.api.machine`).
"""

from __future__ import annotations

import os
import threading
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Literal, Self, Unpack, overload

from ringzero.api.action import Link, Stream
from ringzero.api.command import CommandResult, invocation
from ringzero.api.host import HostActions
from ringzero.api.machine import MachineActions
from ringzero.api.protocol import STDERR, STDOUT
from ringzero.errors import RingzeroError, TimeoutExpiredError
from ringzero.host.progress import QUIET, Steps

if TYPE_CHECKING:
    from ringzero.api.options import RunOptions


class GuestOperations(MachineActions):
    """A machine's actions, and what is made of them."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the machine is called."""

    @property
    @abstractmethod
    def takes_options(self) -> bool:
        """Whether its guest takes options before a command (`ringzero.api.command`)."""

    @abstractmethod
    def boot_bound(self) -> float:
        """Return how long the guest may take to start, in seconds; 0 is no bound."""

    @abstractmethod
    def copies(self, count: int = 1, name: str = "") -> Sequence[Self]:
        """Return `count` running copies; `name` is a pattern with "%" for their number."""

    @overload
    def run(
        self,
        command: str | Sequence[str],
        *,
        text: Literal[False] = False,
        **options: Unpack[RunOptions],
    ) -> CommandResult[bytes]: ...

    @overload
    def run(
        self, command: str | Sequence[str], *, text: Literal[True], **options: Unpack[RunOptions]
    ) -> CommandResult[str]: ...

    @overload
    def run(
        self,
        command: str | Sequence[str],
        *,
        text: bool,
        **options: Unpack[RunOptions],
    ) -> CommandResult[bytes] | CommandResult[str]: ...

    def run(
        self, command: str | Sequence[str], *, text: bool = False, **options: Unpack[RunOptions]
    ) -> CommandResult[bytes] | CommandResult[str]:
        """Run a command in the guest and return what it printed; as `ringzero.Machine.run`."""
        asked = invocation(command, text=text, options=options)
        words = asked.words(takes_options=self.takes_options)
        data = asked.data()
        collected = _Collector(data or None, asked.timeout)
        plain = ["sh", "-c", words] if isinstance(words, str) else list(map(os.fsdecode, words))
        try:
            answer = self.exec(collected, plain, stdin=bool(data))
        except RingzeroError:
            if collected.fault is not None:
                raise collected.fault from None
            raise
        finally:
            collected.close()
        if collected.over:
            raise TimeoutExpiredError(f"the command did not end within {asked.timeout} seconds")
        out, err = collected.output[STDOUT], collected.output[STDERR]
        return asked.result(answer["status"], bytes(out), bytes(err))

    def copy_in(
        self,
        source: str | Path | Sequence[str | Path],
        target: str,
        *,
        follow: bool = False,
        owners: bool = False,
        progress: Steps = QUIET,
    ) -> list[str]:
        """Copy files and folders of the host to `target` of the guest; return what was skipped.

        As `ringzero.Machine.copy_in`.
        """
        from ringzero.control.host import transfer

        sources = [source] if isinstance(source, str | PurePath) else source
        return transfer.copy_in(self, sources, target, follow, owners, progress)

    def copy_out(
        self,
        source: str,
        target: str | Path,
        *,
        follow: bool = False,
        owners: bool = False,
        progress: Steps = QUIET,
    ) -> list[str]:
        """Copy a file or folder of the guest to `target` of the host; return what was skipped.

        As `ringzero.Machine.copy_out`.
        """
        from ringzero.control.host import transfer

        return transfer.copy_out(self, source, Path(target), follow, owners, progress)


class HostOperations(HostActions):
    """A host's actions, and its machines by name."""

    @abstractmethod
    def machine(self, name: str, *, odd: bool = False) -> GuestOperations:
        """Return the machine called `name`; with `odd`, also what is none and has its name.

        Raises NotFoundError, ControlError.
        """


class _Collector(Stream):
    """Gives a command its input, and keeps what it prints."""

    def __init__(self, input: bytes | None, timeout: float | None) -> None:
        self._input = input
        self._timeout = timeout
        self._timer: threading.Timer | None = None
        # Whether the command's time is over.
        self.over = False
        # What went wrong on a thread of this side, which has left because of it.
        self.fault: BaseException | None = None
        self.output = {STDOUT: bytearray(), STDERR: bytearray()}

    def begin(self, link: Link) -> None:
        if self._timeout is not None:
            self._timer = threading.Timer(self._timeout, self._kill, (link,))
            self._timer.daemon = True
            self._timer.start()
        if self._input is not None:
            threading.Thread(target=self._feed, args=(link,), name="input", daemon=True).start()

    def data(self, number: int, content: bytes) -> None:
        self.output[number].extend(content)

    def close(self) -> None:
        """The command has ended."""
        if self._timer is not None:
            self._timer.cancel()

    def _kill(self, link: Link) -> None:
        self.over = True
        try:
            link.event("signal", name="KILL")
        except BaseException as fault:
            self._leave(link, fault)

    def _feed(self, link: Link) -> None:
        try:
            if self._input:
                link.send(self._input)
            link.send(b"")
        except BaseException as fault:
            # The command would wait for the rest for ever.
            self._leave(link, fault)

    def _leave(self, link: Link, fault: BaseException) -> None:
        """End the command because of a fault of this side's."""
        self.fault = fault
        link.close()
