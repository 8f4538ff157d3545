"""Which pair of a network interface's queues a flow belongs to (virtio 1.2 section 5.1.6.5.5).

A driver gives each of its processors a pair. What comes for a flow goes to the receive queue
of the pair whose transmit queue had the flow's last frame.
"""

from __future__ import annotations

# Flows that are remembered; the frames of others go to the first pair.
MAX_FLOWS = 1024
# Where the addresses begin behind an Ethernet header, and how long one is.
_IPV4_TYPE, _IPV4_AT, _IPV4_SIZE = b"\x08\x00", 26, 4
_IPV6_TYPE, _IPV6_AT, _IPV6_SIZE = b"\x86\xdd", 22, 16


class Steering:
    """The flows of one interface. Heads are those of frames, of any length and content.

    What is no TCP or UDP, or has IP options, is told apart by the bytes where ports would be:
    that decides about the queue only.
    """

    def __init__(self) -> None:
        self._pairs: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._pairs)

    def learn(self, head: bytes, pair: int) -> None:
        """Hear that a frame of the guest's came by `pair`."""
        pairs, key = self._pairs, _key_back(head)
        if pairs.get(key) == pair:
            return
        if len(pairs) >= MAX_FLOWS:
            pairs.pop(next(iter(pairs)))
        pairs[key] = pair

    def pair_of(self, head: bytes) -> int:
        """Return the pair for a frame that the guest is to have."""
        return self._pairs.get(_key(head), 0)


def _key(head: bytes) -> bytes:
    """Return addresses and ports, the sender's first; of other protocols the MAC addresses."""
    kind = head[12:14]
    if kind == _IPV4_TYPE:
        return head[_IPV4_AT : _IPV4_AT + 2 * _IPV4_SIZE + 4]
    if kind == _IPV6_TYPE:
        return head[_IPV6_AT : _IPV6_AT + 2 * _IPV6_SIZE + 4]
    return head[6:12] + head[:6]


def _key_back(head: bytes) -> bytes:
    """Return the key of the frames that come back."""
    kind = head[12:14]
    if kind == _IPV4_TYPE:
        at, size = _IPV4_AT, _IPV4_SIZE
    elif kind == _IPV6_TYPE:
        at, size = _IPV6_AT, _IPV6_SIZE
    else:
        return head[:12]
    ports = at + 2 * size
    return (
        head[at + size : ports] + head[at : at + size]
        + head[ports + 2 : ports + 4] + head[ports : ports + 2]
    )  # fmt: skip
