"""The protocol between the host and the init of ringzero's own guests.

The guest's side is `ringzero/image/guest/init`, a shell script, and the
protocol is made for what a shell can do. It runs over the ports of one
virtio-console device with VIRTIO_CONSOLE_F_MULTIPORT (virtio 1.2 section 5.3):

    port 0                  the console /dev/hvc0; its size follows the
                            user's terminal (VIRTIO_CONSOLE_RESIZE)
    org.ringzero.control    lines of text, both ways
    org.ringzero.signal     host to guest: what waits for no command
    org.ringzero.stdin      host to guest: bytes
    org.ringzero.stdout     guest to host: bytes
    org.ringzero.stderr     guest to host: bytes
    org.ringzero.identity   host to guest: who a copied machine is (ringzero/vm/guest/identity.py)

Control, stdin, stdout and stderr are one *slot*, which runs one command at a
time. When commands are to run side by side, the host has the ports of another
slot appear, with ".1" to ".5" behind their names, and besides them a terminal
org.ringzero.tty.N, which the guest knows as /dev/hvcN.

Control lines of the host:

    run ID INPUT TOKEN WORDS...            start a command; INPUT is 1 or 0
    terminal ID LINE ROWS COLUMNS TERM WORDS...   the same on the terminal /dev/LINE
    ping ID | poweroff

Lines of the signal port:

    NAME ID             send the signal NAME to the process group of a command
    slot N              take commands from slot N, too
    poweroff

Control lines of the guest:

    ready 1 RELEASE     the slot takes commands; 1 is the protocol's version
    exit ID STATUS      the command ended
    pong ID
    adopted             the guest of a copied machine has taken its identity

WORDS are quoted for the shell, in printable ASCII.

Output: the command writes into pipes, which the guest copies to the two output
ports. When the command has ended, the guest writes TOKEN (32 random hexadecimal
digits) into both pipes, behind everything that the command wrote. An output is
complete when TOKEN has come, whatever the order in which the ports deliver; the
command is over when both outputs are complete and `exit` has come. A process
that the command left behind keeps nobody waiting.

Input: the host connects the stdin port (PORT_OPEN 1) and sends "\\ngo TOKEN\\n";
the guest throws away what comes before that line (left over from an earlier
command) and hands what follows to the command. The host's disconnect
(PORT_OPEN 0), after the guest has taken all data, is the end of file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from ringzero.errors import GuestError, InvalidValueError, StateError
from ringzero.records import record, replace

PORTS = (
    "org.ringzero.control",
    "org.ringzero.signal",
    "org.ringzero.stdin",
    "org.ringzero.stdout",
    "org.ringzero.stderr",
)
CONTROL, SIGNAL, STDIN, STDOUT, STDERR = PORTS
TTY = "org.ringzero.tty"
# The ports of a further slot, in the order in which they appear: its terminal is there
# when the others are.
SLOT_PORTS = (TTY, CONTROL, STDIN, STDOUT, STDERR)
# Linux has eight hvc terminals in all; each further slot costs the guest some pages once it
# is used.
MAX_SLOTS = 6

VERSION = 1

# The longest control line accepted from a guest; its own are under 100 bytes.
_MAX_LINE = 4096
# The shell reads a line byte by byte into memory; more belongs on stdin.
MAX_COMMAND = 256 * 1024
_SIGNALS = frozenset(("HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "TERM", "CONT", "STOP", "PIPE"))

Output = Callable[[bytes], object]


class Channels(Protocol):
    """What the agent needs of the console device: ports by their name."""

    def send(self, port: str, data: bytes) -> None:
        """Queue `data` for the guest on `port`, after what was sent before; never blocks."""
        ...

    def connect(self, port: str, connected: bool) -> None:
        """Tell the guest PORT_OPEN 1 or 0.

        0 comes after the guest has taken all data sent before; a new 1 drops
        what it has still not taken.
        """
        ...

    def backlog(self, port: str) -> int:
        """Return how many bytes sent on `port` the guest has not taken yet."""
        ...

    def hold(self, port: str, held: bool) -> None:
        """Stop (True) or go on (False) taking what the guest sends on `port`."""
        ...

    def extend(self, slot: int) -> bool:
        """Have the ports of a further slot appear in the guest; False where there are none."""
        ...

    def resize(self, port: str, rows: int, columns: int) -> None:
        """Tell the guest the size of the terminal `port`."""
        ...


def slot_ports(slot: int) -> tuple[str, ...]:
    """Return the names of a further slot's ports."""
    return tuple(port_name(base, slot) for base in SLOT_PORTS)


