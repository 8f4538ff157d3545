"""Sizes and times with units, as people write them and as they like to read them."""

from __future__ import annotations

import re

from ringzero.errors import InvalidValueError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

# Binary multiples throughout, as in qemu-img and libvirt: "512M" is 512 MiB.
_FACTORS = {"": 1, "B": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB, "P": 1 << 50, "E": 1 << 60}
# Compiled where it is needed: that takes a start longer than most modules.
SIZE = r"\s*(\d+(?:\.\d+)?)\s*([BKMGTPEbkmgtpe]?)(?:[iI]?[bB])?\s*"
# A piece of a duration as Go writes it (time.ParseDuration), which Docker's files and flags have.
DURATION = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)"
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Return the seconds that a duration names ("30s", "1m30s", "500ms", "0").

    Raises InvalidValueError when `text` is none.
    """
    if text == "0":
        return 0.0
    if not re.fullmatch(f"(?:{DURATION})+", text):
        raise InvalidValueError(f"{text!r} is no time", hint="30s, 1m30s, 500ms")
    return sum(float(number) * _SECONDS[unit] for number, unit in re.findall(DURATION, text))


def parse_size(text: str | int) -> int:
    """Return the number of bytes that `text` names ("4096", "512M", "1.5GiB").

    Raises InvalidValueError when `text` is not a size.
    """
    if isinstance(text, int):
        return text
    if text[:-1].isdecimal() and text[-1] in _FACTORS:
        # As most are written.
        return int(text[:-1]) * _FACTORS[text[-1]]
    match = re.fullmatch(SIZE, text)
    if match is None:
        raise InvalidValueError(
            f"not a size: {text!r}", hint="write a number with an optional unit: 4096, 512M, 2G"
        )
    return (
        int(float(match[1]) * _FACTORS[match[2].upper()])
        if "." in match[1]
        else int(match[1]) * _FACTORS[match[2].upper()]
    )


def format_size(count: int) -> str:
    """Return `count` bytes for a reader: "512 MiB", "1.5 GiB", "17 B"."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"
