"""A memory balloon: guest memory that the host takes back while the machine runs."""

from __future__ import annotations

from typing import Self

from ringzero.config.device import DEVICE_CONFIGS, DeviceConfig
from ringzero.errors import InvalidValueError
from ringzero.records import record
from ringzero.units import MIB, parse_size

# Sizes are told to the guest in pages of 4 KiB, in 32 bits.
_MOST = (1 << 32) * 4096
_HINT = "write SIZE[,oom][,stats=SECONDS][,reporting][,hinting], as --balloon 64M,reporting"


@DEVICE_CONFIGS.register("balloon")
@record
class BalloonConfig(DeviceConfig):
    """A balloon that is to hold `size` bytes of the guest's memory, a multiple of MiB.

    `deflate_on_oom` lets the guest take them back rather than end a process; `statistics` is how
    often it tells how its memory is used, in seconds, 0: never. With `reporting` it gives back by
    itself what it does not use, with `hinting` when it is asked.
    """

    kind = "balloon"
    spelling = "SIZE[,oom][,stats=SECONDS][,reporting][,hinting]"
    help = (
        "memory that the guest leaves to the host, 0 for none yet; with ',reporting' it gives "
        "back what it does not use"
    )
    first_has_number = False

    size: int = 0
    deflate_on_oom: bool = False
    statistics: int = 0
    reporting: bool = False
    hinting: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        size, *options = text.split(",")
        names = {"oom": "deflate_on_oom", "reporting": "reporting", "hinting": "hinting"}
        chosen: dict[str, bool] = {}
        statistics = 0
        for option in options:
            name, _, value = option.partition("=")
            if option in names:
                chosen[names[option]] = True
            elif name == "stats" and value.isascii() and value.isdecimal():
                statistics = int(value)
            else:
                raise InvalidValueError(f"no balloon in {text!r}: {option!r}", hint=_HINT)
        return cls(parse_size(size), statistics=statistics, **chosen)

    def faults(self) -> list[str]:
        found = []
        if not 0 <= self.size < _MOST or self.size % MIB:
            found.append(f"a balloon of {self.size} bytes: write a number of MiB, as 64M")
        if not 0 <= self.statistics < 1 << 16:
            found.append(f"statistics of a balloon every {self.statistics} seconds")
        return found