def port_name(base: str, slot: int) -> str:
    """Return what a port of a slot is called."""
    return f"{base}.{slot}" if slot else base


@record
class _Request:
    """A control line, with "ID", "TOKEN" and "LINE" to be filled in, and who takes the answers.

    `piped` is False for a command on a terminal, which has no outputs of its
    own; with `tty` the terminal is its slot's, else the console. A clone of the
    machine ends the command unless it is `kept`.
    """

    line: str
    takes_input: bool = False
    piped: bool = False
    tty: bool = False
    size: tuple[int, int] = (24, 80)
    kept: bool = False
    on_stdout: Output | None = None
    on_stderr: Output | None = None
    on_exit: Callable[[int], None] | None = None
    on_lost: Callable[[], None] | None = None


@record
class OutputState:
    """One output of a command: whether its token has come, and what may be a token's beginning."""

    complete: bool
    held: bytes


@record
class CommandState:
    """A command that runs in the guest: enough to know its end."""

    number: int
    token: bytes
    outputs: tuple[OutputState, OutputState]
    exit_status: int | None
    input_open: bool
    tty: bool
    kept: bool


@record
class SlotState:
    """What the guest believes of a slot. `line` is the beginning of its next control line."""

    ready: bool
    line: bytes
    active: CommandState | None


@record
class AgentState:
    """What the guest believes.

    `adoptions` is how many identities it was given and has not answered.
    """

    release: str
    count: int
    slots: tuple[SlotState, ...]
    adoptions: int


# How long a clone waits between two attempts to end its original's command, in seconds: the
# guest may not yet have started it.
_INSIST = 0.1


