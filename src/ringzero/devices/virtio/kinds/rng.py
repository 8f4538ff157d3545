"""virtio entropy device (virtio 1.2 section 5.4). The exemplary device: copy it for a new one."""

from __future__ import annotations

import os
from collections.abc import Callable

from ringzero.devices.virtio.device import VIRTIO_DEVICES, VirtioDevice
from ringzero.records import record

# One request gets at most this much, so that a guest cannot hold a vCPU
# thread with a buffer of gigabytes; Linux asks for 64 bytes or less.
MAX_REQUEST = 64 * 1024


@record
class RngState:
    """Nothing: entropy must not be the same twice."""


@VIRTIO_DEVICES.register("rng")
class Rng(VirtioDevice[RngState]):
    """Fills the guest's buffers from `source(count)`."""

    device_id = 4
    state_type = RngState

    def __init__(self, source: Callable[[int], bytes] = os.urandom) -> None:
        super().__init__(queue_sizes=(64,))
        self._source = source

    def notify(self, index: int) -> None:
        queue = self.queues[index]
        for chain in queue.requests():
            count = min(chain.writable_size, MAX_REQUEST)
            queue.push(chain, chain.scatter(self._source(count)))
        self.complete(queue)

    def save(self) -> RngState:
        return RngState()

    def restore(self, state: RngState) -> None:
        """There is nothing to restore."""
