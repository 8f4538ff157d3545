"""What a virtio device is, apart from how the guest reaches it (virtio 1.2 section 2)."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from ringzero.config.device import DeviceConfig
from ringzero.devices.virtio.queue import Virtqueue
from ringzero.host.service import OnFault
from ringzero.registry import Registry

S = TypeVar("S")


class Transport(Protocol):
    """What a device asks of its transport; all of it from any thread."""

    def interrupt_queue(self, queue: Virtqueue) -> None:
        """Tell the driver that used buffers wait in `queue`."""
        ...

    def interrupt_config(self) -> None:
        """Tell the driver that the configuration space changed."""
        ...

    def serve(self, index: int) -> None:
        """Call `notify(index)` for a reason on the host's side, if the driver is ready for it."""
        ...

    def serves(self, index: int) -> bool:
        """Return whether the driver is ready for queue `index`; the device's lock is held.

        Who looks at a queue on its strength, outside `notify`, tells `fail` of a QueueError.
        """
        ...

    def fail(self, reason: str) -> None:
        """Tell the driver that the device needs a reset; it is not served until then."""
        ...


class VirtioDevice(ABC, Generic[S]):
    """A virtio device of one type. The transport calls, holding `lock`:

    `activate` once the driver is ready, `notify` when it offers buffers,
    `reset` at any time. The device calls `self.transport` when it has pushed
    buffers that the driver wants to hear of (`complete` does it). Only within
    `notify` may a method that touches a queue raise QueueError: what happens
    on the host's side goes through `transport.serve`, or asks `transport.serves`.
    """

    # Section 5: the number of the device type.
    device_id: ClassVar[int]
    state_type: ClassVar[type[Any]]
    # Hears of an exception that ends a thread of the device's.
    on_fault: OnFault | None = None

    def __init__(self, queue_sizes: tuple[int, ...], features: int = 0) -> None:
        self.queue_sizes = queue_sizes
        # How many of them a saved machine has at least: later versions of a device may have more.
        self.least_queues = len(queue_sizes)
        # Feature bits of the device type (0-23, 50-127); the transport adds the common ones.
        self.features = features
        self.lock = threading.RLock()
        self.transport: Transport
        self.queues: list[Virtqueue] = []
        # The features that the driver took; valid between `activate` and `reset`.
        self.accepted = 0

    @classmethod
    def from_config(cls, config: DeviceConfig) -> VirtioDevice[Any]:
        """Make the device that a description of its kind asks for.

        One that needs somebody else on the host's side has a backend instead, which makes it
        (`ringzero.vm.ends.backend`).
        """
        raise NotImplementedError

    def activate(self) -> None:
        """Start to serve: queues and accepted features are final."""

    @abstractmethod
    def notify(self, index: int) -> None:
        """Serve queue `index`. It may raise QueueError, which the transport handles."""

    def reset(self) -> None:
        """Drop everything the driver set; requests in flight must not complete any more."""

    def read_config(self, offset: int, width: int) -> int:
        """Return `width` bytes of the configuration space."""
        return int.from_bytes(self.config()[offset : offset + width], "little")

    def config(self) -> bytes:
        """Return the whole configuration space."""
        return b""

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Take a write to the configuration space."""

    def complete(self, queue: Virtqueue) -> None:
        """Interrupt the driver, if it wants to hear of what was pushed to `queue`."""
        if queue.should_interrupt():
            self.transport.interrupt_queue(queue)

    def drained(self) -> Iterator[tuple[int, Callable[[], None]]]:
        """Yield the transmit queues that an engine may drain, by number.

        With each comes what is called when output waits there.
        """
        yield from ()

    @abstractmethod
    def save(self) -> S:
        """Return the device's own state (the transport saves queues and features)."""

    @abstractmethod
    def restore(self, state: S) -> None:
        """Put a saved state back; raises StateError."""

    def pause(self) -> None:
        """Finish what is in flight and start nothing new."""

    def resume(self) -> None:
        """Go on; the transport then notifies the queues that have something to do."""

    def wants(self, index: int) -> bool:
        """Whether queue `index` may have something to do as the machine goes on.

        The device's lock is held.
        """
        return True

    def close(self) -> None:
        """Give threads and host resources back."""


VIRTIO_DEVICES: Registry[type[VirtioDevice[Any]]] = Registry(
    "virtio device", "ringzero.devices.virtio.kinds"
)