class Command:
    """A command in the guest, from the request to its end."""

    def __init__(self, agent: Agent, number: int, request: _Request) -> None:
        self.number = number
        self.status: int | None = None
        self._agent = agent
        self._request = request
        self._input_open = request.takes_input or request.tty
        self._early_input: list[bytes] = []
        self._slot = -1
        self._held = False
        self._exit_status: int | None = None
        self._token = os.urandom(16).hex().encode()
        token = self._token if request.piped else b""
        self._outputs = {
            STDOUT: _Output(token, request.on_stdout),
            STDERR: _Output(token, request.on_stderr),
        }
        self._done = threading.Event()

    def write(self, data: bytes) -> None:
        """Send `data` to the command's standard input; ignored once it has ended."""
        with self._agent.lock:
            if not self._input_open or self.status is not None:
                return
            if self._started:
                self._agent.channels.send(self._input, data)
            else:
                self._early_input.append(data)

    @property
    def backlog(self) -> int:
        """Bytes of input that the guest has not taken yet; a caller with much waits for it."""
        with self._agent.lock:
            early = sum(map(len, self._early_input))
            return early + (self._agent.channels.backlog(self._input) if self._started else 0)

    def close_input(self) -> None:
        """Let the command read end of file on its standard input."""
        with self._agent.lock:
            if self._input_open:
                self._input_open = False
                if self._request.tty:
                    # What Ctrl-D sends.
                    self._agent.channels.send(self._input, b"\x04")
                elif self._started and self.status is None:
                    self._agent.channels.connect(self._input, False)

    def resize(self, rows: int, columns: int) -> None:
        """Tell a command on a terminal of its own the size of that, in characters."""
        with self._agent.lock:
            if self._request.tty and self._started and self.status is None:
                self._agent.channels.resize(self._input, rows, columns)

    def signal(self, name: str) -> None:
        """Send the signal `name` ("INT", "TERM") to the command's process group."""
        if name not in _SIGNALS:
            raise InvalidValueError(f"no signal called {name!r}")
        with self._agent.lock:
            if self._started and self.status is None:
                self._agent.channels.send(SIGNAL, f"{name} {self.number}\n".encode())

    def hold_output(self, held: bool) -> None:
        """Have the command wait (True) in its writes, or go on (False); nothing is lost."""
        with self._agent.lock:
            if self._started and self.status is None and held != self._held:
                self._hold(held)

    def redirect(
        self,
        *,
        on_stdout: Output | None = None,
        on_stderr: Output | None = None,
        on_exit: Callable[[int], None] | None = None,
    ) -> None:
        """Have others take what a command says from now on, and its end."""
        with self._agent.lock:
            self._request = replace(
                self._request, on_stdout=on_stdout, on_stderr=on_stderr, on_exit=on_exit
            )
            self._outputs[STDOUT].sink = on_stdout
            self._outputs[STDERR].sink = on_stderr

    def wait_quietly(self, timeout: float) -> int | None:
        """Wait for the end; None when `timeout` seconds are over or the guest went away."""
        self._done.wait(timeout)
        return self.status

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end; return the exit status, or None when `timeout` seconds are over.

        Raises GuestError when the guest went away before.
        """
        if not self._done.wait(timeout):
            return None
        if self.status is None:
            raise GuestError("the guest ended, or was taken back, before the command did")
        return self.status

    @property
    def _started(self) -> bool:
        return self._slot >= 0

    @property
    def _input(self) -> str:
        return port_name(TTY if self._request.tty else STDIN, self._slot)

    def _fits(self, slot: int) -> bool:
        return slot > 0 or not self._request.tty

    def _start(self, slot: int) -> None:
        self._slot = slot
        channels = self._agent.channels
        takes_input = self._request.takes_input
        if takes_input:
            channels.connect(self._input, True)
            channels.send(self._input, b"\ngo " + self._token + b"\n")
        line = self._request.line.replace("ID", str(self.number), 1)
        if self._request.piped:
            line = line.replace("TOKEN", self._token.decode(), 1)
        else:
            line = line.replace("LINE", f"hvc{slot if self._request.tty else 0}", 1)
        if self._request.tty:
            # Linux gives a terminal this size when it is opened, whatever it had before.
            channels.resize(self._input, *self._request.size)
        channels.send(port_name(CONTROL, slot), line.encode())
        for data in self._early_input:
            channels.send(self._input, data)
        self._early_input.clear()
        if takes_input and not self._input_open:
            channels.connect(self._input, False)

    def _hold(self, held: bool) -> None:
        self._held = held
        for port in (TTY,) if self._request.tty else (STDOUT, STDERR):
            self._agent.channels.hold(port_name(port, self._slot), held)

    def _receive(self, port: str, data: bytes) -> bool:
        if port == TTY:
            if self._request.tty and self._request.on_stdout is not None:
                self._request.on_stdout(data)
            return False
        self._outputs[port].feed(data)
        return self._finished()

    def _exited(self, status: int) -> bool:
        self._exit_status = status
        return self._finished()

    def _finished(self) -> bool:
        if self._exit_status is None or not all(o.complete for o in self._outputs.values()):
            return False
        if self._held:
            self._hold(False)
        if self._input_open:
            self._input_open = False
            if not self._request.tty:
                self._agent.channels.connect(self._input, False)
        self.status = self._exit_status
        self._done.set()
        if self._request.on_exit is not None:
            self._request.on_exit(self.status)
        return True

    def _save(self) -> CommandState:
        out, err = (self._outputs[port] for port in (STDOUT, STDERR))
        return CommandState(
            self.number,
            self._token,
            (OutputState(out.complete, out.held), OutputState(err.complete, err.held)),
            self._exit_status,
            self._input_open,
            self._request.tty,
            self._request.kept,
        )

    @classmethod
    def _orphan(cls, agent: Agent, slot: int, state: CommandState) -> Command:
        """Return the command of another machine, of which `agent`'s is a copy, to see it end."""
        request = _Request("", state.input_open and not state.tty, tty=state.tty, kept=state.kept)
        command = cls(agent, state.number, request)
        command._slot = slot
        command._token = state.token
        command._exit_status = state.exit_status
        for port, saved in zip((STDOUT, STDERR), state.outputs, strict=True):
            output = command._outputs[port] = _Output(state.token, None)
            output.complete, output.held = saved.complete, saved.held
        return command

    def _abandon(self) -> None:
        for output in self._outputs.values():
            output.flush()
        self._done.set()

    def _lose(self) -> None:
        self._done.set()
        if self._request.on_lost is not None:
            self._request.on_lost()


