"""`ringzero disk create`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringzero.cli.disk_action import (
    ACTIONS,
    Action,
    add_common,
    format_name,
    new_format,
    options,
    wants_json,
)
from ringzero.cli.verb import print_json
from ringzero.errors import InvalidValueError

if TYPE_CHECKING:
    import argparse


@ACTIONS.register("create")
class Create(Action):
    summary = "make an empty image, or an overlay over another one"
    examples = """\
  ringzero disk create disk.qcow2 20G
  ringzero disk create -f qcow2 -b base.vmdk overlay.qcow2
  ringzero disk create -f vhdx -o subformat=fixed,block_size=1M disk.vhdx 1G
  ringzero disk create -f vmdk -o help
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add(
            "-f",
            "--format",
            metavar="FMT",
            help="default: by the suffix, or raw",
        )
        add("-b", "--backing", metavar="FILE", help="the image that lies below this one")
        add("-F", "--backing-format", metavar="FMT", help="its format (default: found by content)")
        add("-u", "--unsafe", action="store_true", help="do not look at the backing file")
        add("-o", "--options", metavar="NAME=VALUE,...", action="append", help="'-o help' lists")
        add("--force", action="store_true", help="overwrite an image that is there")
        add("filename", nargs="?")
        add("size", nargs="?", help="for example 512M or 20G")
        add_common(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.disk import FORMATS, create_disk
        from ringzero.units import format_size, parse_size

        if "help" in (arguments.options or []):
            kind = format_name(arguments.format) or "raw"
            print(f"options of {kind}:")
            for option in FORMATS.get(kind).create_options:
                print(f"  {option.name}={option.default}  {option.help}")
            return 0
        if arguments.filename is None:
            raise InvalidValueError("no file name", hint="ringzero disk create FILE SIZE")
        given = options(arguments.options)
        # As qemu-img takes them, too.
        arguments.size = _said(arguments.size, given.pop("size", None), "size")
        arguments.backing = _said(arguments.backing, given.pop("backing_file", None), "backing")
        arguments.backing_format = _said(
            arguments.backing_format, given.pop("backing_fmt", None), "backing format"
        )
        kind = new_format(arguments, arguments.format, arguments.filename)
        # Sizes are in whole sectors, rounded up as qemu-img does it.
        size = None if arguments.size is None else -(-parse_size(arguments.size) // 512) * 512
        create_disk(
            arguments.filename,
            kind,
            size,
            backing=arguments.backing,
            backing_format=format_name(arguments.backing_format),
            options=given,
            overwrite=arguments.force,
            check_backing=not arguments.unsafe,
        )
        if wants_json(arguments):
            print_json({"filename": arguments.filename, "format": kind, "virtual-size": size})
        elif not arguments.quiet:
            what = f", {format_size(size)}" if size is not None else ""
            print(f"made {arguments.filename} ({kind}{what})")
        return 0


def _said(given: str | None, option: str | None, what: str) -> str | None:
    """Return what is given in one of two ways; InvalidValueError when they differ."""
    if given is not None and option is not None and given != option:
        raise InvalidValueError(f"the {what} is given twice: {given} and {option}")
    return option if given is None else given
