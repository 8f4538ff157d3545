"""One machine of a pool: it has answered a command, waits for its client, and ends with it.

It runs in a process of its own, forked from the pool's, with the client's streams as its own and
the same session as `run` has.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ringzero.cli import session, signals
from ringzero.cli.pool import line, place
from ringzero.cli.pool.protocol import (
    ACCEPTED,
    CODE,
    COMMAND,
    GREETING,
    KEEP,
    LINE,
    MAX_REQUEST,
    MESSAGE,
    REFUSED,
    SIGNAL,
    is_ours,
    number_of,
    unpack,
)
from ringzero.control.host.directory import Claim, MachineDirectory
from ringzero.control.host.report import Reporter
from ringzero.control.machine.actions import HANDLERS
from ringzero.control.machine.become import become
from ringzero.errors import GuestError, RingzeroError
from ringzero.host.process import set_title
from ringzero.vm.exit import Exit
from ringzero.vm.guest.agent import Agent
from ringzero.vm.guest.contract import Console, Guest, Line
from ringzero.vm.guest.identity import Identity
from ringzero.vm.machine import Machine

if TYPE_CHECKING:
    from ringzero.vm.seed import Seed

# How long a fresh copy may take for its first command, in seconds, on the slowest of hosts.
PATIENCE = 60.0
# How long a client may take to send its request, once it was greeted, in seconds.
_ASKING = 5.0
_STREAMS = (0, 1, 2)
# How many descriptors come with a message.
_FILES = {COMMAND: 1 + len(_STREAMS), LINE: 2 + len(_STREAMS), KEEP: 3}


class LentMachine:
    """The machine as the session sees it: started already, and ended with the process."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.serial: Line = machine.serial
        self.console: Console = machine.console

    @property
    def agent(self) -> Agent:
        """The protocol with ringzero's own guests."""
        return self._machine.agent

    def start(self) -> None:
        """It runs."""

    def wait(self, timeout: float | None = None) -> Exit | None:
        """Wait for the end of the guest; None when `timeout` seconds are over."""
        return self._machine.wait(timeout)

    def stop(self) -> None:
        """Leave it to the end of the process, which is near."""

    def stats(self) -> Mapping[str, Any]:
        """Where the time went."""
        return {**self._machine.stats(), "started": "ready in a pool"}


