"""Speaks with machines and with the host: typed calls, made from the table of actions.

web = client.machine("web")
web.pause(); web.resume()
print(web.run(["uname", "-a"]).stdout)
client.host().define({"kernel": "vmlinuz"}, name="db")

A running machine is asked over its socket; what no process is needed for is done here. No
engine is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ringzero.api.action import PATIENCE, Action, Scope, Stream, to_plain
from ringzero.api.command import takes_options
from ringzero.api.table import get
from ringzero.api.values import ALIVE, EventKind, Status
from ringzero.control.host import amend, directory
from ringzero.control.host.actions import GONE_WITHIN
from ringzero.control.host.directory import MachineDirectory
from ringzero.control.host.handlers import HANDLERS
from ringzero.control.host.operations import GuestOperations, HostOperations
from ringzero.control.host.session import Session
from ringzero.errors import ConflictError, ControlError, InvalidValueError
from ringzero.settings import boot_bound

# How long a machine's process may be there after it has left its socket, in seconds.
_ENDING = 2.0


class RemoteMachine(GuestOperations):
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
        if handler is None:
            return self._ask(action, arguments, stream)
        if alive and not handler.running:
            try:
                return self._ask(action, arguments, stream)
            except (ConflictError, ControlError):
                # What only reads is told of a machine that ends meanwhile, too.
                starts = where.status() is Status.STARTING
                if starts or not action.reads or not where.wait_end(_ENDING):
                    raise
            alive = False
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

    def copies(self, count: int = 1, name: str = "") -> Sequence[RemoteMachine]:
        """Return `count` running copies; `name` is a pattern with "%" for their number."""
        root = self.directory.path.parent
        return [RemoteMachine(directory.find(made, root)) for made in self.fork(count, name)]

    def _ask(self, action: Action, arguments: dict[str, Any], stream: Stream) -> Any:
        with self.session(action.answer_time(arguments)) as session:
            if action.streams:
                return session.stream(action, arguments, stream)
            result = session.call(action, arguments)
        amend.amend(self.directory, action.name, action.complete(arguments), result)
        if EventKind.ENDED in action.events:
            self.directory.wait_end(GONE_WITHIN)
        return result


class Host(HostOperations):
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
