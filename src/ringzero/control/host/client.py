"""Speaks with machines and with the host: typed calls, made from the table of actions.

web = client.machine("web")
web.pause(); web.resume()
print(web.run(["uname", "-a"]).stdout)
client.host().define({"kernel": "vmlinuz"}, name="db")

A running machine is asked over its socket; what no process is needed for is done here. No
engine is loaded.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from ringzero.api.action import PATIENCE, Action, Link, Scope, Stream, to_plain
from ringzero.api.command import CommandResult, invocation, takes_options
from ringzero.api.host import HostActions
from ringzero.api.machine import MachineActions
from ringzero.api.protocol import STDERR, STDOUT
from ringzero.api.table import get
from ringzero.api.values import ALIVE, EventKind
from ringzero.control.host import directory
from ringzero.control.host.actions import GONE_WITHIN
from ringzero.control.host.directory import MachineDirectory
from ringzero.control.host.handlers import HANDLERS
from ringzero.control.host.session import Session
from ringzero.errors import InvalidValueError, RingzeroError, TimeoutExpiredError
from ringzero.host.progress import QUIET, Steps
from ringzero.settings import boot_bound

if TYPE_CHECKING:
    from ringzero.api.options import RunOptions


class RemoteMachine(MachineActions):
    """A machine that another process runs, or ran."""

    def __init__(self, where: MachineDirectory) -> None:
        self.directory = where

    @property
    def name(self) -> str:
        """What it is called."""
        return self.directory.name

    def perform(self, action: Action, arguments: dict[str, Any], stream: Stream) -> Any:
        """Do it here, or ask the machine's process. Raises what it raises, and ControlError."""
        where, handler = self.directory, HANDLERS.get(action.name)
        alive = where.alive
        if handler is None or (alive and not handler.running):
            return self._ask(action, arguments, stream)
        if not alive and action.states <= ALIVE:
            where.require_alive()
        action.require(self.name, where.status())
        more = {"stream": stream} if action.streams else {}
        result = handler.act(where, **more, **action.complete(arguments))
        if EventKind.RENAMED in action.events:
            self.directory = MachineDirectory(where.path.with_name(arguments["name"]))
        return result

    @property
    def takes_options(self) -> bool:
        """Whether its guest takes options before a command (`ringzero.api.command`)."""
        return takes_options(self.directory.machine().config.get("command_line"))

    def boot_bound(self) -> float:
        """Return how long the guest may take to start, in seconds; 0 is no bound."""
        return boot_bound(self.directory.machine().config.get("boot_entry"))

    def session(self, timeout: float = PATIENCE) -> Session:
        """Return a new connection. Raises ConflictError where the machine does not run."""
        return Session(self.directory, timeout)

    def copies(self, count: int = 1, name: str = "") -> list[RemoteMachine]:
        """Return `count` running copies; `name` is a pattern with "%" for their number."""
        root = self.directory.path.parent
        return [RemoteMachine(directory.find(made, root)) for made in self.fork(count, name)]

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

    def _ask(self, action: Action, arguments: dict[str, Any], stream: Stream) -> Any:
        with self.session(action.answer_time(arguments)) as session:
            if action.streams:
                return session.stream(action, arguments, stream)
            result = session.call(action, arguments)
        if EventKind.ENDED in action.events:
            self.directory.wait_end(GONE_WITHIN)
        return result


class Host(HostActions):
    """This user's machines on this host, and what belongs to none of them."""

    def __init__(self, where: Path | None = None) -> None:
        self._where = where

    @property
    def where(self) -> Path:
        """The directory of the machines."""
        return self._where or directory.root()

    def perform(self, action: Action, arguments: dict[str, Any], stream: Stream) -> Any:
        """Do it here."""
        more = {"stream": stream} if action.streams else {}
        return HANDLERS[action.name].act(self.where, **more, **action.complete(arguments))

    def machine(self, name: str, *, odd: bool = False) -> RemoteMachine:
        """Return the machine called `name`; with `odd`, also what is none and has its name.

        Raises NotFoundError, ControlError.
        """
        return RemoteMachine(directory.find(name, self.where, odd=odd))

    def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        machine: str | None = None,
        stream: Stream | None = None,
    ) -> Any:
        """Do the action called `name`, of a machine or of the host; return plain data.

        What a door to other programs needs. Raises RingzeroError.
        """
        action = get(name)
        given = action.check(arguments)
        if action.scope is Scope.HOST:
            return to_plain(self.perform(action, given, stream or Stream()))
        if machine is None:
            raise InvalidValueError(f"{name!r} is an action of a machine, and none is named")
        found = self.machine(machine, odd=EventKind.REMOVED in action.events)
        return to_plain(found.perform(action, given, stream or Stream()))


def host(where: Path | None = None) -> Host:
    """Return the host's side of the machines in `where`, by default this user's."""
    return Host(where)


def machine(name: str, where: Path | None = None, *, odd: bool = False) -> RemoteMachine:
    """Return the machine called `name`. Raises NotFoundError, ControlError."""
    return Host(where).machine(name, odd=odd)


def machines(where: Path | None = None) -> Iterator[RemoteMachine]:
    """Yield all machines, those that ended too, by name."""
    return map(RemoteMachine, directory.machines(where))


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
