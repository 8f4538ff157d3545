"""`ringzero disk info`."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from ringzero.cli.disk_action import ACTIONS, Action, add_common, open_for, options, wants_json
from ringzero.cli.verb import print_json
from ringzero.units import format_size

if TYPE_CHECKING:
    import argparse

    from ringzero.disk import DiskInfo


@ACTIONS.register("info")
class Info(Action):
    summary = "describe an image and all that lie below it"
    examples = """\
  ringzero disk info overlay.qcow2
  ringzero disk info --json --backing-chain overlay.qcow2
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("-f", "--format", metavar="FMT", help="default: found by content")
        add("--backing-chain", action="store_true", help="with JSON: a list of all layers")
        add("--top", action="store_true", help="this layer alone")
        add("-U", "--force-share", action="store_true", help="even while somebody is writing to it")
        add("filename")
        add_common(parser, opens=True)

    def execute(self, arguments: argparse.Namespace) -> int:
        with open_for(
            arguments.filename,
            arguments.format,
            backing=not arguments.top,
            lock=not arguments.force_share,
            options=options(arguments.open),
        ) as disk:
            layers = [layer.info() for layer in disk.chain()]
        if wants_json(arguments):
            from ringzero.disk import qemujson

            plain = qemujson.chain(layers, arguments.filename)
            if arguments.json:
                for facts, layer in zip(plain, layers, strict=True):
                    facts["format"] = layer.format
                    facts["format-specific"] = facts.get(
                        "format-specific", {"type": layer.format, "data": layer.specific}
                    )
            print_json(plain if arguments.backing_chain else plain[0])
            return 0
        for number, layer in enumerate(layers):
            if number:
                print()
            _show(layer, number)
        return 0


def _show(info: DiskInfo, depth: int) -> None:
    rows: list[tuple[str, Any]] = [
        ("image" if not depth else f"backing file, depth {depth}", info.filename),
        ("file format", info.format),
        ("virtual size", f"{format_size(info.virtual_size)} ({info.virtual_size} bytes)"),
        ("disk size", format_size(info.actual_size)),
    ]
    if info.cluster_size:
        rows.append(("cluster_size", info.cluster_size))
    if info.backing_filename:
        kind = f" ({info.backing_format})" if info.backing_format else ""
        rows.append(("backing file", info.backing_filename + kind))
    for name in ("dirty", "corrupt", "compressed"):
        if getattr(info, name):
            rows.append((name, "yes"))
    for key, value in info.specific.items():
        for item in value if isinstance(value, list) else [value]:
            rows.append((key, item))
    for key, value in rows:
        print(f"{key}: {_plain(value)}")
    if info.snapshots:
        print("snapshots:")
    for snapshot in info.snapshots:
        date = datetime.datetime.fromtimestamp(snapshot.date).strftime("%Y-%m-%d %H:%M:%S")
        print(f"  {snapshot.id:>4}  {date}  {format_size(snapshot.vm_state):>9}  {snapshot.name}")


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in value.items())
    return str(value)
