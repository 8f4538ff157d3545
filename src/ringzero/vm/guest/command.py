"""A command in the guest, from the request to its end."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ringzero.errors import GuestError
from ringzero.records import record, replace
from ringzero.vm.guest.protocol import (
    CONTROL,
    SIGNAL,
    STDERR,
    STDIN,
    STDOUT,
    TTY,
    Channels,
    CommandState,
    Output,
    OutputState,
    Stream,
    complete_line,
    go_line,
    make_token,
    port_name,
    signal_line,
)

# What Ctrl-D sends: the end of file of a terminal.
_END_OF_FILE = b"\x04"


@record
class Request:
    """A command's line (`protocol.run_line`, `terminal_line`), and who takes the answers.

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


class Command:
    """A command in the guest; made by the agent, whose `lock` it takes for each change.

    The methods from `begin` on are the agent's, which holds the lock.
    """

    def __init__(
        self, lock: threading.RLock, channels: Channels, number: int, request: Request
    ) -> None:
        self.number = number
        self.status: int | None = None
        # Why it will never have a status, once that is known.
        self.fault: GuestError | None = None
        self.slot = -1
        # Called whenever the guest has taken some of the input; it must not block.
        self.on_room: Callable[[], object] | None = None
        self._lock = lock
        self._channels = channels
        self._request = request
        self._input_open = request.takes_input or request.tty
        self._early_input: list[bytes] = []
        self._early_signals: list[str] = []
        self._held = False
        self._exit_status: int | None = None
        self._token = make_token()
        token = self._token if request.piped else b""
        self._outputs = {
            STDOUT: Stream(token, request.on_stdout),
            STDERR: Stream(token, request.on_stderr),
        }
        self._done = threading.Event()

    def write(self, data: bytes) -> None:
        """Send `data` to the command's standard input; ignored once it has ended.

        Raises TypeError for what is no bytes: here, and not on the thread that carries them.
        """
        data = bytes(memoryview(data))
        with self._lock:
            if not self._input_open or self.status is not None:
                return
            if self._started:
                self._channels.send(self._input, data)
            else:
                self._early_input.append(data)

    @property
    def backlog(self) -> int:
        """Bytes of input that the guest has not taken yet; who has much waits for `on_room`."""
        with self._lock:
            early = sum(map(len, self._early_input))
            return early + (self._channels.backlog(self._input) if self._started else 0)

    def close_input(self) -> None:
        """Let the command read end of file on its standard input."""
        with self._lock:
            if self._input_open:
                self._input_open = False
                if self._request.tty:
                    self._channels.send(self._input, _END_OF_FILE)
                elif self._started and self.status is None:
                    self._channels.connect(self._input, False)

    def resize(self, rows: int, columns: int) -> None:
        """Tell a command on a terminal of its own the size of that, in characters."""
        with self._lock:
            if self._request.tty and self._started and self.status is None:
                self._channels.resize(self._input, rows, columns)

    def signal(self, name: str) -> None:
        """Send the signal `name` ("INT", "TERM") to the command's process group.

        A command that has not begun gets it when it does. Raises InvalidValueError.
        """
        line = signal_line(name, self.number)
        with self._lock:
            if not self._started:
                self._early_signals.append(name)
            elif self.status is None:
                self._channels.send(SIGNAL, line)

    def hold_output(self, held: bool) -> None:
        """Have the command wait (True) in its writes, or go on (False); nothing is lost."""
        with self._lock:
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
        with self._lock:
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

        Raises GuestError, which says why, when the guest went away before.
        """
        if not self._done.wait(timeout):
            return None
        if self.fault is not None:
            # A new one for each that waits: they are raised with a trace of their own.
            text = f"before the command ended: {self.fault.message}"
            raise type(self.fault)(text, hint=self.fault.hint) from self.fault
        return self.status

    # ---- for the agent ----------------------------------------------------

    @property
    def kept(self) -> bool:
        """Whether it goes on in clones."""
        return self._request.kept

    def fits(self, slot: int) -> bool:
        """Whether the slot has what the command needs: the first one has no terminal."""
        return slot > 0 or not self._request.tty

    def begin(self, slot: int) -> None:
        """Have the guest start the command in a slot, which is idle."""
        self.slot = slot
        channels = self._channels
        takes_input = self._request.takes_input
        if takes_input:
            channels.connect(self._input, True)
            channels.send(self._input, go_line(self._token))
        if self._request.tty:
            # Linux gives a terminal this size when it is opened, whatever it had before.
            channels.resize(self._input, *self._request.size)
        line = complete_line(
            self._request.line,
            self.number,
            token=self._token if self._request.piped else b"",
            terminal=slot if self._request.tty else 0,
        )
        channels.send(port_name(CONTROL, slot), line)
        for early in self._early_signals:
            channels.send(SIGNAL, signal_line(early, self.number))
        for data in self._early_input:
            channels.send(self._input, data)
        self._early_input.clear()
        self._early_signals.clear()
        if takes_input and not self._input_open:
            channels.connect(self._input, False)

    def receive(self, port: str, data: bytes) -> bool:
        """Take what came on a port of its slot; True when that ended the command."""
        if port == TTY:
            if self._request.tty and self._request.on_stdout is not None:
                self._request.on_stdout(data)
            return False
        self._outputs[port].feed(data)
        return self.finish()

    def exited(self, status: int) -> bool:
        """Hear of the exit status; True when that ended the command."""
        self._exit_status = status
        return self.finish()

    def finish(self) -> bool:
        """End the command if status and outputs are complete; tell whether they are."""
        if self._exit_status is None or not all(o.complete for o in self._outputs.values()):
            return False
        if self._held:
            self._hold(False)
        if self._input_open:
            self._input_open = False
            if not self._request.tty:
                self._channels.connect(self._input, False)
        self.status = self._exit_status
        self._done.set()
        if self._request.on_exit is not None:
            self._request.on_exit(self.status)
        return True

    def abandon(self, why: GuestError) -> None:
        """The guest is gone: pass on what came of the outputs; who waits gets `why`."""
        if self._done.is_set():
            return
        self.fault = why
        try:
            for output in self._outputs.values():
                output.flush()
        finally:
            self._done.set()

    def lose(self, why: GuestError) -> None:
        """The guest became another, which knows nothing of the command."""
        self.fault = why
        self._done.set()
        if self._request.on_lost is not None:
            self._request.on_lost()

    def save(self) -> CommandState:
        """Return what is needed to know its end."""
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
    def orphan(
        cls, lock: threading.RLock, channels: Channels, slot: int, state: CommandState
    ) -> Command:
        """Return the command of another machine, of which this is a copy, to see it end."""
        request = Request("", state.input_open and not state.tty, tty=state.tty, kept=state.kept)
        command = cls(lock, channels, state.number, request)
        command.slot = slot
        command._token = state.token
        command._exit_status = state.exit_status
        for port, saved in zip((STDOUT, STDERR), state.outputs, strict=True):
            output = command._outputs[port] = Stream(state.token, None)
            output.complete, output.held = saved.complete, saved.held
        return command

    @property
    def _started(self) -> bool:
        return self.slot >= 0

    @property
    def _input(self) -> str:
        return port_name(TTY if self._request.tty else STDIN, self.slot)

    def _hold(self, held: bool) -> None:
        self._held = held
        for port in (TTY,) if self._request.tty else (STDOUT, STDERR):
            self._channels.hold(port_name(port, self.slot), held)
