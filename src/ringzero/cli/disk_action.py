"""What an action of `ringzero disk` is, and what the actions share: options, output, progress."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ringzero.cli.verb import Verb
from ringzero.errors import InvalidValueError
from ringzero.registry import Registry
from ringzero.units import format_size

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from ringzero.disk import Disk

# How qemu-img may go about the host's cache. What is not unsafe is flushed once all is written.
CACHE_MODES = ("none", "writeback", "unsafe", "directsync", "writethrough")
# What is meant by a file's suffix; all others are raw.
_SUFFIXES = {
    "qcow2": "qcow2",
    "qcow": "qcow2",
    "qc2": "qcow2",
    "vmdk": "vmdk",
    "vdi": "vdi",
    "vhd": "vhd",
    "vpc": "vhd",
    "avhd": "vhd",
    "vhdx": "vhdx",
    "avhdx": "vhdx",
}
# Suffixes of what is no raw image elsewhere.
_OTHERS = {
    "qed": "QED",
    "hdd": "Parallels",
    "hds": "Parallels",
    "dmg": "DMG",
    "ova": "OVA",
    "luks": "LUKS",
    "gz": "compressed",
    "xz": "compressed",
    "zst": "compressed",
    "zip": "compressed",
}


class Action(Verb):
    """One command of `ringzero disk`."""


ACTIONS: Registry[type[Verb]] = Registry("disk command", "ringzero.cli.disk")


def add_common(
    parser: argparse.ArgumentParser, *, progress: bool = False, opens: bool = False
) -> None:
    """Add the flags that every action has, and those of the ones that open an image."""
    if opens:
        parser.add_argument(
            "--open",
            metavar="NAME=VALUE,...",
            action="append",
            help="how to open the image, such as parent=BASE.vdi or offset=1M",
        )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--output", choices=("human", "json"), help="as in qemu-img")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    if progress:
        parser.add_argument("-p", "--progress", action="store_true", help="always on; accepted")


def wants_json(arguments: argparse.Namespace) -> bool:
    """Whether the output is for a program."""
    return bool(arguments.json or arguments.output == "json")


def format_name(text: str | None) -> str | None:
    """Return our name of a format that may have been given by another one's."""
    from ringzero.disk import formatnames

    return None if text is None else formatnames.format_name(text)


def new_format(arguments: argparse.Namespace, given: str | None, filename: str) -> str:
    """Return the format of a file that is to be made: as given, or by its suffix, and says so."""
    if given is not None:
        return format_name(given) or "raw"
    _, dot, suffix = filename.rpartition("/")[2].lower().rpartition(".")
    suffix = suffix if dot else ""
    kind = _SUFFIXES.get(suffix, "raw")
    if arguments.quiet:
        return kind
    if kind != "raw":
        print(f"ringzero: {filename} becomes {kind}, by its suffix", file=sys.stderr)
    elif suffix in _OTHERS:
        print(
            f"ringzero: {filename} becomes raw: {_OTHERS[suffix]} images are not made here",
            file=sys.stderr,
        )
    return kind


def options(texts: list[str] | None) -> dict[str, str]:
    """Return the pairs of `-o a=b,c=d`, given any number of times. ",," is a comma."""
    found: dict[str, str] = {}
    for text in texts or []:
        for pair in text.replace(",,", "\0").split(","):
            name, equals, value = pair.replace("\0", ",").partition("=")
            if not name:
                raise InvalidValueError(f"-o {text!r} has no name", hint="write -o name=value")
            found[name] = value if equals else "on"
    return found


def open_for(
    path: str,
    format: str | None,
    *,
    write: bool = False,
    **more: Any,
) -> Disk:
    """Open an image that the user named, as QEMU names files too (`json:`, `file:`).

    Raw is assumed for writing as qemu-img does not.
    """
    from ringzero.disk import open_disk

    kind = format_name(format)
    if ":" in path and not os.path.lexists(path):
        path, kind, said = _named(path, kind)
        more["options"] = {**said, **(more.get("options") or {})}
    return open_disk(path, kind, read_only=not write, tell=_tell, **more)


def _named(name: str, kind: str | None) -> tuple[str, str | None, dict[str, Any]]:
    """Return the path, the format and the options of an image that is named as QEMU does it."""
    from ringzero.disk.filenames import parse_name
    from ringzero.errors import DiskFormatError, DiskUnsupportedError

    try:
        found = parse_name(name, kind)
    except (DiskFormatError, DiskUnsupportedError) as fault:
        raise DiskUnsupportedError(
            f"{name[:200]} is not the name of a file here",
            hint="images are opened from files and block devices: copy it to this host first",
        ) from fault
    if found.window is not None:
        raise DiskUnsupportedError(
            f"{name[:200]} is a part of a file", hint="take it out with `ringzero disk dd`"
        )
    return found.path, found.format, dict(found.options)


def _tell(text: str) -> None:
    print(f"ringzero: {text}", file=sys.stderr)


def refuse_same_file(source: Path, target: Path) -> None:
    """Raise InvalidValueError when both names lead to one file."""
    with contextlib.suppress(OSError):
        if source.samefile(target):
            raise InvalidValueError(
                "source and target are the same file", hint="choose another target"
            )


@contextlib.contextmanager
def progress(
    arguments: argparse.Namespace, text: str, size: int
) -> Iterator[Callable[[int], None]]:
    """Show how far something of `size` bytes is, its rate, and the time left."""
    from ringzero.host.progress import Progress

    with Progress(enabled=not arguments.quiet).step(text) as step:
        began = time.monotonic()
        first: int | None = None

        def tell(done: int) -> None:
            nonlocal first
            if first is None:
                first = done
            seconds = time.monotonic() - began
            rate = (done - first) / seconds if seconds > 0 else 0.0
            note = f"{format_size(int(rate))}/s"
            if rate > 0:
                note += f", {_duration((size - done) / rate)} left"
            step.update(done / size if size else 1.0, note)

        yield tell


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
