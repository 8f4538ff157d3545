"""What the virtio devices that carry files have in common: requests for whoever serves them.

A request is served on the thread that rings, which takes less time than waking another; what may
take long goes to a few workers, and so does everything for a while once the host was slow. Two
virtual CPUs' requests are served one after the other, but for the data that they move. A request
that waits for another's lock is parked, and tried again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from ringzero.devices.virtio.device import VirtioDevice
from ringzero.devices.virtio.queue import Chain, QueueError
from ringzero.errors import StateError
from ringzero.host.service import ServiceThread, serve_as
from ringzero.records import record

# Files' contents that people wait for come in these: as many as a host has disks, or CPUs.
WORKERS = 2
# The time in seconds that a request may take on the thread that rings. After two of BACK_OFF
# requests that took longer, as many go to the workers: one alone may have been another process's
# turn on the CPU, which says nothing of the host's disks.
QUICK = 0.004
BACK_OFF = 16
# How often what waits for a lock is tried again, in seconds.
RETRY = 0.01
# As many bytes of a request tell what it is (struct fuse_in_header, which is the longest).
HEADER = 40


class FileServer(Protocol):
    """Who answers: a `ringzero.share.server.ShareServer`."""

    def is_long(self, header: bytes) -> bool:
        """Return whether the request that begins so may take long."""
        ...

    def defer(self, header: bytes) -> None:
        """Hear that the request that begins so is served later, on another thread."""
        ...

    def serve(
        self, readable: Sequence[memoryview], writable: Sequence[memoryview]
    ) -> int | None: ...

    def reset(self) -> None: ...

    def save(self) -> Any: ...

    def restore(self, saved: Any) -> None: ...


@record
class FsState:
    """`server` is what the guest holds, as its server says it; `parked` waits for locks."""

    server: Any = None
    parked: tuple[int, ...] = ()


class FileServerDevice(VirtioDevice[FsState]):
    """Carries requests from the queue `requests` to `server`; those of other queues come first."""

    state_type = FsState
    requests: ClassVar[int]

    def __init__(
        self, queue_sizes: tuple[int, ...], config: bytes, server: FileServer, features: int = 0
    ) -> None:
        super().__init__(queue_sizes=queue_sizes, features=features)
        self._config = config
        self._server = server
        self._back_off = 0
        # How many requests go by before one that takes long is the first again.
        self._watched = 0
        # All below is guarded by `_changed`.
        self._changed = threading.Condition()
        self._waiting: deque[Chain] = deque()
        self._parked: list[Chain] = []
        # Heads of those that a saved machine had, until the queue is there.
        self._restored: tuple[int, ...] = ()
        # How many workers have a request, and how many of these are at the server with it.
        self._busy = self._at_server = 0
        self._paused = self._closed = False
        # Counts resets: what was asked before one is not answered after it.
        self._generation = 0
        self._workers: list[ServiceThread] = []

    # ---- the transport's calls --------------------------------------------

    def config(self) -> bytes:
        return self._config

    def resume(self) -> None:
        restored, self._restored = self._restored, ()
        queue = self.queues[self.requests]
        try:
            # A driver that is not ready waits for nothing.
            chains = [queue.chain(head) for head in restored] if queue.ready else []
        except QueueError as fault:
            self.transport.fail(f"queue {self.requests}: {fault.message}")
            chains = []
        with self._changed:
            self._parked += chains
            self._paused = False
            self._changed.notify_all()
        if self._parked:
            self._start_workers()

    def notify(self, index: int) -> None:
        for chain in self.queues[index].requests():
            if index != self.requests:
                self._finish(index, chain, self._server.serve(chain.readable, chain.writable))
            elif self._back_off or self._server.is_long(chain.gather(HEADER)):
                self._back_off = max(0, self._back_off - 1)
                self._server.defer(chain.gather(HEADER))
                self._hand_over(chain)
            else:
                begin = time.monotonic()
                self._finish(index, chain, self._server.serve(chain.readable, chain.writable))
                self._watched -= 1
                if time.monotonic() - begin > QUICK:
                    if self._watched > 0:
                        self._back_off = BACK_OFF
                    self._watched = BACK_OFF

    def _finish(self, index: int, chain: Chain, written: int | None) -> None:
        """Answer one request, or park it; the device's lock is held."""
        if written is None:
            with self._changed:
                self._parked.append(chain)
                self._changed.notify_all()
            self._start_workers()
            return
        queue = self.queues[index]
        queue.push(chain, written)
        self.complete(queue)

    def _hand_over(self, chain: Chain) -> None:
        with self._changed:
            self._waiting.append(chain)
            self._changed.notify()
        self._start_workers()

    def _start_workers(self) -> None:
        while len(self._workers) < WORKERS:
            worker = ServiceThread(self, self._work, f"files-{len(self._workers)}")
            self._workers.append(worker)
            worker.start()

    def reset(self) -> None:
        with self._changed:
            self._waiting.clear()
            self._parked.clear()
            self._restored = ()
            self._generation += 1
            # A request at the server must not touch the guest's buffers any more.
            while self._at_server:
                self._changed.wait()
        self._server.reset()

    def pause(self) -> None:
        with self._changed:
            while self._busy or self._waiting:
                self._changed.wait()
            self._paused = True

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.join()

    # ---- the workers ------------------------------------------------------

    def _work(self) -> None:
        serve_as("io")
        while True:
            with self._changed:
                chain = self._next()
                if chain is None:
                    return
                generation = self._generation
                self._busy += 1
                self._at_server += 1
            try:
                self._serve(chain, generation)
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()

    def _next(self) -> Chain | None:
        """Return what is to be done next, None at the end; `_changed` is held."""
        while not self._closed:
            if self._waiting:
                return self._waiting.popleft()
            if self._parked and not self._paused:
                # Somebody may have let the lock go; whoever waits longest is first.
                self._changed.wait(RETRY)
                if self._parked and not self._paused and not self._closed:
                    return self._parked.pop(0)
            else:
                self._changed.wait()
        return None

    def _serve(self, chain: Chain, generation: int) -> None:
        try:
            written = self._server.serve(chain.readable, chain.writable)
        finally:
            with self._changed:
                self._at_server -= 1
                self._changed.notify_all()
        with self.lock:
            if generation == self._generation:
                self._finish(self.requests, chain, written)

    # ---- state ------------------------------------------------------------

    def save(self) -> FsState:
        with self._changed:
            parked = tuple(chain.head for chain in self._parked)
        return FsState(self._server.save(), parked + self._restored)

    def restore(self, state: FsState) -> None:
        if state.server is not None:
            self._server.restore(state.server)
        else:
            self._server.reset()
        if any(not 0 <= head < self.queue_sizes[self.requests] for head in state.parked):
            raise StateError("a request that no queue has")
        self._restored = state.parked
        with self._changed:
            self._parked.clear()
