"""`ringzero firecracker`: one microVM behind Firecracker's API, in this process."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.cli.verb import REFUSED, VERBS, Away, Verb
from ringzero.errors import InvalidValueError

if TYPE_CHECKING:
    from ringzero.doors.firecracker.process import Options

_SOCKET = Path("/run/firecracker.socket")
_NETWORKS = ("tap", "user")


@VERBS.register("firecracker")
class Firecracker(Verb):
    summary = "be one microVM behind Firecracker's API, for its clients"
    away = Away(REFUSED, why="it is one host's process: start it there, and forward its socket")
    examples = """\
  ringzero firecracker --api-sock /tmp/fc.sock &
  curl --unix-socket /tmp/fc.sock -X PUT http://localhost/boot-source \\
      -d '{"kernel_image_path": "vmlinux", "boot_args": "console=ttyS0 reboot=k panic=1"}'
  curl --unix-socket /tmp/fc.sock -X PUT http://localhost/drives/rootfs \\
      -d '{"drive_id": "rootfs", "path_on_host": "rootfs.ext4", "is_root_device": true}'
  curl --unix-socket /tmp/fc.sock -X PUT http://localhost/actions \\
      -d '{"action_type": "InstanceStart"}'
  ringzero firecracker --no-api --config-file vm.json
  ln -s "$(command -v ringzero-firecracker)" /usr/local/bin/firecracker    for SDKs
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags: those of the `firecracker` program, and --network."""
        add = parser.add_argument
        add("--api-sock", metavar="PATH", help=f"socket of the API (default: {_SOCKET})")
        add("--id", metavar="ID", help="the microVM's name: up to 64 letters, digits, hyphens")
        add("--config-file", metavar="FILE", help="start the machine that this JSON describes")
        add("--no-api", action="store_true", help="no socket; goes with --config-file")
        add("--metadata", metavar="FILE", help="JSON for the metadata service")
        add("--mmds-size-limit", metavar="BYTES", help="how large that may be")
        add("--http-api-max-payload-size", metavar="BYTES", help="how large a request may be")
        add("--log-path", metavar="FILE", help="file or named pipe for the log")
        add("--level", metavar="LEVEL", help="Off, Error, Warning, Info, Debug or Trace")
        add("--module", metavar="NAME", help="log only what modules of this name say")
        add("--show-level", action="store_true", help="show the level in the log")
        add("--show-log-origin", action="store_true", help="show where in the code a line is from")
        add("--metrics-path", metavar="FILE", help="file or named pipe for the metrics")
        add(
            *("--network",),
            metavar="KIND",
            help="where interfaces lead: `tap`, to the one that is named; `user`, out by "
            "ringzero's own network, without root",
        )
        add("--boot-timer", action="store_true", help="log how long the guest took to boot")
        add("--enable-pci", action="store_true", help="accepted: devices are on MMIO anyway")
        add("--no-seccomp", action="store_true", help="give up nothing: no filters, no Landlock")
        add("--seccomp-filter", metavar="FILE", help="accepted: filters are ringzero's own")
        add("--start-time-us", metavar="N", help="when the process was started, for the metrics")
        add("--start-time-cpu-us", metavar="N", help="accepted")
        add("--parent-cpu-time-us", metavar="N", help="accepted")
        add("--version", action="store_true", help="print the version of the API")
        add("--snapshot-version", action="store_true", help="print the version of snapshots")
        add("--describe-snapshot", metavar="FILE", help="print the version of a snapshot's file")

    def execute(self, arguments: argparse.Namespace) -> int:
        """Be the machine until it ends."""
        if _told_version(arguments):
            return 0
        from ringzero.doors.firecracker.process import run

        return run(_options(arguments))


def _told_version(arguments: argparse.Namespace) -> bool:
    """Print what is asked for of versions; whether something was."""
    from ringzero.doors.firecracker.table import API_VERSION, SNAPSHOT_VERSION
    from ringzero.version import __version__

    if arguments.version:
        print(f"Firecracker v{API_VERSION}\n\nringzero {__version__}")
    elif arguments.snapshot_version:
        print(f"v{SNAPSHOT_VERSION}")
    elif arguments.describe_snapshot is not None:
        from ringzero.doors.firecracker import snapshots

        print(f"v{snapshots.version_of(Path(arguments.describe_snapshot))}")
    else:
        return False
    return True


def _options(arguments: argparse.Namespace) -> Options:
    """Return what the flags say. Raises InvalidValueError."""
    from ringzero.doors.firecracker.bodies import BodyError, level
    from ringzero.doors.firecracker.process import IDENTIFIER, MAXIMUM_PAYLOAD, Options
    from ringzero.settings import FIRECRACKER_NETWORK

    identifier = arguments.id or "anonymous-instance"
    if not IDENTIFIER.fullmatch(identifier):
        raise InvalidValueError(f"{identifier!r} is no ID: up to 64 letters, digits and hyphens")
    if arguments.no_api and arguments.config_file is None:
        raise InvalidValueError("Argument 'no-api' requires 'config-file'.")
    if arguments.no_seccomp and arguments.seccomp_filter is not None:
        raise InvalidValueError("'no-seccomp' and 'seccomp-filter' exclude one another")
    network = arguments.network or FIRECRACKER_NETWORK.get()
    if network not in _NETWORKS:
        raise InvalidValueError(f"no network is called {network!r}: known are tap and user")
    logger: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("log_path", "module", "show_level", "show_log_origin")
        if getattr(arguments, name)
    }
    if arguments.level is not None:
        try:
            logger["level"] = level(arguments.level)
        except BodyError as fault:
            raise InvalidValueError(
                f"Invalid value for logger level: {arguments.level}. Possible values: "
                "[Error, Warning, Info, Debug]"
            ) from fault
    payload = _number(arguments, "http_api_max_payload_size")
    return Options(
        socket=None if arguments.no_api else Path(arguments.api_sock or _SOCKET),
        identifier=identifier,
        config_file=_path(arguments.config_file),
        metadata=_path(arguments.metadata),
        logger=logger or None,
        metrics=_path(arguments.metrics_path),
        payload=MAXIMUM_PAYLOAD if payload is None else payload,
        metadata_limit=_number(arguments, "mmds_size_limit"),
        network=network,
        started=_number(arguments, "start_time_us"),
        boot_timer=arguments.boot_timer,
        jail=not arguments.no_seccomp,
    )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _number(arguments: argparse.Namespace, name: str) -> int | None:
    text = getattr(arguments, name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise InvalidValueError(f"--{name.replace('_', '-')} {text}: not a whole number")
    return int(text)