class _Output:
    """One output stream up to its token, which is not passed on."""

    def __init__(self, token: bytes, sink: Output | None) -> None:
        self._token = token
        self.sink = sink
        self.held = b""
        self.complete = not token

    def feed(self, data: bytes) -> None:
        if self.complete:
            return
        data = self.held + data
        at = data.find(self._token)
        if at >= 0:
            self.complete = True
            self.held = b""
            self._emit(data[:at])
            return
        # What may be the beginning of the token waits for the rest of it.
        keep = next(
            (
                n
                for n in range(min(len(self._token) - 1, len(data)), 0, -1)
                if self._token.startswith(data[-n:])
            ),
            0,
        )
        self.held = data[len(data) - keep :]
        self._emit(data[: len(data) - keep])

    def flush(self) -> None:
        held, self.held = self.held, b""
        self._emit(held)

    def _emit(self, data: bytes) -> None:
        if data and self.sink is not None:
            self.sink(data)


class _Slot:
    """A set of ports: whether the guest serves it, and the command that it runs."""

    def __init__(self) -> None:
        self.ready = False
        self.line = b""
        self.active: Command | None = None

    @property
    def idle(self) -> bool:
        return self.ready and self.active is None


class Agent:
    """The host's side of the protocol, over byte channels.

    `receive` takes what the guest sent; requests go out by `channels`.
    Callbacks run inside `receive`, under `lock`, and must not block. Requests
    made before the guest is ready wait for it. All methods may be called from
    any thread. The guest is not trusted: what makes no sense in its lines is
    counted in `faults` and otherwise ignored.
    """

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self.lock = threading.RLock()
        self.release = ""
        self.faults = 0
        self.on_ready: Callable[[], None] | None = None
        self._ready = threading.Event()
        self._closed = False
        self._slots = [_Slot()]
        self._ports = {port: (0, port) for port in (CONTROL, STDOUT, STDERR)}
        self._waiting: list[Command] = []
        self._count = 0
        self._adoptions = 0

    @property
    def ready(self) -> bool:
        """True once the guest takes commands."""
        return self._ready.is_set()

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until the guest takes commands; False when `timeout` seconds are over.

        Raises GuestError when the guest went away instead.
        """
        done = self._ready.wait(timeout)
        if self._closed:
            raise GuestError("the guest ended before it took commands")
        return done

    def run(
        self,
        words: Sequence[str | bytes] | str,
        *,
        takes_input: bool = False,
        on_stdout: Output | None = None,
        on_stderr: Output | None = None,
        on_exit: Callable[[int], None] | None = None,
        on_lost: Callable[[], None] | None = None,
        kept: bool = False,
    ) -> Command:
        """Start a command in the guest: its words, or one string for the guest's shell.

        With `takes_input`, end it by `close_input`. `on_lost` is called instead of `on_exit` when
        the machine becomes what it was before. In clones of the machine a `kept` command goes
        on. Raises InvalidValueError for a command that
        cannot be sent (empty, NUL in it, over 256 KiB).
        """
        return self._enqueue(
            _Request(
                f"run ID {int(takes_input)} TOKEN {_quoted(words)}\n",
                takes_input,
                piped=True,
                kept=kept,
                on_stdout=on_stdout,
                on_stderr=on_stderr,
                on_exit=on_exit,
                on_lost=on_lost,
            )
        )

    def terminal(
        self,
        words: Sequence[str | bytes] | str = (),
        *,
        rows: int = 24,
        columns: int = 80,
        term: str = "linux",
        on_output: Output | None = None,
        on_exit: Callable[[int], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> Command:
        """Start a command on a terminal, or a login shell without `words`.

        The terminal is the guest's console; with `on_output` it is the
        command's own, written to by `Command.write`. Raises InvalidValueError.
        """
        kind = term if term and all(c.isalnum() or c in "-+._" for c in term) else "linux"
        text = _quoted(words or ("sh", "-l"))
        line = f"terminal ID LINE {int(rows)} {int(columns)} {kind} {text}\n"
        tty = on_output is not None
        size = (int(rows), int(columns))
        return self._enqueue(
            _Request(
                line, tty=tty, size=size, on_stdout=on_output, on_exit=on_exit, on_lost=on_lost
            )
        )

    def await_adoption(self) -> None:
        """Start no command until the guest has taken the identity that it is given now."""
        with self.lock:
            self._adoptions += 1

    def poweroff(self) -> None:
        """Ask the guest to write everything to its disks and switch itself off."""
        with self.lock:
            self.channels.send(SIGNAL, b"poweroff\n")

    def receive(self, port: str, data: bytes) -> None:
        """Take `data`, which the guest wrote to `port`."""
        with self.lock:
            number, base = self._ports.get(port, (0, ""))
            slot = self._slots[number]
            if base == CONTROL:
                self._receive_control(slot, data)
            elif base and slot.active is not None and slot.active._receive(base, data):
                self._next(slot)

    @property
    def kept(self) -> list[Command]:
        """The commands of the original that go on in this clone."""
        with self.lock:
            active = [slot.active for slot in self._slots]
            return [c for c in active if c is not None and c._request.kept]

    def close(self) -> None:
        """The guest is gone: everybody who waits is told."""
        with self.lock:
            self._closed = True
            self._ready.set()
            for command in self._take_all():
                command._abandon()

    def _take_all(self) -> list[Command]:
        """Return all commands, of which the agent knows no more from now on."""
        commands = [slot.active for slot in self._slots if slot.active is not None] + self._waiting
        for slot in self._slots:
            slot.active = None
        self._waiting = []
        return commands

    # ---- state ------------------------------------------------------------

    def save(self) -> AgentState:
        """Return what the guest believes; commands that it has not been told of stay here."""
        with self.lock:
            slots = tuple(
                SlotState(s.ready, s.line, s.active._save() if s.active is not None else None)
                for s in self._slots
            )
            return AgentState(self.release, self._count, slots, self._adoptions)

    def restore(self, state: AgentState) -> None:
        """Speak to a copy of the guest that `state` was saved with.

        Commands belong to the machine that started them: one that runs in the
        copy is killed, unless it is kept, and what it still prints is thrown
        away. Raises StateError.
        """
        _check(state)
        with self.lock:
            for command in self._take_all():
                command._lose()
            self.release = state.release[:128]
            self._count = state.count
            self._adoptions = max(0, state.adoptions)
            del self._slots[1:]
            for number, saved in enumerate(state.slots):
                slot = self._add_slot() if number else self._slots[0]
                slot.ready, slot.line = saved.ready, saved.line
                if saved.active is not None:
                    slot.active = Command._orphan(self, number, saved.active)
            if self._slots[0].ready:
                self._ready.set()
            else:
                self._ready.clear()
            for slot in self._slots:
                orphan = slot.active
                if orphan is None:
                    continue
                if orphan._finished():
                    slot.active = None
                elif not orphan._request.kept:
                    self._insist(orphan)

    def _insist(self, command: Command) -> None:
        """Kill a command that nobody waits for, until it is gone."""
        with self.lock:
            if self._slots[command._slot].active is command and not self._closed:
                command.signal("KILL")
                again = threading.Timer(_INSIST, self._insist, (command,))
                again.daemon = True
                again.start()

    def _enqueue(self, request: _Request) -> Command:
        if len(request.line) > MAX_COMMAND:
            raise InvalidValueError(
                f"the command is too long ({len(request.line)} bytes quoted, "
                f"at most {MAX_COMMAND})",
                hint="send it on standard input: ringzero run -- sh < script",
            )
        with self.lock:
            self._count += 1
            command = Command(self, self._count, request)
            if self._closed:
                command._abandon()
            else:
                self._waiting.append(command)
                self._schedule()
            return command

    def _next(self, slot: _Slot) -> None:
        slot.active = None
        self._schedule()

    def _schedule(self) -> None:
        """Start the commands that wait, as far as there are slots; in their order."""
        if not self.ready or self._adoptions:
            return
        for command in list(self._waiting):
            number = next(
                (n for n, slot in enumerate(self._slots) if slot.idle and command._fits(n)), None
            )
            if number is None:
                self._open_slot()
                continue
            self._waiting.remove(command)
            self._slots[number].active = command
            command._start(number)

    def _open_slot(self) -> None:
        """Ask for one slot more, unless one is on its way or there can be none."""
        number = len(self._slots)
        if number < MAX_SLOTS and self._slots[-1].ready and self.channels.extend(number):
            self._add_slot()
            self.channels.send(SIGNAL, f"slot {number}\n".encode())

    def _add_slot(self) -> _Slot:
        number = len(self._slots)
        self._slots.append(_Slot())
        for port in SLOT_PORTS:
            self._ports[port_name(port, number)] = (number, port)
        return self._slots[-1]

    def _receive_control(self, slot: _Slot, data: bytes) -> None:
        *lines, slot.line = (slot.line + data).split(b"\n")
        if len(slot.line) > _MAX_LINE:
            slot.line = b""
            self.faults += 1
        for line in lines:
            self._control_line(slot, line.decode("ascii", "replace").split())

    def _control_line(self, slot: _Slot, words: list[str]) -> None:
        match words:
            case ["ready", version, *release]:
                if version != str(VERSION) or slot.ready:
                    self.faults += 1
                    return
                slot.ready = True
                if not self.ready and slot is self._slots[0]:
                    self.release = " ".join(release)[:128]
                    self._ready.set()
                    if self.on_ready is not None:
                        self.on_ready()
                self._schedule()
            case ["exit", number, status] if status.isascii() and status.isdecimal():
                active = slot.active
                if active is None or number != str(active.number) or int(status) > 255:
                    self.faults += 1
                elif active._exited(int(status)):
                    self._next(slot)
            case ["pong", _]:
                pass
            case ["adopted"]:
                # A guest that was copied before it had opened the port is not waited for.
                self._adoptions = max(0, self._adoptions - 1)
                self._schedule()
            case _:
                self.faults += 1


def _check(state: AgentState) -> None:
    active = [slot.active for slot in state.slots if slot.active is not None]
    if (
        not 1 <= len(state.slots) <= MAX_SLOTS
        or any(len(slot.line) > _MAX_LINE for slot in state.slots)
        or any(len(output.held) > 64 for command in active for output in command.outputs)
    ):
        raise StateError("the saved agent holds more than the protocol knows")


def _quoted(words: Sequence[str | bytes] | str) -> str:
    if isinstance(words, str):
        words = ("sh", "-c", words)
    if not words:
        raise InvalidValueError("an empty command")
    return " ".join(quote(word) for word in words)


def quote(word: str | bytes) -> str:
    """Return `word` quoted for the guest's shell, on one line of printable ASCII.

    Plain words and '...' are POSIX; $'...' with octal escapes is for the rest (busybox
    ash and POSIX 2024). Raises InvalidValueError for a NUL.
    """
    data = word if isinstance(word, bytes) else word.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise InvalidValueError("a command's word cannot hold a NUL character")
    plain = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789./-_=:,+@%"
    if data and not data.strip(plain):
        return data.decode("ascii")
    if all(0x20 <= byte < 0x7F for byte in data):
        return "'" + data.decode("ascii").replace("'", "'\\''") + "'"
    safe = plain + b" "
    # An octal escape has at most three digits, so that a digit may follow it.
    return "$'" + "".join(chr(b) if b in safe else f"\\{b:03o}" for b in data) + "'"
