"""What a guest sends by one connection: the window, what came too early, acknowledgements."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ringzero.core.frames import Buffer
from ringzero.net.stack.tcp.segment import FIN, MASK, Segment, difference

# What may be on its way to the endpoint. A full segment takes 64 KiB; sixteen of them
# are more than a guest makes while one is passed on.
WINDOW = 1 << 20
SCALE = 7
# Pieces that came too early, for each connection.
_MAX_EARLY = 256


class Receiver:
    """The receiving side. `offer` gives bytes to the endpoint and returns how many it took.

    `next` is the number of the next byte (RCV.NXT), `edge` the window's right edge, `acked` the
    last acknowledgement. `inbox` keeps what the endpoint has not taken.
    """

    __slots__ = (
        *("_early", "_fin_at", "_offer", "_recent", "acked", "closed", "edge", "ended", "inbox"),
        *("inbox_size", "next", "scale"),
    )

    def __init__(self, offer: Callable[[list[Buffer], int], int]) -> None:
        self._offer = offer
        self.next = self.edge = self.acked = 0
        # How far windows are shifted, where the guest has agreed to it (RFC 7323).
        self.scale = 0
        self.inbox: deque[bytes] = deque()
        self.inbox_size = 0
        # Whether all has come up to the guest's FIN, and whether nothing is wanted any more.
        self.ended = self.closed = False
        self._fin_at: int | None = None
        # By their sequence numbers, and the one that came last (RFC 2018 section 4).
        self._early: dict[int, bytes] = {}
        self._recent = 0

    def begin(self, sequence: int) -> None:
        """Begin behind the guest's SYN."""
        self.next = self.edge = self.acked = sequence + 1 & MASK

    def take(self, segment: Segment, offset: int, window: int) -> bool:
        """Take a segment that begins `offset` bytes ahead of `next`, into a window of `window`.

        Returns whether it is to be acknowledged at once, were it not for what it completes.
        """
        size, gap = segment.size, bool(self._early) or offset > 0
        if segment.flags & FIN and offset + size <= window:
            self._fin_at = segment.sequence + size & MASK
        buffers = segment.buffers
        if offset < 0 or offset + size > window:
            if size:
                data = b"".join(buffers)[max(0, -offset) : max(0, window - offset)]
                buffers, size = [data], len(data)
            offset = max(offset, 0)
        if size:
            if offset == 0:
                # Whatever else is kept: what comes next never has to find room.
                self.deliver(buffers, size)
            else:
                self._keep_early(self.next + offset & MASK, b"".join(buffers))
            if self._early:
                self._deliver_early()
        if self._fin_at is not None and self._fin_at == self.next and not self.ended:
            self.next = self.next + 1 & MASK
            self.edge = self.next + max(0, difference(self.edge, self.next)) & MASK
            self.ended = True
            self._early.clear()
        return gap or not size or self.ended

    def deliver(self, buffers: list[Buffer], size: int) -> None:
        """Pass on bytes that come next."""
        if self.ended:
            return
        self.next = self.next + size & MASK
        taken = self._offer(buffers, size) if not self.inbox_size else 0
        if taken < size and not self.closed:
            for buffer in buffers:
                if taken >= len(buffer):
                    taken -= len(buffer)
                    continue
                self.inbox.append(bytes(buffer[taken:]))
                self.inbox_size += len(buffer) - taken
                taken = 0

    def _keep_early(self, sequence: int, data: bytes) -> None:
        """Keep a piece until those before it have come."""
        early = self._early
        if len(early) < _MAX_EARLY and len(early.get(sequence, b"")) < len(data):
            early[sequence] = data
            self._recent = sequence

    def _deliver_early(self) -> None:
        """Pass on the pieces that come next now."""
        early = self._early
        while early:
            start = min(early, key=lambda number: difference(number, self.next))
            ahead = difference(start, self.next)
            if ahead > 0:
                break
            piece = early.pop(start)[-ahead:] if ahead else early.pop(start)
            if piece:
                self.deliver([piece], len(piece))

    @property
    def has_early(self) -> bool:
        """Whether pieces wait for others before them."""
        return bool(self._early)

    def blocks(self) -> list[tuple[int, int]]:
        """Return what came early as (first, one behind the last), the latest first."""
        blocks: list[tuple[int, int]] = []
        for start in sorted(self._early, key=lambda number: difference(number, self.next)):
            end = start + len(self._early[start]) & MASK
            if blocks and difference(blocks[-1][1], start) >= 0:
                last = blocks[-1]
                blocks[-1] = (last[0], end if difference(end, last[1]) > 0 else last[1])
            else:
                blocks.append((start, end))
        latest = [b for b in blocks if 0 <= difference(self._recent, b[0]) < 0x7FFFFFFF]
        if latest:
            blocks.remove(latest[-1])
            blocks.insert(0, latest[-1])
        return blocks

    def consume(self, count: int) -> bool:
        """Take `count` bytes from the inbox; return whether the guest is to hear of the room."""
        self.inbox_size -= count
        while count:
            first = self.inbox[0]
            if len(first) <= count:
                self.inbox.popleft()
                count -= len(first)
            else:
                self.inbox[0] = first[count:]
                count = 0
        # RFC 9293 section 3.8.6.2.2: no update for less than is worth it.
        grown = difference(self.next + self.space(), self.edge)
        return grown >= WINDOW // 4 or (self.edge == self.next and grown > 0)

    def space(self) -> int:
        """Return how many bytes more there is room for."""
        most = WINDOW if self.scale else 0xFFFF
        return max(0, most - self.inbox_size)

    def first_window(self) -> int:
        """Return the window of a SYN, which is never scaled; the edge is what it says."""
        window = min(self.space(), 0xFFFF)
        self.edge = self.next + window & MASK
        return window

    def window(self) -> int:
        """Return the window field of a segment that goes out now; the edge is what it says."""
        space = (WINDOW if self.scale else 0xFFFF) - self.inbox_size
        ahead = (self.edge - self.next) & MASK
        # The right edge never goes back (RFC 9293 section 3.8.6).
        if space > ahead or ahead > 0x7FFFFFFF:
            ahead = max(space, 0)
            self.edge = self.next + ahead & MASK
        window = min(ahead >> self.scale, 0xFFFF)
        return window or int(ahead > 0)

    def close(self) -> None:
        """Want nothing more; what the endpoint has not taken is left."""
        self.closed = True
        self._early.clear()
