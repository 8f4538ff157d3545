"""Peak memory of a process that runs a machine, without the guest's RAM."""

from __future__ import annotations

import threading
from pathlib import Path

# Often enough for growth over tenths of a second; a look takes about 2 ms of the process's time.
INTERVAL = 0.2


def resident_bytes(pid: int, ram: int) -> int:
    """Return the resident bytes of a process, but for mappings of exactly `ram` bytes."""
    total = size = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if line.startswith("Size:"):
            size = int(line.split()[1]) << 10
        elif line.startswith("Rss:") and size != ram:
            total += int(line.split()[1]) << 10
    return total


class PeakMemory:
    """While in `with`: watches a process; `bytes` is the most it held at any look."""

    def __init__(self, pid: int, ram: int) -> None:
        self.bytes = 0
        self._pid = pid
        self._ram = ram
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def look(self) -> None:
        """Look now."""
        self.bytes = max(self.bytes, resident_bytes(self._pid, self._ram))

    def _watch(self) -> None:
        while not self._over.wait(INTERVAL):
            try:
                self.look()
            except OSError:
                return

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
