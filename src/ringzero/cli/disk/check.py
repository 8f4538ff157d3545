"""`ringzero disk check`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ringzero.cli.disk_action import (
    ACTIONS,
    Action,
    add_common,
    format_name,
    open_for,
    wants_json,
)
from ringzero.cli.verb import print_json
from ringzero.errors import DiskUnsupportedError, InvalidValueError

if TYPE_CHECKING:
    import argparse

    from ringzero.disk import CheckReport, Repair

# The exit codes of `qemu-img check`.
_CORRUPT, _LEAKS, _CANNOT = 2, 3, 63


@ACTIONS.register("check")
class Check(Action):
    summary = "look for errors in an image"
    examples = """\
  ringzero disk check disk.qcow2
  ringzero disk check -r all disk.qcow2

Exit code: 0 sound, 2 errors, 3 leaked clusters only, 63 the format has no check.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("-f", "--format", metavar="FMT", help="default: found by content")
        add("-r", "--repair", choices=("leaks", "all"), help="mend what is wrong")
        add("-U", "--force-share", action="store_true", help="even while somebody is writing to it")
        add("filename")
        add_common(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.disk import Repair

        repair = Repair(arguments.repair or "nothing")
        if repair is not Repair.NOTHING and arguments.force_share:
            raise InvalidValueError(
                "-U only looks: an image in use cannot be mended", hint="leave -r or -U out"
            )
        return check(arguments, repair, lock=not arguments.force_share)


def check(arguments: argparse.Namespace, repair: Repair, *, lock: bool = True) -> int:
    """Check the image that the arguments name, and print what was found."""
    from ringzero.disk import FORMATS
    from ringzero.disk import Repair as Repairs

    mend = repair is not Repairs.NOTHING
    kind = format_name(arguments.format)
    if kind is None:
        with open_for(arguments.filename, None, backing=False, lock=lock) as probe:
            kind = probe.format
    able = any(option.name == "for_repair" for option in FORMATS.get(kind).open_options)
    options = {"for_repair": True} if mend and able else {}
    with open_for(
        arguments.filename, kind, write=mend, backing=False, lock=lock, options=options
    ) as disk:
        try:
            report = disk.check(repair)
        except DiskUnsupportedError as fault:
            if not arguments.quiet:
                print(fault.message)
            return _CANNOT
    if wants_json(arguments):
        from ringzero.disk import qemujson

        plain = qemujson.check(arguments.filename, kind, report)
        print_json(_all(plain, kind, report) if arguments.json else plain)
    elif not arguments.quiet:
        _show(report)
    if report.errors > report.errors_fixed:
        return _CORRUPT
    return _LEAKS if report.leaks > report.leaks_fixed else 0


def _all(plain: dict[str, Any], kind: str, report: CheckReport) -> dict[str, Any]:
    """Return `plain` with the counts that are zero, those of all formats, and what was said."""
    return {
        "corruptions": 0,
        "corruptions-fixed": 0,
        "leaks": 0,
        "leaks-fixed": 0,
        **plain,
        "format": kind,
        "image-end-offset": report.image_end,
        "total-clusters": report.total_clusters,
        "allocated-clusters": report.allocated_clusters,
        "fragmented-clusters": report.fragmented_clusters,
        "compressed-clusters": report.compressed_clusters,
        "messages": report.messages,
    }


def _show(report: CheckReport) -> None:
    for message in report.messages:
        print(message)
    if report.errors_fixed or report.leaks_fixed:
        print(f"mended: {report.errors_fixed} errors, {report.leaks_fixed} leaked clusters")
    errors, leaks = report.errors - report.errors_fixed, report.leaks - report.leaks_fixed
    if errors:
        print(f"{errors} errors were found on the image; data may be corrupted")
    if leaks:
        print(f"{leaks} leaked clusters were found; they waste space, and do no other harm")
    if not errors and not leaks:
        print("No errors were found on the image.")
    if report.total_clusters:
        share = 100 * report.allocated_clusters / report.total_clusters
        print(
            f"{report.allocated_clusters}/{report.total_clusters} = {share:.2f}% allocated, "
            f"{report.compressed_clusters} compressed clusters"
        )
