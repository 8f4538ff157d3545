"""The host's own processor."""

from __future__ import annotations

import functools
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


@functools.cache
def host_features() -> frozenset[str]:
    """Return the features of the host's processor, as its Linux calls them; none where it is mute.

    Only what the kernel lets programs use: no AVX where it does not save those registers.
    """
    try:
        with _CPUINFO.open() as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == "flags":
                    return frozenset(value.split())
    except OSError:
        pass
    return frozenset()
