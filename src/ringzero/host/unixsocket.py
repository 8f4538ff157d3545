"""Unix stream sockets by path: listening where a dead process left its socket, connecting."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from pathlib import Path

from ringzero.errors import ConflictError, HostError
from ringzero.host.files import host_error

# unix(7): sun_path has 108 bytes, the last of which is zero.
LONGEST_PATH = 107
# struct ucred: pid, uid, gid.
_UCRED = struct.Struct("@iII")


class Listener:
    """A listening socket at `path`, for this user only; `close` removes it.

    Raises ConflictError when somebody listens there, HostError.
    """

    def __init__(self, path: Path, backlog: int = 64) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            _remove_dead(path)
            # The file gets the socket's own mode: it is nobody else's for no moment, and whoever
            # waits for it finds somebody who listens the sooner.
            os.fchmod(self.socket.fileno(), 0o600)
            self.socket.bind(os.fspath(path))
            self.socket.listen(backlog)
            self.socket.setblocking(False)
            self._inode = path.stat().st_ino
        except OSError as fault:
            self.socket.close()
            raise _explained(fault, "listen on", path) from fault
        except BaseException:
            self.socket.close()
            raise

    def close(self) -> None:
        """Stop to listen; the socket's file goes, unless it is another's by now."""
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        self.socket.close()


def connect(path: Path | str) -> socket.socket:
    """Return a socket, not blocking, that is connected to `path`; raises HostError."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    link.setblocking(False)
    try:
        link.connect(os.fspath(path))
    except OSError as fault:
        link.close()
        raise _explained(fault, "connect to", path) from fault
    return link


def reach(directory: Path, name: str) -> socket.socket | None:
    """Return a blocking connection to a socket in a directory, however long its path.

    None where nobody listens. Raises HostError where this process has no descriptor left for it.
    """
    try:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    except OSError as fault:
        raise host_error(fault, "reach", directory) from fault
    descriptor = -1
    try:
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # unix(7) has 107 bytes for a path.
        link.connect(f"/proc/self/fd/{descriptor}/{name}")
    except OSError:
        link.close()
        return None
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return link


def credentials(link: socket.socket, size: int = 65536) -> tuple[bytes, int]:
    """Return what comes next, and the number of the process that sent it, as the kernel has it.

    For a socket with SO_PASSCRED. Nothing, and 0, at the end. Raises OSError.
    """
    data, more, _, _ = link.recvmsg(size, socket.CMSG_SPACE(_UCRED.size))
    for level, kind, content in more:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return data, int(_UCRED.unpack(content)[0])
    return data, 0


def _remove_dead(path: Path) -> None:
    """Remove a socket on which nobody listens any more."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise HostError(f"{path} exists, and is no socket", hint="give another path", path=path)
    except FileNotFoundError:
        return
    try:
        connect(path).close()
    except HostError as fault:
        if fault.context.get("errno") != errno.ECONNREFUSED:
            raise
        path.unlink(missing_ok=True)
        return
    raise ConflictError(f"somebody listens on {path} already", hint="give another path", path=path)


def _explained(fault: OSError, action: str, path: Path | str) -> HostError:
    error = host_error(fault, action, path)
    if len(os.fsencode(path)) > LONGEST_PATH:
        return HostError(
            f"cannot {action} {path}: a socket's path has at most {LONGEST_PATH} bytes",
            hint="give a shorter path",
            path=path,
        )
    error.hint = None if fault.errno != errno.ENOENT else "is the directory there?"
    return error
