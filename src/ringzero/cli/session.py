"""One run of a machine from the command line: streams, terminal, time limit, exit code."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ringzero.cli.output import write_all
from ringzero.cli.signals import Loop, taken, unwatched
from ringzero.cli.stdin import can_read_stdin
from ringzero.config.machine import MachineConfig
from ringzero.errors import GuestError, HostError, TimeoutExpiredError
from ringzero.host.files import host_error
from ringzero.settings import BOOT_TIMEOUT, Jail, boot_bound
from ringzero.vm.exit import Exit, ExitReason
from ringzero.vm.guest import linux
from ringzero.vm.guest.agent import Agent
from ringzero.vm.guest.command import Command
from ringzero.vm.guest.contract import INPUT_AHEAD, REBOOT_CODE, SHUTDOWN, Guest

# How much of the serial output is kept to explain a failed boot, in bytes.
_KEPT_LOG = 64 * 1024
# How long a command may go on after the reader of its output has gone, in seconds: one that
# writes is told by SIGPIPE, as it would be on the host, and may have something to tidy up.
_AFTER_PIPE = 2.0
# How often a user who waits for the guest's start hears of it, in seconds.
_TELL = 10.0
_STDIN, _STDOUT, _STDERR = 0, 1, 2


def build_machine(config: MachineConfig, *, boot: bool = False) -> Guest:
    """Build the machine, to go on from a template unless it is to `boot`; what lasts is shown."""
    from ringzero.host.progress import Progress
    from ringzero.vm import builder

    return builder.build(config, Progress(), boot=boot, tell=_tell)


def _tell(line: str) -> None:
    print(f"ringzero: {line}", file=sys.stderr, flush=True)


def run(
    config: MachineConfig,
    *,
    words: Sequence[str] = (),
    terminal: bool = False,
    serial: str | None = None,
    timeout: float | None = None,
    stats: bool = False,
    as_json: bool = False,
    boot: bool = False,
    takes_input: bool | None = None,
    build: Callable[..., Guest] = build_machine,
    wrap: Callable[[Guest], Guest] = lambda machine: machine,
    jail: Jail = Jail.NONE,
) -> int:
    """Run the machine of `config` to its end and return the exit code.

    `words` is the command for a guest with an agent; without one, such a guest
    gives a shell. `serial` is "stdio", a file name or None. With `boot` no template is gone on
    from. `takes_input` says whether the command gets standard input, where that is known already.
    `wrap` puts something between the session and the machine. `jail` confines this process, for
    good, before the guest runs. Raises
    TimeoutExpiredError when the guest runs longer than `timeout` seconds,
    GuestError when it ends badly.
    """
    built = build(config, boot=boot)
    machine = wrap(built)
    # What is compiled or opened before the guest can run is not the guest's time.
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        with _serial(machine, serial) as log:
            if jail is not Jail.NONE:
                _confine(built, machine, jail)
            session = _Session(machine, config, deadline, log)
            if not config.agent:
                return session.serial_only(on_stdio=serial == "stdio")
            if terminal or (not words and os.isatty(_STDIN)):
                return session.interactive(words)
            # Without a terminal the shell is one more command: it reads a script.
            return session.command(words or ("sh",), takes_input)
    finally:
        # A second Ctrl-C must not leave a machine behind.
        with contextlib.suppress(KeyboardInterrupt):
            machine.stop()
        if stats:
            _print_stats(machine.stats(), as_json)


def _confine(built: Any, machine: Guest, level: Jail) -> None:
    """Confine this process; what an auto jail lacks here is said."""
    from ringzero.control.machine import jail

    directory = getattr(machine, "directory", None)
    with unwatched():
        parts = jail.enter(built, level, directory)
    for part in parts:
        if not part.holds:
            _tell(f"the jail has no {part.name}: {part.detail}")


class _Outlet:
    """A descriptor of ours for the guest's output; after a failure it takes no more."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.descriptor = descriptor
        self.fault: OSError | None = None
        self.on_fault: Callable[[], object] = lambda: None
        self._name = name

    def write(self, data: bytes) -> None:
        """Write all of `data`; never raises."""
        if self.fault is None:
            try:
                write_all(self.descriptor, data)
            except OSError as fault:
                self.fault = fault
                self.on_fault()

    @property
    def broken(self) -> bool:
        """Whether whoever read is gone."""
        return isinstance(self.fault, BrokenPipeError)

    def check(self) -> None:
        """Raise HostError when output was lost because of the host."""
        if self.fault is not None and not self.broken:
            text = self.fault.strerror or str(self.fault)
            raise HostError(
                f"cannot write {self._name}: {text}", hint="what the guest wrote since is lost"
            ) from self.fault


