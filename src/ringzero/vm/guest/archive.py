"""Archives that go into a guest and come out of it, over its agent (`ringzero.api.copying`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ringzero.api import copying
from ringzero.api.copying import Rule
from ringzero.errors import GuestError
from ringzero.host.tarstream import Intake, Plan, Unpacking
from ringzero.vm.guest.agent import Agent
from ringzero.vm.guest.contract import INPUT_AHEAD

# How long the guest may take to leave an archive that is no longer wanted, in seconds.
_LEAVE = 2.0


class Said:
    """What the guest's programs say of what goes wrong, the beginning of it."""

    def __init__(self) -> None:
        self.text = bytearray()

    def add(self, data: bytes) -> None:
        """Take more of it."""
        self.text += data[: max(0, copying.MAX_SAID - len(self.text))]


class Upload:
    """An archive on its way to `path` of the guest.

    `write` it, then `finish`, or `abort`. `on_fault` hears of a guest that takes no more,
    on the agent's thread. Raises InvalidValueError.
    """

    def __init__(
        self,
        agent: Agent,
        path: str,
        rule: Rule,
        on_fault: Callable[[GuestError], object] = lambda fault: None,
        on_room: Callable[[], object] = lambda: None,
    ) -> None:
        self._agent = agent
        self._where = (path, rule, copying.token())
        self._said = Said()
        self._on_fault, self._on_room = on_fault, on_room
        self._room = threading.Event()
        self.command = agent.run(
            agent.as_root(copying.receive(*self._where)),
            takes_input=True,
            on_stderr=self._said.add,
            on_exit=self._over,
            on_lost=self._wake,
        )
        self.command.on_room = self._wake

    @property
    def backlog(self) -> int:
        """Bytes that the guest has not taken yet."""
        return self.command.backlog

    def send(self, data: bytes) -> None:
        """Send bytes of the archive; never waits."""
        self.command.write(data)

    def write(self, data: bytes) -> None:
        """Send bytes of the archive; waits for room. Raises GuestError."""
        self.command.write(data)
        while True:
            self._room.clear()
            if self._ended or self.command.backlog <= INPUT_AHEAD:
                break
            self._room.wait()
        if self._ended:
            self._check(self.command.wait())

    def finish(self) -> None:
        """The archive is whole: put what it holds in its place. Raises GuestError."""
        self.command.close_input()
        self._check(self.command.wait())
        said = Said()
        words = self._agent.as_root(copying.place(*self._where))
        command = self._agent.run(words, on_stderr=said.add)
        status = command.wait()
        if status:
            raise copying.fault(bytes(said.text), status)

    def abort(self) -> None:
        """The archive will not be whole: throw away what the guest has of it."""
        if self.command.status is None and not self._agent.withdraw(self.command):
            self.command.signal("HUP")
            self.command.close_input()
            if self.command.wait_quietly(_LEAVE) is None:
                self.command.signal("KILL")
        self._agent.run(self._agent.as_root(copying.discard(*self._where)))

    @property
    def _ended(self) -> bool:
        return self.command.status is not None or self.command.fault is not None

    def _check(self, status: int | None) -> None:
        if status:
            raise copying.fault(bytes(self._said.text), status)

    def _over(self, status: int) -> None:
        self._wake()
        if status:
            self._on_fault(copying.fault(bytes(self._said.text), status))

    def _wake(self) -> None:
        self._room.set()
        self._on_room()


class Download:
    """An archive of a file or folder of the guest, to be read; `close` it."""

    def __init__(self, agent: Agent, path: str, *, follow: bool, intake: Intake) -> None:
        self._intake, self._said = intake, Said()
        self._command = agent.run(
            agent.as_root(copying.send(path, follow=follow)),
            on_stdout=self._take,
            on_stderr=self._said.add,
            on_exit=self._over,
            on_lost=lambda: intake.close(GuestError("the machine was taken back to a snapshot")),
        )
        intake.on_room = lambda: self._command.hold_output(False)
        threading.Thread(target=self._watch, name="download", daemon=True).start()

    def close(self) -> None:
        """End the guest's side, whatever it still has."""
        self._intake.leave()
        if self._command.status is None:
            self._command.hold_output(False)
            self._command.signal("KILL")

    def _take(self, data: bytes) -> None:
        if not self._intake.feed(data):
            self._command.hold_output(True)

    def _over(self, status: int) -> None:
        fault = copying.fault(bytes(self._said.text), status) if status else None
        self._intake.close(fault)

    def _watch(self) -> None:
        """Hear of a guest that goes away before it has ended."""
        try:
            self._command.wait()
        except BaseException as fault:
            # Whatever it is, it belongs to whoever reads.
            self._intake.close(fault)


def copy_in(
    agent: Agent,
    sources: Sequence[str | Path],
    target: str,
    *,
    follow: bool = False,
    owners: bool = False,
) -> None:
    """Copy files and folders of the host to `target` of the guest.

    Raises what `Plan` does, HostError, GuestError, InvalidValueError.
    """
    plan = Plan(sources, follow=follow, owners=owners)
    upload = Upload(agent, target, plan.rule)
    try:
        plan.write(upload.write)
    except BaseException:
        upload.abort()
        raise
    upload.finish()


def copy_out(
    agent: Agent, source: str, target: Path, *, follow: bool = False, owners: bool = False
) -> None:
    """Copy a file or folder of the guest to `target` of the host.

    Raises what `Unpacking` does, and GuestError.
    """
    contents = copying.holds_contents(source)
    intake = Intake()
    with Unpacking(target, contents=contents, owners=owners) as unpacking:
        download = Download(agent, source, follow=follow, intake=intake)
        try:
            unpacking.take(intake)
            intake.drain()
        finally:
            download.close()
        unpacking.place()
