"""What cloud-init in a guest says on the serial line: that it has finished, and what went wrong.

Its final message goes to the console (cloud-init, "final_message"), and so do warnings of its
modules, each line with the time before it and a name behind: "cloud-init[412]: ...".
"""

from __future__ import annotations

import re
import threading

from ringzero.vm.guest.linux import ESCAPES

_FINISHED = re.compile(r"Cloud-init v\. \S+ finished at")
_PROBLEM = re.compile(
    r"cloud-init\[\d+\]: .*?((\w+\.py)\[(WARNING|ERROR|CRITICAL)\]: .*|Traceback .*|ERROR: .*)"
    r"|(Failed to start .*[Cc]loud-(init|config|final)\S*.*)"
)
# A line that is longer is none of cloud-init's; a guest may write without end, in bytes.
_LONGEST = 4096
_MOST = 20


class CloudInitWatch:
    """Takes the serial line's output; `finished` and `problems` say what was heard."""

    def __init__(self) -> None:
        self._finished = threading.Event()
        self.problems: list[str] = []
        self._line = b""

    @property
    def finished(self) -> bool:
        """Whether cloud-init has said its final message."""
        return self._finished.is_set()

    def wait(self, timeout: float) -> bool:
        """Wait until it has, for `timeout` seconds at most; return whether it has."""
        return self._finished.wait(timeout)

    def feed(self, data: bytes) -> None:
        """Take what the guest wrote next."""
        *lines, self._line = (self._line + data).split(b"\n")
        self._line = self._line[-_LONGEST:]
        for line in lines:
            self._hear(re.sub(ESCAPES, "", line[-_LONGEST:].decode("utf-8", "replace")).strip())

    def _hear(self, line: str) -> None:
        if _FINISHED.search(line):
            self._finished.set()
        found = _PROBLEM.search(line)
        if found and len(self.problems) < _MOST:
            self.problems.append((found[1] or found[4]).strip())