class _Log:
    """The guest's serial line: the end of what it said, and all of it to `outlet`."""

    def __init__(self) -> None:
        self.outlet: _Outlet | None = None
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        if self.outlet is not None:
            self.outlet.write(data)
        self._data += data
        if len(self._data) > 2 * _KEPT_LOG:
            del self._data[:-_KEPT_LOG]

    def tail(self) -> str:
        return linux.last_words(self._data.decode("utf-8", "replace"))


@contextlib.contextmanager
def _serial(machine: Guest, serial: str | None) -> Iterator[_Log]:
    log = _Log()
    if serial == "stdio":
        log.outlet = _Outlet(_STDOUT, "standard output")
    elif serial is not None:
        try:
            descriptor = os.open(serial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
        except OSError as fault:
            raise host_error(fault, "write", serial) from fault
        log.outlet = _Outlet(descriptor, serial)
    machine.serial.on_output = log.add
    try:
        yield log
    finally:
        if log.outlet is not None and log.outlet.descriptor != _STDOUT:
            # The machine is stopped first: its last bytes belong into the file.
            machine.stop()
            os.close(log.outlet.descriptor)
            log.outlet.check()


class _Session:
    def __init__(
        self, machine: Guest, config: MachineConfig, deadline: float | None, log: _Log
    ) -> None:
        self._machine = machine
        self._config = config
        self._deadline = deadline
        self._log = log
        # With the serial line in a file, what a command says is not for that.
        shared = log.outlet is not None and log.outlet.descriptor == _STDOUT
        own = log.outlet if shared else None
        self._stdout = own or _Outlet(_STDOUT, "standard output")
        self._ended = threading.Event()
        self._loop = Loop()
        self._stdout.on_fault = self._loop.wake

    def serial_only(self, *, on_stdio: bool) -> int:
        """Run the user's own kernel, with the serial line on the terminal."""
        if not on_stdio:
            with self._running():
                return self._code(self._wait_for_end())
        from ringzero.host.terminal import EscapeFilter, Reader

        escape = EscapeFilter()

        def typed(data: bytes) -> None:
            data = escape.feed(data) if os.isatty(_STDIN) else data
            self._machine.serial.write(data)
            if escape.ended:
                self._end()

        reader = Reader(_STDIN, typed, lambda: None, broken=self._end)
        with self._running(), self._raw_terminal(), reader:
            return self._code(self._wait_for_end())

    def command(self, words: Sequence[str], takes_input: bool | None = None) -> int:
        """Run one command: streams apart, binary-clean, its exit status."""
        if takes_input is None:
            takes_input = can_read_stdin()
        done = threading.Event()
        command = self._machine.agent.run(
            words,
            takes_input=takes_input,
            on_stdout=self._stdout.write,
            on_stderr=_Outlet(_STDERR, "standard error").write,
            on_exit=lambda _: self._done(done),
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._running())
            if takes_input:
                # Loaded while the guest runs already.
                from ringzero.host.terminal import Reader

                ready = lambda: command.backlog < INPUT_AHEAD  # noqa: E731 - read as an argument
                take, end = command.write, command.close_input
                reader = Reader(_STDIN, take, end, ready, broken=self._end)
                command.on_room = reader.proceed
                stack.enter_context(reader)
            return self._command_status(command, done)

    def interactive(self, words: Sequence[str]) -> int:
        """Give the user's terminal to a shell, or to the command `words`, on the console."""
        from ringzero.host.terminal import ESCAPE_HELP, EscapeFilter, Reader, size

        machine, escape, done = self._machine, EscapeFilter(), threading.Event()
        console = machine.console
        console.on_output = self._stdout.write
        rows, columns = size(_STDOUT)
        console.resize(rows, columns)
        command = machine.agent.terminal(
            words,
            rows=rows,
            columns=columns,
            term=os.environ.get("TERM", "linux"),
            on_exit=lambda _: self._done(done),
        )

        def typed(data: bytes) -> None:
            console.write(escape.feed(data) if os.isatty(_STDIN) else data)
            if escape.ended:
                self._end()

        def no_more() -> None:
            # A terminal's end of file: what Ctrl-D sends.
            console.write(b"\x04")

        if os.isatty(_STDIN):
            print(f"ringzero: {ESCAPE_HELP}", file=sys.stderr)
        ready = lambda: machine.agent.ready  # noqa: E731 - read as an argument
        reader = Reader(_STDIN, typed, no_more, ready, broken=self._end)
        machine.agent.on_ready = reader.proceed
        with (
            self._running(),
            self._raw_terminal(),
            taken((signal.SIGWINCH,), lambda _: console.resize(*size(_STDOUT))),
            reader,
        ):
            return self._command_status(command, done)

    def _raw_terminal(self) -> contextlib.AbstractContextManager[None]:
        from ringzero.host.terminal import raw_mode

        return raw_mode(_STDIN)

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Let the guest run for the block; its end, and signals to us, wake who waits."""
        with self._loop:
            self._machine.start()
            threading.Thread(target=self._await_end, name="end", daemon=True).start()
            yield

    def _await_end(self) -> None:
        # What went wrong is raised where the loop asks.
        with contextlib.suppress(BaseException):
            self._machine.wait()
        self._loop.wake()

    def _done(self, done: threading.Event) -> None:
        done.set()
        self._loop.wake()

    def _end(self) -> None:
        """Hear that the user wants the end."""
        self._ended.set()
        self._loop.wake()

    def _command_status(self, command: Command, done: threading.Event) -> int:
        """Wait for the command's end, the guest's end or the user's; return the exit code."""
        told: float | None = None
        boot = _Boot(self._machine.agent, boot_bound(self._config.boot_entry))
        while not done.is_set():
            if self._ended.is_set():
                return 0
            self._stdout.check()
            if self._stdout.broken:
                if told is None:
                    told = time.monotonic()
                    command.signal("PIPE")
                elif time.monotonic() - told > _AFTER_PIPE:
                    self._write_disks()
                    raise BrokenPipeError
            ended = self._machine.wait(0)
            if ended is not None and not done.is_set():
                self._raise_bad(ended)
                if not self._machine.agent.ready:
                    raise GuestError("the guest ended before it could run anything" + self._said())
                if ended.reason is ExitReason.STOPPED:
                    return 0
                raise GuestError(
                    f"the guest ended ({ended.reason.value}) before the command did",
                    hint="the command may have switched the machine off",
                )
            if self._over():
                raise self._timeout()
            limit = boot.look(self._said)
            if told is not None:
                limit = min(limit, told + _AFTER_PIPE)
            if not done.is_set():
                self._wait(limit)
        self._write_disks()
        self._stdout.check()
        return command.status if command.status is not None else GuestError.exit_code

    def _write_disks(self) -> None:
        """Let the guest write what it holds back for its disks."""
        if any(not disk.read_only for disk in self._config.disks):
            self._machine.agent.poweroff()
            self._machine.wait(SHUTDOWN)

    def _wait_for_end(self) -> Exit:
        while True:
            self._stdout.check()
            if self._stdout.broken:
                raise BrokenPipeError
            ended = self._machine.wait(0)
            if ended is not None:
                return ended
            if self._ended.is_set():
                return Exit(ExitReason.STOPPED)
            if self._over():
                raise self._timeout()
            self._wait(math.inf)

    def _wait(self, limit: float) -> None:
        """Wait until something happens, or for `limit` and the deadline of the run."""
        limit = min(limit, math.inf if self._deadline is None else self._deadline)
        self._loop.wait(None if limit == math.inf else limit - time.monotonic())

    def _over(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _timeout(self) -> TimeoutExpiredError:
        return TimeoutExpiredError("the time allowed by --timeout is over" + self._said())

    def _said(self) -> str:
        tail = self._log.tail()
        return f"\nthe guest's last words:\n{tail}" if tail and self._config.agent else ""

    def _raise_bad(self, ended: Exit) -> None:
        error = ended.error()
        if error is not None:
            # The end of the serial output need not be said twice.
            text = ended.panic if ended.reason is ExitReason.PANIC else error.message
            raise type(error)(text + self._said()) from None

    def _code(self, ended: Exit) -> int:
        self._raise_bad(ended)
        return REBOOT_CODE if ended.reason is ExitReason.REBOOT else 0


class _Boot:
    """How long the guest has taken so far to take commands: told now and then, and bounded."""

    def __init__(self, agent: Agent, bound: float) -> None:
        self._agent = agent
        self._began = time.monotonic()
        self._bound = bound
        self._next = self._began + _TELL

    def look(self, said: Callable[[], str]) -> float:
        """Return when to look again. Raises TimeoutExpiredError when it has taken too long."""
        if self._agent.ready:
            return math.inf
        now = time.monotonic()
        end = self._began + self._bound if self._bound else math.inf
        if now >= end:
            raise TimeoutExpiredError(
                f"the guest took no command within {self._bound:g} seconds" + said(),
                hint=f"{BOOT_TIMEOUT.name}=1800 gives it longer; is its agent started at all?",
            )
        if now >= self._next:
            waited = now - self._began
            print(f"ringzero: the guest is starting, for {waited:.0f} s now", file=sys.stderr)
            self._next = now + _TELL
        return min(end, self._next)


def _print_stats(stats: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        json.dump({"stats": stats}, sys.stderr, default=str)
        sys.stderr.write("\n")
        return
    for line in _stat_lines(stats, ""):
        print(line, file=sys.stderr)


def _stat_lines(stats: Mapping[str, Any], indent: str) -> Iterator[str]:
    width = max((len(str(key)) for key in stats), default=0)
    for key, value in stats.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _stat_lines(value, indent + "  ")
        elif isinstance(value, float):
            yield f"{indent}{key!s:{width}}  {value:,.3f}"
        elif isinstance(value, int):
            yield f"{indent}{key!s:{width}}  {value:,}"
        else:
            yield f"{indent}{key!s:{width}}  {value}"
