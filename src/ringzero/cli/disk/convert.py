"""`ringzero disk convert`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ringzero.cli.disk_action import (
    ACTIONS,
    CACHE_MODES,
    Action,
    add_common,
    format_name,
    new_format,
    open_for,
    options,
    progress,
    refuse_same_file,
    wants_json,
)
from ringzero.cli.verb import print_json
from ringzero.errors import InvalidValueError
from ringzero.host.files import read_soon
from ringzero.units import MIB, format_size

if TYPE_CHECKING:
    import argparse

    from ringzero.disk import Disk

Tell = Callable[[int], None]

# What a fast disk reads while the modules are loaded and the images opened.
_FIRST = 128 * MIB


@ACTIONS.register("convert")
class Convert(Action):
    summary = "copy an image into another format"
    examples = """\
  ringzero disk convert -O vhdx disk.vmdk disk.vhdx
  ringzero disk convert -O qcow2 -c -o compression_type=zstd disk.raw disk.qcow2
  ringzero disk convert -O qcow2 -B base.qcow2 disk.raw overlay.qcow2
  ringzero disk convert -l before-upgrade disk.qcow2 then.raw
  ringzero disk convert -n -O raw disk.qcow2 /dev/vg/volume

After Ctrl-C the same command goes on where it was. A target that was not
finished does not have its name yet.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("-f", "--format", metavar="FMT", help="of the source (default: found by content)")
        add("-O", "--target-format", metavar="FMT", help="default: by the suffix, or raw")
        add("-o", "--options", metavar="NAME=VALUE,...", action="append", help="of the target")
        add("-c", "--compress", action="store_true", help="compress the target")
        add("-B", "--backing", metavar="FILE", help="make an overlay over FILE")
        add("-F", "--backing-format", metavar="FMT", help="its format")
        add("-S", "--sparse", metavar="SIZE", default="4k", help="shortest hole (0: none)")
        add("-m", "--threads", metavar="N", type=int, help="default: 4, or one for each CPU")
        add("-n", "--no-create", action="store_true", help="write into a target that is there")
        add("-t", "--cache", choices=CACHE_MODES, default="writeback", help="unsafe: no flush")
        add("-T", "--source-cache", choices=CACHE_MODES, help="accepted; changes nothing")
        add("-W", "--out-of-order", action="store_true", help="accepted: it is always so")
        add("-l", "--snapshot", metavar="NAME", help="convert this snapshot (also snapshot.id=ID)")
        add("-U", "--force-share", action="store_true", help="even while somebody is writing to it")
        add("--force", action="store_true", help="overwrite a target that is there")
        add("source")
        add("target")
        add_common(parser, progress=True, opens=True)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.disk.copying import THREADS
        from ringzero.units import parse_size

        sparse = parse_size(arguments.sparse)
        threads = THREADS if arguments.threads is None else arguments.threads
        if threads < 1 or sparse < 0 or sparse % 512:
            raise InvalidValueError("-m and -S must be positive, -S a multiple of 512")
        source, target = Path(arguments.source), Path(arguments.target)
        read_soon(source, _FIRST)
        refuse_same_file(source, target)
        arguments.target_format = new_format(arguments, arguments.target_format, arguments.target)
        opening = options(arguments.open)
        if arguments.snapshot:
            opening["snapshot"] = arguments.snapshot
        lock = not arguments.force_share
        with open_for(arguments.source, arguments.format, lock=lock, options=opening) as disk:
            text = f"convert {source.name} to {target.name}"
            with progress(arguments, text, disk.size) as tell:
                if arguments.no_create:
                    _into(disk, arguments, sparse, threads, tell)
                    resumed = 0
                else:
                    resumed = _afresh(disk, arguments, opening, sparse, threads, tell)
        if resumed and not arguments.quiet:
            print(f"went on at {format_size(resumed)}", file=sys.stderr)
        if wants_json(arguments):
            print_json({"source": str(source), "target": str(target), "resumed-at": resumed})
        return 0


def _afresh(
    disk: Disk,
    arguments: argparse.Namespace,
    opening: dict[str, str],
    sparse: int,
    threads: int,
    tell: Tell,
) -> int:
    from ringzero.disk.convert import Conversion

    work = Conversion(
        Path(arguments.target),
        arguments.target_format,
        options=options(arguments.options),
        opening=opening,
        backing=arguments.backing,
        backing_format=format_name(arguments.backing_format),
        compress=arguments.compress,
        sparse=sparse,
        threads=threads,
        overwrite=arguments.force,
        sync=arguments.cache != "unsafe",
        on_progress=tell,
    )
    try:
        work.run(disk)
    except (KeyboardInterrupt, SystemExit):
        if work.resumable:
            print("ringzero: stopped; the same command goes on from here", file=sys.stderr)
        elif work.in_place:
            print(f"ringzero: stopped; {arguments.target} is not whole", file=sys.stderr)
        raise
    return work.resumed


def _into(disk: Disk, arguments: argparse.Namespace, sparse: int, threads: int, tell: Tell) -> None:
    from ringzero.disk.copying import Copy

    if arguments.backing or arguments.options:
        raise InvalidValueError("-n takes neither -B nor -o: the target is there already")
    with open_for(
        arguments.target, arguments.target_format, write=True, sync=arguments.cache != "unsafe"
    ) as target:
        if target.size < disk.size:
            raise InvalidValueError(
                f"the target has {target.size} bytes, the source {disk.size}",
                hint="make the target larger with `ringzero disk resize`",
            )
        Copy(
            disk, target, blank=False, sparse=sparse, compress=arguments.compress,
            threads=threads, on_progress=tell,
        ).run()  # fmt: skip
