"""`ringzero disk bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringzero.cli.disk_action import ACTIONS, Action, add_common, open_for, options, wants_json
from ringzero.cli.verb import print_json
from ringzero.units import format_size, parse_size

if TYPE_CHECKING:
    import argparse


@ACTIONS.register("bench")
class Bench(Action):
    summary = "time requests to an image"
    examples = """\
  ringzero disk bench -c 100000 -d 1 -s 4k --random disk.qcow2
  ringzero disk bench -w -s 1M -c 2000 scratch.qcow2
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("-f", "--format", metavar="FMT", help="default: found by content")
        add("-c", "--count", type=int, default=75_000, help="requests (default: 75000)")
        add("-d", "--depth", type=int, default=64, help="in flight (default: 64)")
        add("-s", "--buffer-size", metavar="SIZE", default="4k", help="default: 4k")
        add("-S", "--step-size", metavar="SIZE", default="0", help="default: the buffer's")
        add("-o", "--offset", metavar="SIZE", default="0", help="where to begin")
        add("-w", "--write", action="store_true", help="write; what is there is lost")
        add("--pattern", type=int, default=0, metavar="BYTE", help="what to write")
        add("--random", action="store_true", help="in random order")
        add("--flush-interval", type=int, default=0, metavar="N", help="flush every N requests")
        add("filename")
        add_common(parser, opens=True)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.disk.bench import Load, run

        load = Load(
            count=arguments.count,
            depth=arguments.depth,
            size=parse_size(arguments.buffer_size),
            offset=parse_size(arguments.offset),
            step=parse_size(arguments.step_size),
            write=arguments.write,
            pattern=arguments.pattern & 0xFF,
            random=arguments.random,
            flush_interval=arguments.flush_interval,
        )
        with open_for(
            arguments.filename,
            arguments.format,
            write=arguments.write,
            options=options(arguments.open),
        ) as disk:
            timing = run(disk, load)
        if wants_json(arguments):
            print_json(timing.to_dict())
        else:
            rates = timing.to_dict()
            print(f"Run completed in {timing.seconds:.3f} seconds.")
            print(
                f"{rates['requests-per-second']:.0f} requests/s, "
                f"{format_size(int(rates['bytes-per-second']))}/s"
            )
        return 0
