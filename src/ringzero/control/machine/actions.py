"""Who does the actions in a machine's process.

The table (`ringzero.api.machine`) says what they are; a handler takes the keeper, the call
where the action streams, and all of the action's arguments by name.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ringzero.api import copying
from ringzero.api.protocol import STDERR, STDIN, STDOUT, Data, Message
from ringzero.api.values import (
    DiskExportSummary,
    DiskJobSummary,
    ExitRecord,
    PortSummary,
    ShareSummary,
)
from ringzero.config.devices.net import NetConfig
from ringzero.config.devices.share import ShareConfig
from ringzero.control.host.actions import port_summaries, share_summaries
from ringzero.control.machine import fork as forking
from ringzero.control.machine import jail, life
from ringzero.control.machine.keeper import Keeper
from ringzero.control.machine.server import Call, TakesDescriptors, conversation_fault
from ringzero.errors import (
    ConflictError,
    GuestError,
    InvalidValueError,
    ProtocolError,
    TimeoutExpiredError,
)
from ringzero.vm.guest.contract import INPUT_AHEAD

if TYPE_CHECKING:
    from ringzero.disk.jobs.contract import JobInfo
    from ringzero.disk.nbd.server import Export
    from ringzero.vm.guest.agent import Agent
    from ringzero.vm.guest.command import Command

# How long a command may go on after its client went away and SIGHUP was sent, in seconds.
_HANGUP = 2.0
# How long a guest may take to take a command before its client hears that it waits, and how
# long until it hears so again, in seconds.
_PATIENCE, _TELL = 2.0, 10.0
_MAX_TIMEOUT = 86400.0
# The size of a terminal in characters: 16 bits in every interface.
_MAX_SIZE = 0xFFFF

HANDLERS: dict[str, Callable[..., Any] | TakesDescriptors] = {}
Function = TypeVar("Function", bound=Callable[..., Any])


def handles(name: str) -> Callable[[Function], Function]:
    """Return a decorator that binds a handler to the action called `name`."""

    def bind(function: Function) -> Function:
        HANDLERS[name] = function
        return function

    return bind


@handles("inspect")
def inspect(keeper: Keeper) -> dict[str, Any]:
    return keeper.inspect()


@handles("ping")
def ping(keeper: Keeper) -> str:
    return keeper.status.value


@handles("pause")
def pause(keeper: Keeper) -> None:
    keeper.pause()


@handles("resume")
def resume(keeper: Keeper) -> None:
    keeper.resume()


@handles("stop")
def stop(keeper: Keeper, timeout: float) -> ExitRecord:
    if not 0 <= timeout <= _MAX_TIMEOUT:
        raise InvalidValueError(f"a timeout of {timeout:g} seconds makes no sense")
    return keeper.stop(timeout)


@handles("kill")
def kill(keeper: Keeper) -> ExitRecord:
    return keeper.end(ExitRecord("killed", "by `kill`", 137, time.time()))


def fork(keeper: Keeper, descriptors: list[int], count: int, name: str) -> list[str]:
    # Their names are known to those who hand them what is theirs (`ringzero.control.host.copies`).
    try:
        jail.require_children(keeper.name, "copies")
        if len(descriptors) != 1:
            raise ProtocolError("copies are made with a socket that hands them their files")
        forking.fork(keeper, count, descriptors[0])
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return []


HANDLERS["fork"] = TakesDescriptors(fork)


@handles("snapshot")
def snapshot(keeper: Keeper, name: str, store: str, memory: bool, compress: bool) -> str:
    from ringzero.vm.saved.store import Store

    jail.require_children(keeper.name, "snapshots")
    place = Store(Path(store) if store else None)
    jail.require_path(keeper.name, place.root)
    saved = keeper.machine.snapshot(name, memory=memory, compress=compress, store=place)
    return str(saved.identifier)


@handles("revert")
def revert(keeper: Keeper, snapshot: str) -> None:
    jail.require_path(keeper.name, Path(snapshot))
    life.revert(keeper, Path(snapshot))


@handles("ports")
def ports(keeper: Keeper) -> list[PortSummary]:
    return port_summaries(keeper.machine.nets.ports())


@handles("publish")
def publish(keeper: Keeper, ports: str) -> list[PortSummary]:
    return port_summaries(keeper.machine.nets.publish(ports))


@handles("unpublish")
def unpublish(keeper: Keeper, ports: str) -> list[PortSummary]:
    return port_summaries(keeper.machine.nets.unpublish(ports))


@handles("connect")
def connect(keeper: Keeper, network: str, interface: int) -> int:
    number = None if interface < 0 else interface
    wanted = NetConfig.parse(network)
    jail.require_network(keeper.name, wanted.network)
    found: int = keeper.machine.nets.connect(wanted, number)
    return found


@handles("disconnect")
def disconnect(keeper: Keeper, interface: int) -> None:
    keeper.machine.nets.connect(NetConfig("none"), interface)


@handles("shares")
def shares(keeper: Keeper) -> list[ShareSummary]:
    return share_summaries(keeper.machine.config.shares)


@handles("share")
def share(keeper: Keeper, folder: str) -> ShareSummary:
    wanted = ShareConfig.parse(folder)
    jail.require_path(keeper.name, wanted.path)
    return share_summaries([keeper.machine.shares.add(wanted)])[0]


@handles("unshare")
def unshare(keeper: Keeper, target: str, force: bool) -> ShareSummary:
    return share_summaries([keeper.machine.shares.remove(target, force=force)])[0]


@handles("disk_jobs")
def disk_jobs(keeper: Keeper) -> list[DiskJobSummary]:
    return [_job_summary(number, info) for number, info in keeper.blocks.infos()]


@handles("start_disk_job")
def start_disk_job(
    keeper: Keeper,
    kind: str,
    disk: int,
    target: str,
    format: str,
    existing: bool,
    sync: str,
    top: str,
    base: str,
    pivot: bool,
    speed: int,
    id: str,
    auto_finalize: bool,
    auto_dismiss: bool,
) -> DiskJobSummary:
    from ringzero.vm.blocks import Wish

    wish = Wish(
        kind,
        target=target,
        format=format,
        existing=existing,
        sync=sync,
        top=top,
        base=base,
        pivot=pivot,
        speed=speed,
        name=id,
        auto_finalize=auto_finalize,
        auto_dismiss=auto_dismiss,
    )
    wish.check()
    # Where a file may not be opened, it is said now.
    for path in keeper.blocks.opened(disk, wish):
        jail.require_path(keeper.name, path)
    if wish.moves:
        jail.require_own_description(keeper.name)
    return _job_summary(disk, keeper.blocks.start(disk, wish))


@handles("order_disk_job")
def order_disk_job(keeper: Keeper, id: str, order: str, speed: int | None) -> DiskJobSummary:
    blocks = keeper.blocks
    # One that is dismissed is told of for the last time.
    job = blocks.jobs.find(id)
    if speed is not None:
        job.set_speed(speed)
    if order == "complete":
        jail.require_own_description(keeper.name)
    if order:
        blocks.order(id, order)
    return _job_summary(blocks.number(id), job.info())


def _job_summary(disk: int, info: JobInfo) -> DiskJobSummary:
    return {
        "id": info.id,
        "kind": info.kind,
        "disk": disk,
        "state": info.state,
        "offset": info.offset,
        "length": info.length,
        "speed": info.speed,
        "target": info.target,
        "ready": info.ready,
        "cancelled": info.cancelled,
        "error": info.error,
    }


@handles("disk_exports")
def disk_exports(keeper: Keeper) -> list[DiskExportSummary]:
    return [_export_summary(keeper, export) for export in keeper.blocks.exports]


@handles("export_disk")
def export_disk(
    keeper: Keeper, disk: int, name: str, writable: bool, path: str, port: int | None
) -> DiskExportSummary:
    if path:
        jail.require_path(keeper.name, Path(path))
    elif port is not None:
        jail.require_network(keeper.name, "user")
    export = keeper.blocks.export(disk, name or str(disk), writable=writable, path=path, port=port)
    return _export_summary(keeper, export)


@handles("unexport_disk")
def unexport_disk(keeper: Keeper, name: str) -> None:
    if name:
        keeper.blocks.unexport(name)
    else:
        keeper.blocks.stop_exports()


def _export_summary(keeper: Keeper, export: Export) -> DiskExportSummary:
    server = keeper.blocks.server
    return {
        "name": export.name,
        "disk": keeper.blocks.number_of(export.live),
        "read_only": export.offer.read_only,
        "clients": server.clients(export.name),
        "url": server.url(export.name),
    }


@handles("wait")
def wait(keeper: Keeper, call: Call) -> None:
    keeper.on_end(call.finish)
    for _ in call.frames():
        pass


@handles("exec")
def execute(
    keeper: Keeper,
    call: Call,
    words: list[str],
    stdin: bool,
    tty: bool,
    rows: int,
    columns: int,
    term: str,
    wait: float,
) -> None:
    agent = _agent(keeper)

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
    command.on_room = call.wake
    with _bounded(keeper, call, command, wait):
        _serve_command(agent, call, command)


def _agent(keeper: Keeper) -> Agent:
    if not keeper.machine.config.agent:
        raise ConflictError(
            "the guest has no agent that could run a command",
            hint=f"start it with --agent; its console is there: `ringzero console {keeper.name}`",
        )
    return keeper.machine.agent


@handles("put_archive")
def put_archive(keeper: Keeper, call: Call, path: str, rule: str, wait: float) -> None:
    from ringzero.vm.guest.archive import Upload

    upload = Upload(_agent(keeper), path, copying.rule(rule), call.fail, call.wake)
    whole = False
    try:
        with _bounded(keeper, call, upload.command, wait):
            for frame in call.frames():
                if isinstance(frame, Data):
                    whole = not frame.content
                    if whole:
                        break
                    upload.send(frame.content)
                    call.wait_until(lambda: upload.backlog <= INPUT_AHEAD)
            if whole:
                upload.finish()
                call.finish(None)
    finally:
        if not whole:
            upload.abort()


@handles("get_archive")
def get_archive(keeper: Keeper, call: Call, path: str, follow: bool, wait: float) -> None:
    from ringzero.vm.guest.archive import Said

    said = Said()

    def over(status: int) -> None:
        if status:
            call.fail(copying.fault(bytes(said.text), status))
        else:
            call.finish(None)

    agent = _agent(keeper)
    command = agent.run(
        agent.as_root(copying.send(path, follow=follow)),
        on_stdout=lambda data: call.write(STDOUT, data),
        on_stderr=said.add,
        on_exit=over,
        on_lost=lambda: call.fail(GuestError("the machine was taken back to a snapshot")),
    )
    call.on_pressure = command.hold_output
    with _bounded(keeper, call, command, wait):
        _serve_command(agent, call, command)


@contextlib.contextmanager
def _bounded(keeper: Keeper, call: Call, command: Command, wait: float) -> Iterator[None]:
    """Tell the client, for the block, when the guest takes long to take commands, or too long."""
    if keeper.machine.agent.ready:
        yield
        return

    over = threading.Event()

    def remind() -> None:
        pause, waited = _PATIENCE, 0.0
        while not over.wait(pause) and not keeper.machine.agent.ready:
            waited += pause
            call.event(event="waiting", seconds=wait, waited=waited)
            pause = _TELL

    def give_up() -> None:
        try:
            waits = keeper.machine.agent.withdraw(command)
        except Exception as fault:
            # The client would wait for ever.
            call.fail(conversation_fault(fault))
            return
        if waits:
            call.fail(
                TimeoutExpiredError(
                    f"the guest took no command within {wait:g} seconds",
                    hint=f"is its agent started at all? `ringzero logs {keeper.name}`",
                )
            )

    threading.Thread(target=remind, name="waiting", daemon=True).start()
    timer = threading.Timer(wait, give_up)
    timer.daemon = True
    if wait:
        timer.start()
    try:
        yield
    finally:
        over.set()
        timer.cancel()


def _serve_command(agent: Agent, call: Call, command: Command) -> None:
    """Pass on what the client sends, until it leaves or the command has ended."""
    try:
        for frame in call.frames():
            if isinstance(frame, Data):
                _take_input(call, command, frame)
            elif frame.content.get("event") == "signal":
                name = str(frame.content.get("name"))
                if agent.withdraw(command):
                    call.finish({"status": 128 + _number(name)})
                    return
                command.signal(name)
            elif frame.content.get("event") == "resize":
                command.resize(*_event_size(frame))
    finally:
        if command.status is None and not agent.withdraw(command):
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
    # The client's own sends wait meanwhile.
    call.wait_until(lambda: command.backlog <= INPUT_AHEAD)


@handles("console")
def console(
    keeper: Keeper,
    call: Call,
    line: str,
    watch: bool,
    only: bool,
    scrollback: bool,
    rows: int,
    columns: int,
) -> None:
    chosen = line or ("console" if keeper.machine.config.agent else "serial")
    hubs = {"console": keeper.console, "serial": keeper.serial}
    if chosen not in hubs:
        raise InvalidValueError(f"no line is called {line[:64]!r}", hint="console or serial")
    size = _size(rows, columns)

    class Output:
        def write(self, data: bytes) -> bool:
            return call.write(STDOUT, data)

    watcher = hubs[chosen].attach(
        Output(),
        writes=not watch,
        only=only,
        scrollback=scrollback,
        caught_up=lambda: call.event(event="live"),
    )
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


@handles("gdb")
def gdb(keeper: Keeper, call: Call) -> None:
    from ringzero.control.machine.debugging import KeptTarget
    from ringzero.vm.gdb.stub import Stub

    stub = Stub(KeptTarget(keeper), lambda data: call.write(STDOUT, data))
    try:
        for frame in call.frames():
            if isinstance(frame, Data):
                if not frame.content:
                    break
                stub.feed(frame.content)
    finally:
        stub.close()
    call.finish(None)


def _number(name: str) -> int:
    try:
        return int(signal.Signals[f"SIG{name}"])
    except KeyError:
        raise InvalidValueError(f"no signal called {name[:64]!r}") from None


def _event_size(frame: Message) -> tuple[int, int]:
    rows, columns = frame.content.get("rows"), frame.content.get("columns")
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise ProtocolError("a size without rows and columns")
    return _size(rows, columns)


def _size(rows: int, columns: int) -> tuple[int, int]:
    if not (0 < rows <= _MAX_SIZE and 0 < columns <= _MAX_SIZE):
        raise InvalidValueError(f"no terminal has {rows} rows and {columns} columns")
    return rows, columns
