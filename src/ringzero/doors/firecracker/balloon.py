"""What is asked of a running machine's balloon."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ringzero.doors.firecracker.configuration import Configuration
from ringzero.doors.firecracker.faults import ApiFault

if TYPE_CHECKING:
    from ringzero.vm.ends.backends.balloon import BalloonBackend
    from ringzero.vm.machine import Machine

# Pages of 4 KiB.
_PAGES_IN_MIB = 256
_UPDATE, _INTERNAL = "Balloon update error: ", "Internal VMM error: "
_NOT_FOUND = "Failed perform action on device: Device not found."
_NO_STATISTICS = "Balloon: Statistics for the balloon device are not enabled."
_NO_CHANGE = "Balloon: Cannot enable/disable the statistics after boot."
_NO_HINTING = "Balloon: Free page hinting is not enabled."


def _found(machine: Machine, sentence: str) -> BalloonBackend:
    backend: Any = machine.parts.devices.backends.get("balloon")
    if backend is None:
        raise ApiFault(f"{sentence}{_NOT_FOUND}")
    found: BalloonBackend = backend
    return found


def _update(configuration: Configuration, machine: Machine, fields: Mapping[str, Any]) -> None:
    backend = _found(machine, _UPDATE)
    configuration.check_balloon(fields["amount_mib"])
    backend.balloon.resize(fields["amount_mib"] * _PAGES_IN_MIB)
    assert configuration.balloon is not None
    configuration.balloon = {**configuration.balloon, "amount_mib": fields["amount_mib"]}


def _update_statistics(
    configuration: Configuration, machine: Machine, fields: Mapping[str, Any]
) -> None:
    backend = _found(machine, _UPDATE)
    assert configuration.balloon is not None
    seconds, name = fields["stats_polling_interval_s"], "stats_polling_interval_s"
    if bool(seconds) != bool(configuration.balloon[name]):
        raise ApiFault(f"{_UPDATE}{_NO_CHANGE}")
    if seconds:
        backend.poll_every(seconds)
    configuration.balloon = {**configuration.balloon, name: seconds}


def _statistics(configuration: Configuration, machine: Machine, fields: Any) -> Mapping[str, int]:
    balloon = _found(machine, _INTERNAL).balloon
    assert configuration.balloon is not None
    if not configuration.balloon["stats_polling_interval_s"]:
        raise ApiFault(f"{_INTERNAL}{_NO_STATISTICS}")
    return {
        "target_pages": balloon.target,
        "actual_pages": balloon.actual,
        "target_mib": balloon.target // _PAGES_IN_MIB,
        "actual_mib": balloon.actual // _PAGES_IN_MIB,
        **balloon.told(),
    }


def _hinting(configuration: Configuration, machine: Machine) -> BalloonBackend:
    backend = _found(machine, _UPDATE)
    if not backend.config.hinting:
        raise ApiFault(f"{_UPDATE}{_NO_HINTING}")
    return backend


def _start_hinting(
    configuration: Configuration, machine: Machine, fields: Mapping[str, Any]
) -> None:
    balloon = _hinting(configuration, machine).balloon
    balloon.start_hinting(acknowledges=fields.get("acknowledge_on_stop", True))


def _stop_hinting(configuration: Configuration, machine: Machine, fields: Any) -> None:
    _hinting(configuration, machine).balloon.stop_hinting()


def _hinting_status(
    configuration: Configuration, machine: Machine, fields: Any
) -> Mapping[str, int | None]:
    balloon = _hinting(configuration, machine).balloon
    return {"host_cmd": balloon.command, "guest_cmd": balloon.guest_command}


# By the names of the table's rows.
ANSWERS: Mapping[str, Callable[[Configuration, Any, Any], Any]] = {
    "update_balloon": _update,
    "update_balloon_statistics": _update_statistics,
    "balloon_statistics": _statistics,
    "start_hinting": _start_hinting,
    "stop_hinting": _stop_hinting,
    "hinting_status": _hinting_status,
}