class Worker:
    """A process of the pool with one machine; `listening` is the pool's socket.

    `report` hears "ready", then "taken" or "kept", in lines with this process's number; `life`
    ends with the pool, whose name is `key`.
    """

    def __init__(self, listening: socket.socket, report: int, life: int, key: str) -> None:
        self._listening = listening
        self._report = report
        self._life = life
        self._key = key

    def work(self, origin: Machine, seed: Seed, words: tuple[str, ...]) -> NoReturn:
        """Grow a machine from `seed`, serve one client with it, and end the process."""
        code = 1
        try:
            os.setsid()
            set_title("rz-pool-vm")
            # What is there is never garbage, and looking for some would copy all of it.
            gc.freeze()
            origin.leave()
            machine = origin.grow(seed, Identity(name=origin.config.name))
            machine.start()
            signals.install()
            # What a first command waits for, and brings into memory of the guest and of this
            # process, is there then.
            warm = {"words": words, "takes_input": True, "timeout": PATIENCE}
            if _run(machine, warm) != place.encode(code=0):
                raise GuestError("the copy's first command failed")
            self._say("ready")
            while (link := self._client()) is not None:
                with link:
                    if self._serve(machine, link):
                        break
            code = 0
        except BaseException as fault:
            with contextlib.suppress(OSError):
                print(f"machine {os.getpid()}: {type(fault).__name__}: {fault}", file=sys.stderr)
                sys.stderr.flush()
        finally:
            os._exit(code)

    def _say(self, what: str) -> None:
        os.write(self._report, f"{what} {os.getpid()}\n".encode())

    def _client(self) -> socket.socket | None:
        """Return the connection of a client that has heard the greeting; None when all is over."""
        poller = select.epoll()
        # One of those who wait is woken, not all.
        poller.register(self._listening, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        poller.register(self._life, select.EPOLLIN)
        while True:
            woken = [descriptor for descriptor, _ in poller.poll()]
            if self._life in woken:
                return None
            try:
                link, _ = self._listening.accept()
            except OSError:
                # A sibling was quicker, or the client has gone.
                continue
            link.settimeout(_ASKING)
            if is_ours(link):
                with contextlib.suppress(OSError):
                    link.send(GREETING)
                    # One that has waited too long is gone, and the machine is the next one's.
                    if link.recv(1, socket.MSG_PEEK):
                        return link
            link.close()

    def _serve(self, machine: Machine, link: socket.socket) -> bool:
        """Run the client's command on the client's streams, and tell how it ended.

        False for one that is not for this machine, which is then the next one's.
        """
        kind, descriptors, _, _ = socket.recv_fds(link, MESSAGE, _FILES[LINE])
        try:
            if len(descriptors) != _FILES.get(kind):
                raise GuestError("a client without its streams")
            request = os.pread(descriptors[0], MAX_REQUEST, 0)
            if kind == KEEP:
                asked = place.decode(request)
                if asked.get("settings") != place.settings():
                    link.send(REFUSED)
                    return False
                self._become(machine, link, Path(str(asked["path"])), descriptors)
            if kind == LINE:
                run = self._line(machine, request, descriptors[-1])
                link.send(REFUSED if run is None else ACCEPTED)
                if run is None:
                    return False
            else:
                run = _command(machine, request)
            # Nobody is to wait for a machine here when the pool is gone.
            self._listening.close()
            self._say("taken")
            for source, target in zip(descriptors[1:], _STREAMS, strict=False):
                os.dup2(source, target)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        link.settimeout(None)
        threading.Thread(target=_listen, args=(link,), name="client", daemon=True).start()
        answer = run()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        with contextlib.suppress(OSError):
            link.send(answer)
        return True

    def _become(
        self, machine: Machine, link: socket.socket, path: Path, files: list[int]
    ) -> NoReturn:
        """Be the process of a machine's directory from now on, with its lock and a report."""
        claim = Claim(MachineDirectory(path), os.dup(files[1]))
        reporter = Reporter(os.dup(files[2]))
        link.send(ACCEPTED)
        self._say("kept")
        link.close()
        self._listening.close()
        for descriptor in (*files, self._report, self._life):
            os.close(descriptor)

        def named() -> Machine:
            machine.rename(claim.directory.name)
            return machine

        become(claim, reporter, HANDLERS, named, resumed=False)

    def _line(self, machine: Machine, request: bytes, directory: int) -> Callable[[], bytes] | None:
        """Return what runs a command line that is for this machine, and returns the answer."""
        try:
            words, environment, takes_input = unpack(request)
        except ValueError:
            return None
        with line.like(environment, directory) as possible:
            found = line.read(words, self._key) if possible else None
        if found is None:
            return None
        run = partial(_session, machine, takes_input=takes_input)
        return lambda: CODE + b" %d" % found.run(run)


def _session(machine: Machine, **how: Any) -> int:
    guest: Guest = LentMachine(machine)
    return session.run(machine.config, **how, build=lambda *_, **__: guest)


def _command(machine: Machine, request: bytes) -> Callable[[], bytes]:
    """Return what runs the command of a request, and returns the answer. Raises GuestError."""
    asked = place.decode(request)
    if not isinstance(asked.get("words"), list):
        raise GuestError("a client without a command")
    return partial(_run, machine, asked)


def _run(machine: Machine, request: dict[str, Any]) -> bytes:
    timeout = request.get("timeout")
    try:
        code = _session(
            machine,
            words=list(map(str, request["words"])),
            timeout=float(timeout) if timeout is not None else None,
            stats=bool(request.get("stats")),
            as_json=bool(request.get("json")),
            takes_input=bool(request.get("takes_input")),
        )
    except BrokenPipeError:
        return place.encode(broken=True)
    except RingzeroError as fault:
        return place.encode(error=fault.to_dict())
    except KeyboardInterrupt:
        return place.encode(code=128 + signal.SIGINT)
    except SystemExit as end:
        return place.encode(code=end.code if isinstance(end.code, int) else 1)
    return place.encode(code=code)


def _listen(link: socket.socket) -> None:
    """Hear of the client's signals; its end is the machine's."""
    while True:
        try:
            data = link.recv(MESSAGE)
        except OSError:
            data = b""
        if not data:
            os._exit(0)
        number = number_of(data, SIGNAL)
        if number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
