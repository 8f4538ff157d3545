"""Token buckets: how much may pass in a while, of bytes, packets or requests."""

from __future__ import annotations

from ringzero.errors import InvalidValueError
from ringzero.records import record

# Waiting for less than this is not worth a wake-up, in seconds.
_SHORTEST = 0.001
# Who waits looks again after that long at the latest: threads cannot wait for any time.
_LONGEST = 3600.0
# One token, but for rounding.
_ENOUGH = 0.999


@record
class Bucket:
    """`size` tokens come back within `refill` seconds; at the start there are
    `burst` more, once. These are Firecracker's words.
    """

    size: int
    refill: float
    burst: int = 0

    def check(self) -> None:
        """Raises InvalidValueError where nothing would ever pass."""
        if self.size <= 0 or self.refill <= 0 or self.burst < 0:
            raise InvalidValueError(
                f"no rate has {self.size} tokens in {self.refill} seconds",
                hint="both are more than 0",
            )


class Tokens:
    """What is left of a bucket. It may be overdrawn: what is next waits until that is paid."""

    def __init__(self, bucket: Bucket, now: float) -> None:
        bucket.check()
        self._bucket = bucket
        self._left = float(bucket.size)
        self._burst = bucket.burst
        self._seen = now

    def wait(self, now: float) -> float:
        """Return in how many seconds to ask again; 0 means that something may pass now."""
        bucket = self._bucket
        gained = (now - self._seen) * bucket.size / bucket.refill
        self._left = min(float(bucket.size), self._left + gained)
        self._seen = now
        if self._left > _ENOUGH or self._burst > 0:
            return 0.0
        return min(_LONGEST, max(_SHORTEST, (1 - self._left) * bucket.refill / bucket.size))

    def take(self, count: int) -> None:
        """Pay for what passes."""
        once = min(self._burst, count)
        self._burst -= once
        self._left -= count - once
