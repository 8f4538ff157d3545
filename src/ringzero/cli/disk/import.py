"""`ringzero disk import`."""  # noqa: N999 - an action is called like its module

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ringzero.cli.disk_action import (
    ACTIONS,
    Action,
    add_common,
    format_name,
    new_format,
    progress,
    wants_json,
)
from ringzero.cli.verb import print_json
from ringzero.errors import InvalidValueError

if TYPE_CHECKING:
    import argparse


@ACTIONS.register("import")
class Import(Action):
    summary = "take the disks out of an OVA, OVF, box, .vmx or .vbox, for `run --disk`"
    examples = """\
  ringzero disk import web.ova                  web.qcow2, and how to run it
  ringzero disk import web.ova web.vmdk         the format is that of the suffix
  ringzero disk import debian.box deb.qcow2     Vagrant's: libvirt, VirtualBox, VMware
  ringzero disk import "Web Server.vmx" web.qcow2
  ringzero disk import "Web Server.vbox" web.qcow2

Of several disks, the others go beside the first one: web-2.qcow2 ...
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("-O", "--target-format", metavar="FMT", help="default: by the suffix")
        add("--force", action="store_true", help="overwrite targets that are there")
        add("source")
        add("target", nargs="?", help="default: SOURCE's name with .qcow2, in this folder")
        add_common(parser, progress=True)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.disk.convert import Conversion
        from ringzero.image.appliance.opening import disks_of, targets

        source = Path(arguments.source)
        target = Path(arguments.target or f"{source.stem}.qcow2")
        kind = format_name(arguments.target_format)
        if kind is None:
            kind = "qcow2" if arguments.target is None else new_format(arguments, None, str(target))
        if not target.absolute().parent.is_dir():
            raise InvalidValueError(f"{target.absolute().parent} is no directory")
        with disks_of(source, target.absolute().parent) as (about, disks):
            places = targets(target, len(disks))
            for place in places:
                if place.exists() and not arguments.force:
                    raise InvalidValueError(
                        f"{place} exists", hint="choose another name, or say --force"
                    )
            for disk, place in zip(disks, places, strict=True):
                with progress(arguments, f"import {place.name}", disk.size) as tell:
                    work = Conversion(place, kind, overwrite=arguments.force, on_progress=tell)
                    work.run(disk)
        if wants_json(arguments):
            told = {"memory": about.memory, "cpus": about.cpus}
            print_json({"disks": [str(place) for place in places], **told})
        elif not arguments.quiet:
            print(" ".join(_run(places, kind, about.memory, about.cpus)))
        return 0


def _run(places: list[Path], kind: str, memory: int | None, cpus: int | None) -> list[str]:
    """Return the command that boots what was imported."""
    from shlex import quote

    from ringzero.units import MIB

    words = ["ringzero", "run"]
    for place in places:
        # Of raw disks that are written to the format has to be said.
        words += ["--disk", quote(f"{place},format=raw" if kind == "raw" else str(place))]
    words += ["--memory", f"{-(-memory // MIB)}M"] if memory else []
    return words + (["--cpus", str(cpus)] if cpus else [])
