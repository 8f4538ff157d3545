"""virtio memory balloon (virtio 1.2 section 5.5).

Pages that the driver puts into the balloon, reports as free, or hints at are given back to the
host at once. A driver may take a page out again without a word: it then finds zeroes, or what a
copied machine began with.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping

from ringzero.devices.virtio.device import VIRTIO_DEVICES, VirtioDevice
from ringzero.devices.virtio.queue import Chain, Virtqueue
from ringzero.records import record

PAGE = 4096
# Section 5.5.3.
FEATURE_STATISTICS, FEATURE_DEFLATE_ON_OOM = 1 << 1, 1 << 2
FEATURE_HINTING, FEATURE_REPORTING = 1 << 3, 1 << 5
# Section 5.5.6.6: commands of a hinting run; further ones are its number.
HINT_STOP, HINT_DONE, HINT_FIRST = 0, 1, 2
# Section 5.5.4: pages wanted, pages held, number of the hinting run, and what free pages hold.
CONFIG = struct.Struct("<IIII")
_ACTUAL = 4
STATISTIC = struct.Struct("<HQ")
# Section 5.5.6.4, and Linux 6.12 for the last six: names by tag.
TAGS = (
    *("swap_in", "swap_out", "major_faults", "minor_faults", "free_memory", "total_memory"),
    *("available_memory", "disk_caches", "hugetlb_allocations", "hugetlb_failures"),
    *("oom_kill", "alloc_stall", "async_scan", "direct_scan", "async_reclaim", "direct_reclaim"),
)
_QUEUE_SIZE = 256
# Linux puts 256 page numbers into a buffer, and 32 areas into a report; a chain has so many bytes
# of page numbers at most, and so many statistics.
_MOST_NUMBERS, _MOST_STATISTICS = 1 << 16, 256
_INFLATE, _DEFLATE = 0, 1
_MASK = 0xFFFF_FFFF


@record
class BalloonState:
    """The configuration space, what was counted, and the statistics' buffer, -1 for none."""

    target: int = 0
    actual: int = 0
    command: int = HINT_STOP
    guest_command: int | None = None
    acknowledges: bool = True
    statistics_head: int = -1


