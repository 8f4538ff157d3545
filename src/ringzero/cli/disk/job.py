"""`ringzero disk job`: block jobs on the disks of a running machine."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ringzero.api.values import DiskJobSummary
from ringzero.cli.disk_action import ACTIONS, Action, format_name
from ringzero.cli.machines import add_json, add_name, named, note, table
from ringzero.cli.verb import AS_IS, THERE, Away, print_json
from ringzero.errors import DiskError, InvalidValueError
from ringzero.units import format_size, parse_size

if TYPE_CHECKING:
    from ringzero.control.host.operations import GuestOperations

_ORDERS = ("pause", "resume", "complete", "cancel", "abort", "finalize", "dismiss")
# How often a job is looked at that is waited for, in seconds.
_LOOK = 0.2
_OVER = ("concluded", "null")


@ACTIONS.register("job")
class DiskJob(Action):
    summary = "copy, back up, or merge disks that a machine goes on using"
    away = Away(AS_IS, actions=True)
    examples = """\
  ringzero disk job web start backup --target /backups/web.qcow2 --wait
  ringzero disk job web start mirror --target /fast/web.qcow2 --pivot --wait
  ringzero disk job web start commit --base base.qcow2
  ringzero disk job web start stream --speed 100M
  ringzero disk job web                        those that there are
  ringzero disk job web complete commit-disk0  the base becomes the disk
  ringzero disk job web cancel stream-disk0

mirror: copy the disk to another image; once it is ready, `complete` has the machine use that.
backup: copy the disk as it is now. commit: write a layer into the one below; of the topmost one,
`complete` has the machine use that. stream: take in what is below, which is then not needed.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add_json(parser)
        add("--disk", type=int, default=0, metavar="N", help="which disk (default: 0)")
        add("--target", metavar="FILE", help="mirror, backup: the new image")
        add("-f", "--format", metavar="FMT", help="of the target (default: qcow2)")
        add("--existing", action="store_true", help="write over a target that is there")
        add("--sync", choices=("full", "top", "none"), default="full", help="mirror: what at first")
        add("--top", metavar="FILE", help="commit: from this layer on (default: the disk itself)")
        add(
            "--base", metavar="FILE", help="commit: to this layer (default: the next); "
            "stream: what is to stay below (default: nothing)",
        )  # fmt: skip
        add("--pivot", action="store_true", help="complete it once it is ready")
        add("--speed", metavar="SIZE", help="so much a second at most; 0: no limit")
        add("--id", metavar="NAME", default="", help="what the job is called")
        add("-w", "--wait", action="store_true", help="until it is ready, or over")
        add_name(parser)
        add("order", nargs="?", default="ls", choices=("ls", "start", "speed", *_ORDERS))
        add("what", nargs="?", help="start: what to do; else the job")

    def files(self, arguments: argparse.Namespace) -> Mapping[str, str]:
        return {"target": THERE, "top": THERE, "base": THERE}

    def execute(self, arguments: argparse.Namespace) -> int:
        machine = named(arguments)
        if (arguments.what is None) != (arguments.order == "ls"):
            raise InvalidValueError(
                "which job?", hint=f"ringzero disk job {arguments.machine} start backup"
            )
        if arguments.order == "ls":
            jobs = machine.disk_jobs()
        elif arguments.order == "start":
            jobs = [_start(machine, arguments)]
        else:
            jobs = [_order(machine, arguments)]
        if arguments.wait and arguments.order != "ls":
            jobs = [_wait(machine, jobs[0], arguments)]
        if arguments.json:
            print_json(jobs)
        else:
            _show(jobs)
        return 0


def _start(machine: GuestOperations, arguments: argparse.Namespace) -> DiskJobSummary:
    return machine.start_disk_job(
        arguments.what,
        disk=arguments.disk,
        target=_whole(arguments.target),
        format=format_name(arguments.format) or "",
        existing=arguments.existing,
        sync=arguments.sync,
        top=_whole(arguments.top),
        base=_whole(arguments.base),
        pivot=arguments.pivot,
        speed=parse_size(arguments.speed or "0"),
        id=arguments.id,
    )


def _order(machine: GuestOperations, arguments: argparse.Namespace) -> DiskJobSummary:
    if arguments.order == "speed":
        if arguments.speed is None:
            raise InvalidValueError("how fast?", hint="say --speed 10M, or 0 for no limit")
        return machine.order_disk_job(arguments.what, speed=parse_size(arguments.speed))
    return machine.order_disk_job(arguments.what, arguments.order)


def _whole(path: str | None) -> str:
    """Return a path as the machine's process, which is elsewhere, understands it."""
    from pathlib import Path

    return str(Path(path).absolute()) if path else ""


def _wait(
    machine: GuestOperations, job: DiskJobSummary, arguments: argparse.Namespace
) -> DiskJobSummary:
    """Show how far a job is until it is ready, or over. Raises DiskError for one that failed."""
    from ringzero.host.progress import Progress

    ends = arguments.pivot or arguments.order == "complete"
    try:
        with Progress(enabled=not arguments.json).step(f"{job['kind']} {job['id']}") as step:
            while job["state"] not in _OVER and (ends or not job["ready"]):
                time.sleep(_LOOK)
                job = machine.order_disk_job(job["id"])
                done = job["offset"] / job["length"] if job["length"] else 1.0
                step.update(done, format_size(job["offset"]))
    except KeyboardInterrupt:
        note(f"the job goes on: ringzero disk job {machine.name} abort {job['id']}")
        raise
    if job["error"]:
        raise DiskError(f"{job['id']}: {job['error']}")
    return job


def _show(jobs: list[DiskJobSummary]) -> None:
    rows = [
        [
            job["id"],
            str(job["disk"]),
            job["kind"],
            job["state"],
            f"{format_size(job['offset'])} of {format_size(job['length'])}",
            job["error"] or job["target"],
        ]
        for job in jobs
    ]
    table(["JOB", "DISK", "KIND", "STATE", "DONE", "TARGET OR ERROR"], rows)
