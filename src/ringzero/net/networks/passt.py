"""passt (passt.top) as the way out: a process of its own, started and watched here.

It speaks over one end of a pair of sockets and ends with it, so that it outlives no machine. When
it ends before that, the guest's link goes down, and another is started.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ringzero.config.devices.net import NetConfig
from ringzero.errors import ConfigError, HostError
from ringzero.host.files import host_error
from ringzero.net.contract import NETWORKS
from ringzero.net.networks.socket import SocketNetwork

if TYPE_CHECKING:
    import subprocess

PROGRAM = "passt"
# How long a process that cannot be what it should takes to notice, in seconds; and one that was
# told to end, to do so.
_NOTICE, _END = 0.1, 2.0
# The most that is read of what it said, in bytes.
_SAID = 4096


@NETWORKS.register("passt")
class PasstNetwork(SocketNetwork):
    """A machine's own passt; with `config.target`, one that listens at that path.

    `restarts` counts those that were started because the one before had ended. Raises HostError
    where there is no passt, or it does not start.
    """

    def __init__(self, config: NetConfig) -> None:
        if config.listen:
            raise ConfigError(["passt listens, and nobody connects to a machine's end"])
        self.restarts = 0
        self._process: subprocess.Popen[bytes] | None = None
        # What it says; not a pipe, which somebody would have to read.
        self._said = -1
        self._first: socket.socket | None = None
        self._program = "" if config.target else _program()
        super().__init__(config)
        if self._program:
            try:
                self._said = os.memfd_create(PROGRAM, os.MFD_CLOEXEC)
                self._first = self._start()
                self._await_start()
            except BaseException:
                self._let_go()
                super().close()
                raise

    def _place(self, config: NetConfig) -> Path:
        return Path(config.target)

    def close(self) -> None:
        super().close()
        self._let_go()

    def leave(self) -> None:
        super().leave()
        # The process is the original's to wait for.
        self._process = None
        self._let_go()

    def counters(self) -> dict[str, int]:
        return {**super().counters(), "restarts": self.restarts}

    def _let_go(self) -> None:
        if self._first is not None:
            self._first.close()
            self._first = None
        if self._process is not None:
            # Its end of the pair is closed: it ends by itself.
            import subprocess

            try:
                self._process.wait(_END)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._said >= 0:
            os.close(self._said)
            self._said = -1

    # ---- the process ------------------------------------------------------

    def _connect(self) -> socket.socket:
        if not self._program:
            return super()._connect()
        first, self._first = self._first, None
        if first is not None:
            return first
        self._tell_end()
        self.restarts += 1
        return self._start()

    def _start(self) -> socket.socket:
        """Start the process; return our end of the pair."""
        import subprocess

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        words = [self._program, "--foreground", "--stderr", "--mtu", str(self.config.mtu)]
        with theirs:
            os.ftruncate(self._said, 0)
            try:
                self._process = subprocess.Popen(
                    [*words, "--fd", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._said,
                )
            except OSError as fault:
                ours.close()
                raise host_error(fault, "start", Path(self._program)) from fault
        ours.setblocking(False)
        return ours

    def _await_start(self) -> None:
        """Raise HostError where the process has ended at once."""
        import subprocess

        process = self._process
        if process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = process.wait(_NOTICE)
            raise HostError(
                f"passt does not start: {self._last_words() or f'it ended with status {status}'}",
                hint="--net user needs no other program",
            )

    def _tell_end(self) -> None:
        """Say on standard error how the process ended, for whoever looks at the machine's log."""
        process, self._process = self._process, None
        if process is None:
            return
        # Its socket has ended, and with it what it is for.
        process.kill()
        status = process.wait()
        said = self._last_words()
        print(
            f"ringzero: passt ended ({f'signal {-status}' if status < 0 else f'status {status}'})"
            + (f": {said}" if said else "")
            + "; another is started, and connections are lost",
            file=sys.stderr,
        )

    def _last_words(self) -> str:
        data = os.pread(self._said, _SAID, max(0, os.fstat(self._said).st_size - _SAID))
        lines = data.decode("utf-8", "replace").strip().splitlines()
        return lines[-1].strip() if lines else ""


def _program() -> str:
    found = shutil.which(PROGRAM)
    if found is None:
        raise HostError(
            "this host has no passt",
            hint="install it (`apt-get install passt`), or use --net user, which needs none",
        )
    return found
