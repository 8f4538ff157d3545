"""The actions of a running machine: one table for server, client and command line.

Each handler's signature is the action's definition (`ringzero.control.machine.table`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.control.host.records import ExitRecord, Status
from ringzero.control.machine.protocol import STDERR, STDIN, STDOUT, Data, Message
from ringzero.control.machine.table import action
from ringzero.errors import ConflictError, GuestError, InvalidValueError, ProtocolError

if TYPE_CHECKING:
    from ringzero.control.machine.keeper import Keeper
    from ringzero.control.machine.server import Call
    from ringzero.vm.guest.agent import Command

# Input that waits for the guest before its sender has to wait, in bytes.
_INPUT_AHEAD = 1 << 20
# How long a command may go on after its client went away and SIGHUP was sent, in seconds.
_HANGUP = 2.0
_MAX_TIMEOUT = 86400.0
# The size of a terminal in characters: 16 bits in every interface.
_MAX_SIZE = 0xFFFF


@action("inspect", "tell everything about the machine")
def inspect(keeper: Keeper) -> dict[str, Any]:
    return keeper.inspect()


@action("ping", "answer")
def ping(keeper: Keeper) -> str:
    return keeper.status.value


@action("pause", "stop the guest until `resume`")
def pause(keeper: Keeper) -> None:
    keeper.pause()


@action("resume", "let a paused guest go on")
def resume(keeper: Keeper) -> None:
    keeper.resume()


@action("stop", "have the guest switch itself off, and end it when it does not")
def stop(keeper: Keeper, timeout: float = 10.0) -> dict[str, Any]:
    if not 0 <= timeout <= _MAX_TIMEOUT:
        raise InvalidValueError(f"a timeout of {timeout:g} seconds makes no sense")
    return keeper.stop(timeout).to_dict()


@action("kill", "end the guest at once")
def kill(keeper: Keeper) -> dict[str, Any]:
    return keeper.end(ExitRecord("killed", "by `kill`", 137, time.time())).to_dict()


@action("fork", "make running copies of the machine; return their names")
def fork(keeper: Keeper, count: int = 1, name: str = "") -> list[str]:
    from ringzero.control.machine import fork as forking

    return forking.fork(keeper, forking.names(keeper.name, count, name), free=not name)


@action("snapshot", "save the machine as it is now; return the snapshot's identifier")
def snapshot(
    keeper: Keeper, name: str, store: str, memory: bool = True, compress: bool = False
) -> str:
    from ringzero.vm.saved.store import Store

    saved = keeper.machine.snapshot(
        name, memory=memory, compress=compress, store=Store(Path(store))
    )
    return str(saved.identifier)


@action("revert", "take the machine back to a snapshot: memory, state and disks")
def revert(keeper: Keeper, snapshot: str) -> None:
    from ringzero.control.machine import vmm

    vmm.revert(keeper, Path(snapshot))


@action("wait", "answer when the machine has ended", streams=True)
def wait(keeper: Keeper, call: Call) -> None:
    keeper.on_end(lambda record: call.finish(record.to_dict()))
    for _ in call.frames():
        pass


@action("exec", "run a command in the guest", streams=True)
def execute(
    keeper: Keeper,
    call: Call,
    words: list[str],
    stdin: bool = False,
    tty: bool = False,
    rows: int = 24,
    columns: int = 80,
    term: str = "linux",
) -> None:
    if not keeper.machine.config.agent:
        raise ConflictError(
            "the guest has no agent that could run a command",
            hint=f"its console is there: `ringzero console {keeper.name}`",
        )
    if keeper.status is Status.PAUSED:
        raise ConflictError(
            f"machine {keeper.name!r} is paused", hint=f"`ringzero resume {keeper.name}`"
        )
    agent = keeper.machine.agent

    def over(status: int) -> None:
        call.finish({"status": status})

    def lost() -> None:
        call.fail(GuestError("the machine was taken back to a snapshot before the command ended"))

    if tty:
        rows, columns = _size(rows, columns)
        command = agent.terminal(
            words,
            rows=rows,
            columns=columns,
            term=term,
            on_output=lambda data: call.write(STDOUT, data),
            on_exit=over,
            on_lost=lost,
        )
    else:
        command = agent.run(
            words,
            takes_input=stdin,
            on_stdout=lambda data: call.write(STDOUT, data),
            on_stderr=lambda data: call.write(STDERR, data),
            on_exit=over,
            on_lost=lost,
        )
    call.on_pressure = command.hold_output
    _serve_command(call, command)


def _serve_command(call: Call, command: Command) -> None:
    """Pass on what the client sends, until it leaves or the command has ended."""
    try:
        for frame in call.frames():
            if isinstance(frame, Data):
                _take_input(call, command, frame)
            elif frame.content.get("event") == "signal":
                command.signal(str(frame.content.get("name")))
            elif frame.content.get("event") == "resize":
                command.resize(*_event_size(frame))
    finally:
        if command.status is None:
            command.close_input()
            command.hold_output(False)
            command.signal("HUP")
            if command.wait_quietly(_HANGUP) is None:
                command.signal("KILL")


def _take_input(call: Call, command: Command, frame: Data) -> None:
    if frame.stream != STDIN:
        raise ProtocolError(f"stream {frame.stream} is not one for input")
    if not frame.content:
        command.close_input()
        return
    command.write(frame.content)
    while command.backlog > _INPUT_AHEAD and not call.finished:
        # The client's own sends wait meanwhile; the agent tells nobody when there is room.
        time.sleep(0.005)


@action("console", "attach to the console, or to the serial line", streams=True)
def console(
    keeper: Keeper,
    call: Call,
    line: str = "",
    watch: bool = False,
    only: bool = False,
    scrollback: bool = True,
    rows: int = 24,
    columns: int = 80,
) -> None:
    chosen = line or ("console" if keeper.machine.config.agent else "serial")
    hubs = {"console": keeper.console, "serial": keeper.serial}
    if chosen not in hubs:
        raise InvalidValueError(f"no line is called {line[:64]!r}", hint="console or serial")
    size = _size(rows, columns)

    class Output:
        def write(self, data: bytes) -> bool:
            return call.write(STDOUT, data)

    watcher = hubs[chosen].attach(Output(), writes=not watch, only=only, scrollback=scrollback)
    try:
        if chosen == "console" and watcher.writes:
            watcher.resize(*size)
            keeper.ensure_shell(*size)
        for frame in call.frames():
            if isinstance(frame, Data):
                if not frame.content:
                    break
                watcher.type(frame.content)
            elif frame.content.get("event") == "resize":
                watcher.resize(*_event_size(frame))
    finally:
        watcher.detach()
    call.finish(None)


def _event_size(frame: Message) -> tuple[int, int]:
    rows, columns = frame.content.get("rows"), frame.content.get("columns")
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise ProtocolError("a size without rows and columns")
    return _size(rows, columns)


def _size(rows: int, columns: int) -> tuple[int, int]:
    if not (0 < rows <= _MAX_SIZE and 0 < columns <= _MAX_SIZE):
        raise InvalidValueError(f"no terminal has {rows} rows and {columns} columns")
    return rows, columns
