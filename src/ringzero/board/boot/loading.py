"""Kernel and initrd on their way into memory while the rest of the machine is built.

Copying some 35 MiB takes a sixth of a start, and none of Python: the thread
that does it holds the interpreter's lock only between pieces.
"""

from __future__ import annotations

import threading

from ringzero.board.boot.kernelimage import KernelImage
from ringzero.core.memory import GuestMemory


class Loading:
    """Copies `kernel` and `initrd` into `memory`, which nobody has written to yet.

    No engine runs on that memory before `wait`, and it stays open until then.
    """

    def __init__(
        self, memory: GuestMemory, kernel: KernelImage, initrd: bytes | memoryview = b""
    ) -> None:
        self._memory = memory
        self._kernel = kernel
        self._initrd = initrd
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._copy, name="loading", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when all is there; raises GuestAddressError, GuestImageError, HostError."""
        self.join()
        if self._failure is not None:
            raise self._failure

    def join(self) -> None:
        """Return when the memory is left alone, whatever came of it."""
        self._thread.join()

    def _copy(self) -> None:
        try:
            for segment in self._kernel.segments:
                self._memory.fill(segment.address, segment.data)
            if self._initrd:
                low_end = self._memory.regions[0].end
                address = self._kernel.place_initrd(len(self._initrd), low_end)
                self._memory.fill(address, self._initrd)
        except BaseException as failure:  # it belongs to whoever waits
            self._failure = failure
