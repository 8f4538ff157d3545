"""`ringzero stats`: what machines use of the host."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

from ringzero.api.values import ALIVE, MachineSummary, Status
from ringzero.cli.machines import add_json, table
from ringzero.cli.output import write
from ringzero.cli.verb import AS_IS, VERBS, Away, Verb, print_json
from ringzero.errors import ConflictError, ControlError, InvalidValueError, NotFoundError
from ringzero.host.process import Usage, usage
from ringzero.units import format_size

_STDOUT = 1
_HEAD = ("NAME", "STATUS", "CPU %", "MEMORY", "OF", "CPU TIME", "NET IN", "NET OUT")
_NET_HEAD = (
    *("NAME", "INTERFACE", "NETWORK", "IN", "PACKETS IN", "OUT", "PACKETS OUT", "DROPPED"),
)
# How long a machine's process may take to say what it has counted, in seconds.
_PATIENCE = 2.0
# ECMA-48: to the first column of the first line, and what is there erased.
_HOME = b"\x1b[H\x1b[2J"


@VERBS.register("stats")
class Stats(Verb):
    summary = "show what running machines use of the host"
    away = Away(AS_IS)
    examples = """\
  ringzero stats                 all of them, again every two seconds, until Ctrl-C
  ringzero stats --once web      one look, over a second
  ringzero stats --net           each network interface: bytes, packets, what was dropped
  ringzero stats --json          one look, for programs
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags and names."""
        add = parser.add_argument
        add("--once", action="store_true", help="one look (default where there is no terminal)")
        add("--interval", metavar="S", type=float, default=2.0, help="seconds (default: 2)")
        add("--net", action="store_true", help="a row for each network interface")
        add_json(parser)
        add("machine", nargs="*", metavar="NAME", help="these machines (default: all)")

    def execute(self, arguments: argparse.Namespace) -> int:
        """Look at their processes, and ask each what its interfaces have counted."""
        if not 0.1 <= arguments.interval <= 3600:
            raise InvalidValueError("--interval takes 0.1 to 3600 seconds")
        once = arguments.once or arguments.json or not sys.stdout.isatty()
        before, then = _look(arguments.machine), time.monotonic()
        while True:
            time.sleep(min(1.0, arguments.interval) if once else arguments.interval)
            now, found = time.monotonic(), _look(arguments.machine)
            rows = [
                _facts(facts, used, before, now - then) | {"interfaces": _interfaces(facts)}
                for facts, used in found.values()
            ]
            if arguments.json:
                print_json(rows)
                return 0
            if not once:
                write(_STDOUT, _HOME)
            if arguments.net:
                table(_NET_HEAD, [line for row in rows for line in _net_rows(row)])
            else:
                table(_HEAD, [_row(row) for row in rows])
            sys.stdout.flush()
            if once:
                return 0
            before, then = found, now


def _look(names: list[str]) -> dict[str, tuple[MachineSummary, Usage | None]]:
    from ringzero.control.host.client import host

    chosen = [host().machine(name).directory.summary() for name in names]
    found = chosen or [m for m in host().machines() if Status(m["status"]) in ALIVE]
    return {m["name"]: (m, usage(m["pid"]) if m["pid"] else None) for m in found}


def _facts(
    facts: MachineSummary,
    used: Usage | None,
    before: dict[str, tuple[MachineSummary, Usage | None]],
    seconds: float,
) -> dict[str, Any]:
    earlier = before.get(facts["name"], (facts, None))[1]
    spent = used.seconds - earlier.seconds if used is not None and earlier is not None else 0.0
    return {
        "name": facts["name"],
        "status": facts["status"],
        "pid": facts["pid"],
        "cpu_percent": round(max(0.0, spent) / seconds * 100, 1),
        "cpu_seconds": used.seconds if used is not None else None,
        "memory": used.resident if used is not None else None,
        "memory_size": facts["config"].get("memory"),
    }


def _interfaces(facts: MachineSummary) -> list[dict[str, Any]] | None:
    """Return what a machine's interfaces are and have counted; None where it does not say."""
    from ringzero.api.table import get
    from ringzero.control.host.client import host

    if not facts["pid"]:
        return None
    try:
        with host().machine(facts["name"]).session(_PATIENCE) as session:
            told = session.call(get("inspect"), {})
    except (ConflictError, ControlError, NotFoundError):
        return None
    counted = told.get("stats", {}).get("net", {})
    nets = [device for device in told["config"].get("devices", ()) if device.get("kind") == "net"]
    return [
        {
            "name": f"eth{number}",
            "network": net.get("network"),
            "mac": net.get("mac"),
            **counted.get(f"eth{number}", {}),
        }
        for number, net in enumerate(nets)
    ]


def _net_rows(row: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for net in row["interfaces"] or ():
        sizes = (_size(net.get(name)) for name in ("received_bytes", "sent_bytes"))
        packets = (str(net.get(name, "-")) for name in ("received", "sent"))
        counts = (text for pair in zip(sizes, packets, strict=True) for text in pair)
        yield row["name"], net["name"], net["network"], *counts, str(net.get("dropped", "-"))


def _size(value: Any) -> str:
    return format_size(value) if isinstance(value, int) else "-"


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    spent, size = row["cpu_seconds"], _size
    nets = row["interfaces"]
    sums = (
        sum(net.get(name, 0) for net in nets) if nets else None
        for name in ("received_bytes", "sent_bytes")
    )
    return (
        row["name"],
        row["status"],
        f"{row['cpu_percent']:.1f}",
        size(row["memory"]),
        size(row["memory_size"]),
        "-" if spent is None else f"{spent:.1f}s",
        *map(size, sums),
    )
