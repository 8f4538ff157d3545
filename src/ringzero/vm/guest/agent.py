"""The host's side of the guest's agent: commands, and the slots in which they run.

The protocol is in `ringzero.vm.guest.protocol`, a command in `ringzero.vm.guest.command`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from ringzero.api.command import AS_ROOT
from ringzero.errors import GuestError, InvalidValueError
from ringzero.host.service import OnFault, ServiceThread
from ringzero.vm.guest import protocol
from ringzero.vm.guest.command import Command, Request
from ringzero.vm.guest.protocol import (
    CONTROL,
    MAX_COMMAND,
    MAX_SLOTS,
    SIGNAL,
    SLOT_PORTS,
    STDERR,
    STDOUT,
    Adopted,
    AgentState,
    Answer,
    Channels,
    Exited,
    Fault,
    LineReader,
    Nonsense,
    Output,
    Ready,
    SlotState,
    port_name,
)

# How long a clone waits between its first attempts to end its original's command, in seconds, and
# at most: guests of older snapshots do not keep a signal for a command that has not begun.
_INSIST, _INSIST_MOST = 0.1, 5.0
# A guest that takes its identity, and the time in it, later than so many seconds after it was given
# is given it once more, so many times at most.
_LATE, _ROUNDS = 0.2, 5


class _Slot:
    """A set of ports: whether the guest serves it, and the command that it runs."""

    def __init__(self) -> None:
        self.ready = False
        self.lines = LineReader()
        self.active: Command | None = None

    @property
    def idle(self) -> bool:
        return self.ready and self.active is None

    def save(self) -> SlotState:
        active = self.active.save() if self.active is not None else None
        return SlotState(self.ready, self.lines.begun, active)


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
        # Why the guest takes no commands, where it says so.
        self.fault: GuestError | None = None
        self.on_ready: Callable[[], None] | None = None
        # Hears of an exception that ends a thread of the agent's.
        self.on_fault: OnFault | None = None
        self._over = threading.Event()
        # Commands of the original's that nobody waits for, until the machine begins (`start`).
        self._begun = False
        self._orphans: list[Command] = []
        self._ready = threading.Event()
        # Why there is no guest any more.
        self._gone: GuestError | None = None
        self._slots = [_Slot()]
        self._ports = {port: (0, port) for port in (CONTROL, STDOUT, STDERR)}
        self._waiting: list[Command] = []
        self._count = 0
        self._adoptions = 0
        self._adopted = threading.Condition(self.lock)
        # Identities that were given to a guest that did not listen yet, and may never do.
        self._early = 0
        # Gives the last one once more; when that was given, and how many more times it may be.
        self._again: Callable[[], None] | None = None
        self._asked, self._rounds = 0.0, 0
        # Whether the guest takes options before a command (`ringzero.api.command.command_options`).
        self.takes_options = False
        # Whether the guest has its addresses from others, and is to ask for new ones in a copy.
        self.asks_for_addresses = True
        # Whether the guest listens for identities.
        self.listens: Callable[[], bool] = lambda: False

    @property
    def ready(self) -> bool:
        """True once the guest takes commands."""
        return self._ready.is_set()

    @property
    def idle(self) -> bool:
        """True where the guest takes commands and has none to run."""
        with self.lock:
            return self.ready and not self._waiting and all(slot.idle for slot in self._slots)

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until the guest takes commands; False when `timeout` seconds are over.

        Raises GuestError when the guest went away instead.
        """
        done = self._ready.wait(timeout)
        if self._gone is not None:
            raise type(self._gone)(
                f"before the guest took commands: {self._gone.message}", hint=self._gone.hint
            ) from self._gone
        return done

    def as_root(self, words: Sequence[str]) -> list[str]:
        """Return a command's words so that it runs as root, whatever an image says of its own."""
        return [*(AS_ROOT if self.takes_options else ()), *words]

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
            Request(
                protocol.run_line(words, takes_input=takes_input),
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
        tty = on_output is not None
        return self._enqueue(
            Request(
                protocol.terminal_line(words or ("sh", "-l"), rows, columns, term),
                tty=tty,
                size=(int(rows), int(columns)),
                on_stdout=on_output,
                on_exit=on_exit,
                on_lost=on_lost,
            )
        )

    def await_adoption(self, again: Callable[[], None] | None = None) -> None:
        """Start no command until the guest has taken the identity that it is given now.

        `again` gives it once more, where the guest took so long that its clock is late.

        A guest that has not come so far as to listen (`listens`) is asked again when it takes
        commands; one that does not listen then knows nothing of identities.
        """
        with self.lock:
            self._again, self._asked, self._rounds = again, time.monotonic(), _ROUNDS
            if self.listens():
                self._adoptions += 1
            elif not self.ready:
                self._early += 1
            else:
                self._schedule()

    def wait_adopted(self, timeout: float) -> bool:
        """Return whether the guest has taken every identity, waiting up to `timeout` seconds."""
        with self._adopted:
            return self._adopted.wait_for(lambda: not self._adoptions, timeout)

    def poweroff(self) -> None:
        """Ask the guest to write everything to its disks and switch itself off."""
        with self.lock:
            self.channels.send(SIGNAL, protocol.POWEROFF)

    def receive(self, port: str, data: bytes) -> None:
        """Take `data`, which the guest wrote to `port`."""
        with self.lock:
            number, base = self._ports.get(port, (0, ""))
            slot = self._slots[number]
            if base == CONTROL:
                for answer in slot.lines.feed(data):
                    self._answered(slot, answer)
            elif base and slot.active is not None and slot.active.receive(base, data):
                self._next(slot)

    def sent(self) -> None:
        """Hear that the guest has taken some of what was sent to it."""
        with self.lock:
            for slot in self._slots:
                if slot.active is not None and slot.active.on_room is not None:
                    slot.active.on_room()

    @property
    def kept(self) -> list[Command]:
        """The commands of the original that go on in this clone."""
        with self.lock:
            active = [slot.active for slot in self._slots]
            return [c for c in active if c is not None and c.kept]

    def close(self, why: GuestError | None = None) -> None:
        """The guest is gone: everybody who waits, and whoever comes later, is told `why`."""
        with self.lock:
            if self._gone is None:
                self._gone = why or GuestError("the guest ended")
            self._ready.set()
            self._over.set()
            faults = []
            for command in self._take_all():
                try:
                    command.abandon(self._gone)
                except Exception as fault:  # of one who takes output; the others are told, too
                    faults.append(fault)
            if faults:
                raise faults[0]

    def _take_all(self) -> list[Command]:
        """Return all commands, of which the agent knows no more from now on."""
        commands = [slot.active for slot in self._slots if slot.active is not None] + self._waiting
        for slot in self._slots:
            slot.active = None
        self._waiting = []
        return commands

    @contextmanager
    def kept_waiting(self) -> Iterator[None]:
        """Keep the commands that wait from the guest, which may become another, for the block.

        The guest knows commands by ascending numbers, so they get others.
        """
        with self.lock:
            waiting, self._waiting = self._waiting, []
        try:
            yield
        finally:
            with self.lock:
                for command in waiting:
                    self._count += 1
                    command.number = self._count
                self._waiting = waiting + self._waiting

    def proceed(self) -> None:
        """Start the commands that wait, after `kept_waiting`, as soon as the guest takes them."""
        with self.lock:
            self._schedule()

    # ---- state ------------------------------------------------------------

    def save(self) -> AgentState:
        """Return what the guest believes; commands that it has not been told of stay here."""
        with self.lock:
            slots = tuple(slot.save() for slot in self._slots)
            return AgentState(self.release, self._count, slots, self._adoptions, self._early)

    def restore(self, state: AgentState) -> None:
        """Speak to a copy of the guest that `state` was saved with.

        Commands belong to the machine that started them: one that runs in the
        copy is killed, unless it is kept, and what it still prints is thrown
        away. Raises StateError.
        """
        protocol.check(state)
        with self.lock:
            for command in self._take_all():
                command.lose(GuestError("the machine was taken back to a snapshot"))
            self.release = state.release[: protocol.MAX_RELEASE]
            self._count = state.count
            self._adoptions = max(0, state.adoptions)
            self._early = max(0, state.early)
            self._orphans.clear()
            del self._slots[1:]
            for number, saved in enumerate(state.slots):
                slot = self._add_slot() if number else self._slots[0]
                slot.ready, slot.lines = saved.ready, LineReader(saved.line)
                if saved.active is not None:
                    slot.active = Command.orphan(self.lock, self.channels, number, saved.active)
            if self._slots[0].ready:
                self._ready.set()
            else:
                self._ready.clear()
            for slot in self._slots:
                orphan = slot.active
                if orphan is None:
                    continue
                if orphan.finish():
                    slot.active = None
                elif not orphan.kept:
                    orphan.signal("KILL")
                    self._orphans.append(orphan)
            if self._begun:
                self.start()

    def start(self) -> None:
        """The machine begins: until then there is no thread, so that its process is confined."""
        with self.lock:
            self._begun = True
            orphans, self._orphans = self._orphans, []
        for orphan in orphans:
            ServiceThread(self, partial(self._insist, orphan), "orphan").start()

    def _insist(self, command: Command) -> None:
        """Kill a command that nobody waits for, until it is gone."""
        pause = _INSIST
        while not self._over.wait(pause):
            with self.lock:
                slot = self._slots[command.slot] if command.slot < len(self._slots) else None
                if slot is None or slot.active is not command:
                    return
                command.signal("KILL")
            pause = min(2 * pause, _INSIST_MOST)

    def _enqueue(self, request: Request) -> Command:
        if len(request.line) > MAX_COMMAND:
            raise InvalidValueError(
                f"the command is too long ({len(request.line)} bytes quoted, "
                f"at most {MAX_COMMAND})",
                hint="send it on standard input: ringzero run -- sh < script",
            )
        with self.lock:
            self._count += 1
            command = Command(self.lock, self.channels, self._count, request)
            if self._gone is not None:
                command.abandon(self._gone)
            else:
                self._waiting.append(command)
                self._schedule()
            return command

    def withdraw(self, command: Command) -> bool:
        """Take back a command that waits to be started; False for one that was."""
        with self.lock:
            if command not in self._waiting:
                return False
            self._waiting.remove(command)
            command.abandon(GuestError("the command was taken back before it began"))
            return True

    def _next(self, slot: _Slot) -> None:
        slot.active = None
        self._schedule()

    def _schedule(self) -> None:
        """Start the commands that wait, as far as there are slots; in their order."""
        if not self.ready or self._adoptions:
            return
        for command in list(self._waiting):
            number = next(
                (n for n, slot in enumerate(self._slots) if slot.idle and command.fits(n)), None
            )
            if number is None:
                self._open_slot()
                continue
            self._waiting.remove(command)
            self._slots[number].active = command
            command.begin(number)

    def _open_slot(self) -> None:
        """Ask for one slot more, unless one is on its way or there can be none."""
        number = len(self._slots)
        if number < MAX_SLOTS and self._slots[-1].ready and self.channels.extend(number):
            self._add_slot()
            self.channels.send(SIGNAL, protocol.slot_line(number))

    def _add_slot(self) -> _Slot:
        number = len(self._slots)
        self._slots.append(_Slot())
        for port in SLOT_PORTS:
            self._ports[port_name(port, number)] = (number, port)
        return self._slots[-1]

    def _give_again(self) -> None:
        """Have the guest set its clock again, if it took its identity late."""
        now = time.monotonic()
        if self._again is not None and self._rounds and now - self._asked > _LATE:
            self._asked, self._rounds = now, self._rounds - 1
            self._adoptions += 1
            self._again()

    def _answered(self, slot: _Slot, answer: Answer) -> None:
        match answer:
            case Ready() if not slot.ready:
                slot.ready = True
                if not self.ready and slot is self._slots[0]:
                    self.release = answer.release
                    if self.listens():
                        self._adoptions += self._early
                    self._early = 0
                    self._ready.set()
                    if self.on_ready is not None:
                        self.on_ready()
                self._schedule()
            case Exited() if slot.active is not None and answer.number == str(slot.active.number):
                if slot.active.exited(answer.status):
                    self._next(slot)
            case Adopted():
                if self._adoptions:
                    self._adoptions -= 1
                    self._adopted.notify_all()
                    self._give_again()
                else:
                    self._early = max(0, self._early - 1)
                # One that a guest has not taken yet does for all.
                if self.asks_for_addresses and self.channels.backlog(SIGNAL) < protocol.MAX_LINE:
                    # Commands that run already want the network, too.
                    self.channels.send(SIGNAL, protocol.NETWORK)
                self._schedule()
            case Fault() if not self.ready:
                self.fault = GuestError(
                    answer.text, hint="its console says more: `ringzero logs`, `--serial`"
                )
                self.close(self.fault)
            case Ready() | Exited() | Fault() | Nonsense():
                self.faults += 1
