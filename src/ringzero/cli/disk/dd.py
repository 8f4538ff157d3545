"""`ringzero disk dd`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ringzero.cli.disk_action import (
    ACTIONS,
    Action,
    add_common,
    new_format,
    open_for,
    progress,
    refuse_same_file,
)
from ringzero.errors import InvalidValueError
from ringzero.units import parse_size

if TYPE_CHECKING:
    import argparse


@ACTIONS.register("dd")
class Dd(Action):
    summary = "copy a part of a disk into a new image"
    examples = """\
  ringzero disk dd -O raw bs=1M skip=1 count=100 if=disk.vmdk of=part.raw
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("-f", "--format", metavar="FMT", help="of the source (default: found by content)")
        add("-O", "--target-format", metavar="FMT", help="default: by the suffix, or raw")
        add("operands", nargs="+", metavar="if=|of=|bs=|count=|skip=")
        add_common(parser, progress=True)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.disk import create_disk, open_disk
        from ringzero.disk.copying import WINDOW
        from ringzero.disk.vectors import is_zero

        words = _operands(arguments.operands)
        block = parse_size(words.get("bs", "512"))
        skip = parse_size(words.get("skip", "0")) * block
        if block <= 0:
            raise InvalidValueError("bs must be positive")
        kind = new_format(arguments, arguments.target_format, words["of"])
        with open_for(words["if"], arguments.format) as source:
            there = max(0, source.size - skip)
            length = min(there, parse_size(words["count"]) * block if "count" in words else there)
            size = -(-length // 512) * 512
            path = Path(words["of"])
            refuse_same_file(Path(words["if"]), path)
            create_disk(path, kind, size, overwrite=True)
            with (
                open_disk(path, kind) as target,
                progress(arguments, "dd", length) as tell,
            ):
                for at in range(0, length, WINDOW):
                    data = source.read(skip + at, min(WINDOW, length - at))
                    if not is_zero(data):
                        target.write(at, data)
                    tell(at)
        return 0


def _operands(texts: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in ("if", "of", "bs", "count", "skip"):
            raise InvalidValueError(f"{text!r} is no operand", hint="if= of= bs= count= skip=")
        found[name] = value
    if "if" not in found or "of" not in found:
        raise InvalidValueError("if= and of= are needed")
    return found
