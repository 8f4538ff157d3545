"""virtio persistent memory (virtio 1.2 section 5.19): memory of the guest's that lies in a file.

The driver reads and writes it like RAM, without the device; it asks for a flush when what it
wrote is to survive.
"""

from __future__ import annotations

import struct
from typing import Protocol

from ringzero.devices.virtio.device import VIRTIO_DEVICES, VirtioDevice
from ringzero.errors import RingzeroError
from ringzero.records import record

# Section 5.19.4: where it begins, and how many bytes it has.
CONFIG = struct.Struct("<QQ")
# Section 5.19.6: the only type of a request, and what it is answered with.
FLUSH = 0
REQUEST = RESPONSE = struct.Struct("<I")
DONE, FAILED = 0, 1
_FLUSH = REQUEST.pack(FLUSH)
_QUEUE_SIZE = 64


class Store(Protocol):
    """What the memory lies in."""

    def flush(self) -> None:
        """Return when all that was written survives a loss of power. Raises DiskError."""
        ...


@record
class PmemState:
    """Nothing: what it holds lies in the file, and where is the machine's description's affair."""


@VIRTIO_DEVICES.register("pmem")
class Pmem(VirtioDevice[PmemState]):
    """`size` bytes of persistent memory at guest-physical `base`, a multiple of 2 MiB each.

    A flush is done on the thread that hears of it: the guest waits for that anyway.
    """

    device_id = 27
    state_type = PmemState

    def __init__(self, store: Store, base: int = 0, size: int = 0) -> None:
        super().__init__((_QUEUE_SIZE,))
        self._store = store
        self.base, self.size = base, size
        self.flushes = self.failures = 0

    def place(self, base: int, size: int) -> None:
        """Say where it is; before the driver looks."""
        self.base, self.size = base, size

    def config(self) -> bytes:
        return CONFIG.pack(self.base, self.size)

    def notify(self, index: int) -> None:
        queue = self.queues[index]
        for chain in queue.requests():
            request = chain.gather(REQUEST.size)
            code = self._flush() if request == _FLUSH else FAILED
            queue.push(chain, chain.scatter(RESPONSE.pack(code)))
        self.complete(queue)

    def _flush(self) -> int:
        self.flushes += 1
        try:
            self._store.flush()
        except RingzeroError:
            self.failures += 1
            return FAILED
        return DONE

    def save(self) -> PmemState:
        return PmemState()

    def restore(self, state: PmemState) -> None:
        """There is nothing to restore."""
