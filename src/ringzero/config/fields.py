"""The arguments by name that describe a machine, for those who check types."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

from ringzero.config.device import DeviceConfig

# A device is a record, plain data, or text as the command line takes it.
Device = DeviceConfig | dict[str, Any] | str


class MachineFields(TypedDict, total=False):
    """What `MachineConfig.create` takes; sizes and paths may be text.

    Kinds of devices that a program registers itself go by `devices`.
    """

    name: str
    memory: int | str
    cpus: int
    board: str
    cpu: str
    kernel: str | Path | None
    initrd: str | Path | None
    command_line: str
    agent: bool
    boot_entry: str | None
    cloud_init: bool
    devices: Iterable[Device]
    disk: Device | Path | None
    disks: Iterable[Device | Path]
    net: Device | None
    nets: Iterable[Device]
    share: Device | None
    shares: Iterable[Device]
    vsock: Device | Path | None
    vsocks: Iterable[Device | Path]
    # A folder of the host as the root, DIR or DIR:rw; of `Machine` alone.
    root: str | Path


class MachineArguments(MachineFields, total=False):
    """What `ringzero.Machine` takes by name, for functions of a program's own that pass it on.

    def boot(**arguments: Unpack[MachineArguments]) -> Machine:
        return Machine(**arguments)
    """

    image: str | None
    engine: str | None
    boot: bool
