"""The protocol between the host and the init of ringzero's own guests.

The guest's side is the script `ringzero/image/guest/init`, and for commands the program
`ringzero.image.guest.runner`; older guests are a script alone, and the
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

    NAME ID             send the signal NAME to the process group of a command, once it has begun
    slot N              take commands from slot N, too
    network             ask for IP addresses where interfaces have other MAC addresses now
    poweroff

Control lines of the guest:

    ready 1 RELEASE     the slot takes commands; 1 is the protocol's version
    exit ID STATUS      the command ended
    pong ID
    adopted             the guest of a copied machine has taken its identity; a guest that
                        does has its port open before its first `ready`
    fault TEXT          before its first `ready`: something that was asked for at the start is
                        missing, and no command will run

WORDS are quoted for the shell, in printable ASCII.

Output: the command writes into pipes, which the guest copies to the two output
ports. When the command has ended, the guest writes TOKEN (22 random characters of
base64) to both ports, behind everything that the command wrote. An output is
complete when TOKEN has come, whatever the order in which the ports deliver; the
command is over when both outputs are complete and `exit` has come. A process
that the command left behind keeps nobody waiting.

Input: the host connects the stdin port (PORT_OPEN 1) and sends "\\ngo TOKEN\\n";
the guest throws away what comes before that line (left over from an earlier
command) and hands what follows to the command. The host's disconnect
(PORT_OPEN 0), after the guest has taken all data, is the end of file.

This module does no I/O: names, lines, quoting, and the streams' ends. What runs a
command is `ringzero.vm.guest.command`, what shares the slots among them
`ringzero.vm.guest.agent`.
"""

from __future__ import annotations

import binascii
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from ringzero.errors import InvalidValueError, StateError
from ringzero.records import record

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
MAX_LINE = 4096
# As much of the kernel's release is kept.
MAX_RELEASE = 128
# The guest keeps a line in memory (`runner.memory.LINE_SIZE`); more belongs on stdin.
MAX_COMMAND = 256 * 1024
SIGNALS = frozenset(("HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "TERM", "CONT", "STOP", "PIPE"))

# What a message holds where a value is filled in once the command has its slot.
_ID, _TOKEN, _LINE = "ID", "TOKEN", "LINE"

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

    `adoptions` is how many identities it was given and has not answered; `early` of how many it
    has heard nothing yet, because it was not yet listening when they were given.
    """

    release: str
    count: int
    slots: tuple[SlotState, ...]
    adoptions: int
    early: int = 0


# ---- lines of the host ------------------------------------------------------


def run_line(words: Sequence[str | bytes] | str, *, takes_input: bool) -> str:
    """Return the line that starts a command, to be completed. Raises InvalidValueError."""
    return f"run {_ID} {int(takes_input)} {_TOKEN} {_quoted(words)}\n"


def terminal_line(words: Sequence[str | bytes] | str, rows: int, columns: int, term: str) -> str:
    """Return the line that starts a command on a terminal, to be completed.

    `term` is what the command reads as TERM; a name that no terminal has is replaced.
    Raises InvalidValueError.
    """
    kind = term if term and all(c.isalnum() or c in "-+._" for c in term) else "linux"
    return f"terminal {_ID} {_LINE} {int(rows)} {int(columns)} {kind} {_quoted(words)}\n"


def complete_line(line: str, number: int, *, token: bytes = b"", terminal: int = 0) -> bytes:
    """Return a line to be sent: with the command's number, and its token or its terminal."""
    line = line.replace(_ID, str(number), 1)
    if token:
        return line.replace(_TOKEN, token.decode(), 1).encode()
    return line.replace(_LINE, f"hvc{terminal}", 1).encode()


def make_token() -> bytes:
    """Return what marks the end of a command's output: 128 random bits, which none contains.

    In few characters: guests of older snapshots read a line byte by byte, at 3,000 instructions
    each.
    """
    return binascii.b2a_base64(os.urandom(16), newline=False).rstrip(b"=")


def go_line(token: bytes) -> bytes:
    """Return the line behind which the command's input begins."""
    return b"\ngo " + token + b"\n"


def signal_line(name: str, number: int) -> bytes:
    """Return the line that sends a signal to a command. Raises InvalidValueError."""
    if name not in SIGNALS:
        raise InvalidValueError(f"no signal called {name!r}")
    return f"{name} {number}\n".encode()


def slot_line(number: int) -> bytes:
    """Return the line that has the guest serve another slot."""
    return f"slot {number}\n".encode()


POWEROFF = b"poweroff\n"
NETWORK = b"network\n"


# ---- lines of the guest -----------------------------------------------------


@record
class Ready:
    """The slot takes commands; `release` is the kernel's."""

    release: str


@record
class Exited:
    """The command `number` ended."""

    number: str
    status: int


@record
class Adopted:
    """The guest of a copied machine has taken its identity."""


@record
class Fault:
    """The guest takes no commands; `text` says why."""

    text: str


@record
class Pong:
    """The answer to a ping."""


@record
class Nonsense:
    """A line that means nothing, or the beginning of one that is too long."""


Answer = Ready | Exited | Adopted | Fault | Pong | Nonsense


class LineReader:
    """Control lines of the guest, from the pieces in which they come."""

    def __init__(self, begun: bytes = b"") -> None:
        self.begun = begun

    def feed(self, data: bytes) -> Iterator[Answer]:
        """Yield what the lines that end in `data` say."""
        *lines, self.begun = (self.begun + data).split(b"\n")
        if len(self.begun) > MAX_LINE:
            self.begun = b""
            yield Nonsense()
        for line in lines:
            yield parse(line)


def parse(line: bytes) -> Answer:
    """Return what a control line of the guest says."""
    match line.decode("ascii", "replace").split():
        case ["ready", version, *release] if version == str(VERSION):
            return Ready(" ".join(release)[:MAX_RELEASE])
        case ["exit", number, status] if (
            status.isascii() and status.isdecimal() and int(status) <= 255
        ):
            return Exited(number, int(status))
        case ["pong", _]:
            return Pong()
        case ["adopted"]:
            return Adopted()
        case ["fault", *words] if words:
            return Fault(" ".join(words))
    return Nonsense()


# ---- streams ----------------------------------------------------------------


class Stream:
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


# ---- states -----------------------------------------------------------------


def check(state: AgentState) -> None:
    """Raise StateError for a state that the protocol cannot come to."""
    active = [slot.active for slot in state.slots if slot.active is not None]
    if (
        not 1 <= len(state.slots) <= MAX_SLOTS
        or any(len(slot.line) > MAX_LINE for slot in state.slots)
        or any(len(output.held) > 64 for command in active for output in command.outputs)
    ):
        raise StateError("the saved agent holds more than the protocol knows")


# ---- quoting ----------------------------------------------------------------


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