@VIRTIO_DEVICES.register("balloon")
class Balloon(VirtioDevice[BalloonState]):
    """A balloon. Sizes are in pages of 4 KiB.

    `counts` has how often, and by how much, under the names that Firecracker's metrics have.
    """

    device_id = 5
    state_type = BalloonState

    def __init__(
        self,
        target: int = 0,
        *,
        deflate_on_oom: bool = False,
        statistics: bool = False,
        hinting: bool = False,
        reporting: bool = False,
    ) -> None:
        features = 0
        # A queue that is not there has no number: the next one takes it.
        numbers: dict[int, int] = {}
        for wanted, bit in (
            (statistics, FEATURE_STATISTICS),
            (hinting, FEATURE_HINTING),
            (reporting, FEATURE_REPORTING),
        ):
            if wanted:
                features |= bit
                numbers[bit] = 2 + len(numbers)
        if deflate_on_oom:
            features |= FEATURE_DEFLATE_ON_OOM
        super().__init__((_QUEUE_SIZE,) * (2 + len(numbers)), features)
        self._statistics_queue = numbers.get(FEATURE_STATISTICS, -1)
        self._hinting_queue = numbers.get(FEATURE_HINTING, -1)
        self._reporting_queue = numbers.get(FEATURE_REPORTING, -1)
        self._begins = target
        self.counts: dict[str, int] = {}
        self._forget()

    def _forget(self) -> None:
        self.target, self.actual = self._begins, 0
        self.command = HINT_STOP
        self.guest_command: int | None = None
        self._acknowledges = True
        self._head = -1
        self._asks = False
        self.statistics: dict[str, int] = {}

    # ---- the host's side --------------------------------------------------

    def resize(self, target: int) -> None:
        """Have the balloon hold so many pages; the driver fills or empties it in its own time."""
        with self.lock:
            self._begins = self.target = target
            self.transport.interrupt_config()

    def ask_statistics(self) -> None:
        """Ask the driver how its memory is used; it answers in its own time."""
        if self._statistics_queue >= 0:
            with self.lock:
                self._asks = True
                self.transport.serve(self._statistics_queue)

    def start_hinting(self, *, acknowledges: bool = True) -> None:
        """Ask the driver for all that it does not use.

        It keeps these pages until the run is over: when it has told all and the device
        `acknowledges` that, or at `stop_hinting`.
        """
        with self.lock:
            following = self.command + 1 if self.command >= HINT_FIRST else HINT_FIRST
            self.command = following if following <= _MASK else HINT_FIRST
            self._acknowledges = acknowledges
            self.transport.interrupt_config()

    def stop_hinting(self) -> None:
        """Let the driver have again what it has hinted at."""
        with self.lock:
            self.command = HINT_DONE
            self.transport.interrupt_config()

    # ---- the transport's calls --------------------------------------------

    def config(self) -> bytes:
        return CONFIG.pack(self.target, self.actual, self.command, 0)

    def write_config(self, offset: int, width: int, value: int) -> None:
        data = bytearray(self.config())
        data[offset : offset + width] = value.to_bytes(8, "little")[:width]
        # All else is the device's.
        self.actual = int.from_bytes(data[_ACTUAL : _ACTUAL + 4], "little")

    def notify(self, index: int) -> None:
        queue = self.queues[index]
        if index == self._statistics_queue:
            self._take_statistics(queue)
            return
        serve = {
            _INFLATE: self._inflate,
            _DEFLATE: self._deflate,
            self._hinting_queue: self._hint,
            self._reporting_queue: self._report,
        }[index]
        for chain in queue.requests():
            serve(queue, chain)
            queue.push(chain, 0)
        self.complete(queue)

    def _inflate(self, queue: Virtqueue, chain: Chain) -> None:
        self._count("inflate_count")
        data = chain.gather(_MOST_NUMBERS)
        numbers = struct.unpack(f"<{len(data) // 4}I", data[: len(data) // 4 * 4])
        for first, count in _runs(numbers):
            queue.discard(first * PAGE, count * PAGE)

    def _deflate(self, queue: Virtqueue, chain: Chain) -> None:
        """The driver uses pages again; the host gives them as they are touched."""
        self._count("deflate_count")

    def _report(self, queue: Virtqueue, chain: Chain) -> None:
        self._count("free_page_report_count")
        self._count("free_page_report_freed", _discard(queue, chain))

    def _hint(self, queue: Virtqueue, chain: Chain) -> None:
        if chain.readable:
            self.guest_command = int.from_bytes(chain.gather(4), "little")
            if self.guest_command == HINT_STOP and self._acknowledges:
                self.stop_hinting()
        if self.guest_command == self.command and self.command >= HINT_FIRST:
            # Those of a run that is over may be in use again.
            self._count("free_page_hint_count")
            self._count("free_page_hint_freed", _discard(queue, chain))

    def _take_statistics(self, queue: Virtqueue) -> None:
        """Read what the driver tells, and give the buffer back when more is asked for."""
        for chain in queue.requests():
            if self._head >= 0:
                # A driver has one; one of before is nobody's.
                queue.push(queue.chain(self._head), 0)
            self._head = chain.head
            self._read_statistics(chain)
        if self._asks and self._head >= 0:
            chain, self._head, self._asks = queue.chain(self._head), -1, False
            queue.push(chain, 0)
            self.complete(queue)

    def _read_statistics(self, chain: Chain) -> None:
        data = chain.gather(_MOST_STATISTICS * STATISTIC.size)
        self._count("stats_updates_count")
        whole = len(data) // STATISTIC.size * STATISTIC.size
        for tag, value in STATISTIC.iter_unpack(data[:whole]):
            if tag < len(TAGS):
                self.statistics[TAGS[tag]] = value

    def told(self) -> Mapping[str, int]:
        """Return the last statistics by their names."""
        with self.lock:
            return dict(self.statistics)

    def _count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def reset(self) -> None:
        self._forget()

    # ---- state ------------------------------------------------------------

    def save(self) -> BalloonState:
        return BalloonState(
            self.target,
            self.actual,
            self.command,
            self.guest_command,
            self._acknowledges,
            self._head,
        )

    def restore(self, state: BalloonState) -> None:
        self.target = self._begins = state.target & _MASK
        self.actual, self.command = state.actual & _MASK, state.command & _MASK
        self.guest_command, self._acknowledges = state.guest_command, state.acknowledges
        self._head = state.statistics_head if 0 <= state.statistics_head < _QUEUE_SIZE else -1


def _discard(queue: Virtqueue, chain: Chain) -> int:
    """Give the buffers of a chain back to the host; return how many bytes."""
    places = zip(chain.addresses, chain.writable, strict=True)
    return sum(queue.discard(address, len(view)) for address, view in places)


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of the stretches that page numbers make."""
    first = count = 0
    for number in sorted(set(numbers)):
        if count and number == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = number, 1
    if count:
        yield first, count
