"""What a copy's process is handed by the host's side: its machine's files, open already.

The process that copies come from may be jailed: it comes to no directory but its own, and writes
down nobody's number. Who asks for copies makes their directories, and sends one message for each
over a socket that all of them share. A copy takes one, says over its own report that it is there,
and goes on when the host's side, which has its number from the kernel (SCM_CREDENTIALS, unix(7)),
has written that down.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from ringzero.control.host.directory import (
    CONSOLE_LOG,
    EXIT,
    HEALTH,
    MACHINE,
    PROCESS,
    SOCKET,
    STATUS,
    VMM_LOG,
    Claim,
    MachineDirectory,
)
from ringzero.control.host.records import ProcessRecord, save
from ringzero.errors import ControlError, HostError
from ringzero.host.files import host_error
from ringzero.host.process import ProcessIdentity, cgroup_of, oom_kills
from ringzero.host.unixsocket import credentials
from ringzero.records import record

# What a copy writes while it runs, and how it is opened.
WRITTEN = (STATUS, HEALTH, EXIT, CONSOLE_LOG, f"{CONSOLE_LOG}.1")
_WRITTEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
# Lock, report, description, log of the process, listener; and what it writes.
_COUNT = 5 + len(WRITTEN)
# The longest path of a directory (PATH_MAX).
_LONGEST = 4096
# How many clients may wait to be taken, as `ringzero.control.machine.server` has it.
_BACKLOG = 128
# What the host's side says to a copy that is to go on.
_GO = b"g"


@record
class Handed:
    """What a copy has of its machine: descriptors that are its own from now on.

    `machine` is to read, `written` by name to write, `listener` is bound.
    """

    directory: MachineDirectory
    lock: int
    report: int
    machine: int
    log: int
    listener: int
    written: dict[str, int]


class Birth:
    """The host's side of one copy, from its directory until it is up; to be closed."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.there = False
        self._text = b""
        self._report, self._its_report = socket.socketpair()
        # From the first byte on: the kernel tells who sends.
        self._report.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    def fileno(self) -> int:
        """Return the descriptor that can be read from when the copy says something."""
        return self._report.fileno()

    def send(self, link: socket.socket) -> None:
        """Open the machine's files and hand them to the next copy. Raises HostError, OSError."""
        place, files = self.claim.directory, list[int]()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with place.socket_address() as address:
                listener.bind(address)
            place.file(SOCKET).chmod(0o600)
            listener.listen(_BACKLOG)
            files.append(os.open(place.file(MACHINE), os.O_RDONLY | os.O_CLOEXEC))
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            files.append(os.open(place.file(VMM_LOG), flags, 0o600))
            for name in WRITTEN:
                appended = os.O_APPEND if name == CONSOLE_LOG else 0
                files.append(os.open(place.file(name), _WRITTEN | appended, 0o600))
            handed = [self.claim.lock, self._its_report.fileno(), *files[:2], listener.fileno()]
            socket.send_fds(link, [os.fsencode(place.path)], [*handed, *files[2:]])
        except OSError as fault:
            raise host_error(fault, "open", place.path) from fault
        finally:
            listener.close()
            for file in files:
                os.close(file)
        self._its_report.close()

    def read(self) -> list[bytes]:
        """Return the lines that the copy has said; [] where it is gone.

        At the first of them its number is written down, and it goes on. Raises HostError.
        """
        data, pid = credentials(self._report)
        if not data:
            return []
        if not self.there:
            self._note(pid)
            self.there = True
        *lines, self._text = (self._text + data).split(b"\n")
        return lines

    def _note(self, pid: int) -> None:
        cgroup, identity = cgroup_of(pid), ProcessIdentity.of(pid)
        found = ProcessRecord(pid, identity.started, identity.boot, cgroup, oom_kills(cgroup))
        save(found, self.claim.directory.file(PROCESS))
        files = list[int]()
        # In a jail it comes to its original's /proc alone.
        with contextlib.suppress(OSError):
            files.append(os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC))
        try:
            socket.send_fds(self._report, [_GO], files)
        except OSError as fault:
            raise ControlError("the process of a copy ended at once") from fault
        finally:
            for file in files:
                os.close(file)

    def close(self) -> None:
        """Free it; a copy that has not gone on ends."""
        self._report.close()
        self._its_report.close()


def take(link: socket.socket) -> Handed:
    """In a copy's process: take what is its own. Raises HostError."""
    path, files, _, _ = socket.recv_fds(link, _LONGEST, _COUNT)
    if len(files) != _COUNT:
        for file in files:
            os.close(file)
        raise HostError("a copy was handed no machine")
    lock, report, machine, log, listener, *written = files
    directory = MachineDirectory(Path(os.fsdecode(path)))
    names = dict(zip(WRITTEN, written, strict=True))
    return Handed(directory, lock, report, machine, log, listener, names)


def await_go(report: int) -> int | None:
    """In a copy's process: say that it is there; return its pagemap, None where there is none.

    Raises HostError where nobody waits for it any more.
    """
    with socket.socket(fileno=os.dup(report)) as link:
        link.sendall(b"{}\n")
        said, files, _, _ = socket.recv_fds(link, 1, 1)
    if said != _GO:
        raise HostError("nobody waits for the copy any more")
    return files[0] if files else None
