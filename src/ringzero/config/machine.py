"""The description of a machine: frozen dataclasses that check themselves.

All faults of a description are collected and reported together (ConfigError), those of its
devices (`ringzero.config.devices`) and what its board has no room for (`ringzero.config.boards`)
among them. Building one reads nothing but its arguments; `check_files` looks at the disk.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.config.board import BOARD_LIMITS
from ringzero.config.device import DEVICE_CONFIGS, NAME, DeviceConfig, file_faults
from ringzero.errors import ConfigError, InvalidValueError, NotFoundError
from ringzero.plain import MisfitError, from_plain
from ringzero.records import field_names, record, replace
from ringzero.units import MIB, parse_size

if TYPE_CHECKING:
    from ringzero.config.devices.disk import DiskConfig
    from ringzero.config.devices.net import NetConfig
    from ringzero.config.devices.share import ShareConfig
    from ringzero.config.devices.vsock import VsockConfig

_PAGE = 4096
_HELP = "see `ringzero run --help`, or help(ringzero.Machine)"
_WORD, _NUMBER = ((str,), "a text"), ((int,), "a whole number")
# What fields hold that are read as they are given.
_TYPES = {
    "name": _WORD,
    "memory": _NUMBER,
    "cpus": _NUMBER,
    "board": _WORD,
    "engine": _WORD,
    "cpu": ((str, type(None)), "a text"),
    "command_line": _WORD,
    "agent": ((bool,), "true or false"),
    "boot_entry": ((str, type(None)), "a text"),
    "cloud_init": ((bool,), "true or false"),
}


@record
class MachineConfig:
    """One machine. Sizes are in bytes.

    `kernel` is booted directly, with `initrd` and `command_line`. Without one, `boot_entry` names
    what the boot loader on the first disk has, "" its default; `command_line` is then added to
    the entry's. `cloud_init` says that the guest has cloud-init, and is up when that has
    finished. `agent` adds
    the ports by which ringzero's own guests take commands
    (`ringzero.vm.guest.protocol`). `devices` are those that the user asks for, in the order
    in which the guest finds them. `board` and `engine` are names in their registries; `cpu` is
    a model of the board's architecture, or "host"; None is its usual one.
    """

    name: str = "machine"
    memory: int = 512 * MIB
    cpus: int = 1
    board: str = "microvm"
    engine: str = "auto"
    cpu: str | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    command_line: str = ""
    devices: tuple[DeviceConfig, ...] = ()
    agent: bool = False
    boot_entry: str | None = None
    cloud_init: bool = False

    def __post_init__(self) -> None:
        faults = self.faults()
        if faults:
            raise ConfigError(faults, hint=_HELP)

    @classmethod
    def create(cls, **values: Any) -> MachineConfig:
        """Build a description from people's spellings: sizes, paths and devices may be text.

        A device is given by its kind, or several in the plural: `net="none"`,
        `disks=["a.img", "b.img,ro"]`. `devices` takes records, plain data, or text with the kind
        before it ("disk=a.img"). Raises ConfigError with all faults: unknown fields, unreadable
        sizes, and what `faults` finds.
        """
        known = field_names(cls)
        faults: list[str] = []
        clean: dict[str, Any] = {}
        devices: list[DeviceConfig] = []
        # The order of devices does not come from that of arguments by name.
        for name, value in sorted(values.items()):
            try:
                if name == "memory":
                    clean[name] = parse_size(value)
                elif name in ("kernel", "initrd"):
                    clean[name] = None if value is None else Path(value)
                elif name == "devices":
                    devices[:0] = _each(value, _device, faults, name)
                elif name in known:
                    clean[name] = value
                else:
                    devices += _spelled(name, value, faults)
            except (InvalidValueError, TypeError) as fault:
                faults.append(f"{name}: {fault}")
        try:
            config = cls(**clean, devices=tuple(devices))
        except ConfigError as fault:
            faults += fault.faults
        if faults:
            raise ConfigError(faults, hint=_HELP)
        return config

    @classmethod
    def upgrade(cls, old: dict[str, Any]) -> dict[str, Any]:
        """Bring up plain data of 0.1.0, which had fields for disks, one vsock and one net."""
        devices = list(old.pop("devices", ()))
        devices += [{"kind": "disk", **disk} for disk in old.pop("disks", ())]
        for kind in ("vsock", "net"):
            device = old.pop(kind, None)
            if device is not None:
                devices.append({"kind": kind, **device})
        return {**old, "devices": devices}

    def faults(self) -> list[str]:
        """Return everything that is wrong with this description."""
        found = [
            f"{name}: {getattr(self, name)!r} is not {noun}"
            for name, (kinds, noun) in _TYPES.items()
            if type(getattr(self, name)) not in kinds
        ]
        if found:
            return found
        if not NAME.fullmatch(self.name):
            found.append(f"name {self.name!r}: use letters, digits, '_', '.' and '-'")
        if self.memory % _PAGE:
            meant = f"; was '{self.memory}M' meant?" if 0 < self.memory < MIB else ""
            found.append(f"memory of {self.memory} bytes is not a multiple of {_PAGE}{meant}")
        found += [
            f"no {noun} is called {value!r}"
            for noun, value in (
                ("board", self.board),
                ("engine", self.engine.removesuffix("!")),
                ("CPU", self.cpu),
            )
            if value is not None and not NAME.fullmatch(value)
        ]
        if self.kernel is None and self.initrd is not None:
            found.append("an initrd without a kernel")
        if self.boot_entry is not None:
            if self.kernel is not None:
                found.append("a boot entry of a disk, and a kernel")
            elif not self.disks:
                found.append("a boot entry without a disk")
        elif self.kernel is None and self.command_line:
            found.append("a kernel command line without a kernel")
        if any(c in self.command_line for c in "\0\n"):
            found.append("a kernel command line with a NUL or a line break in it")
        for device in self.devices:
            found += device.faults()
        for kind in dict.fromkeys(type(device) for device in self.devices):
            found += kind.faults_together([d for d in self.devices if type(d) is kind])
        # A board without limits, as one of the user's own may be, refuses by itself.
        if self.board in BOARD_LIMITS:
            limits = BOARD_LIMITS.get(self.board)
            found += limits.faults(self.memory, self.cpus, self.command_line, self.devices)
        return found

    def check_files(self) -> None:
        """Raise ConfigError when files of this description are missing or unreadable."""
        found = []
        for noun, path in (("kernel", self.kernel), ("initrd", self.initrd)):
            if path is not None:
                found += file_faults(noun, path, writable=False, device=False)
        for device in self.devices:
            found += device.file_faults()
        if found:
            raise ConfigError(found, hint="check the paths")

    def absolute(self) -> MachineConfig:
        """Return the same with paths that mean the same in every directory."""
        return replace(
            self,
            kernel=None if self.kernel is None else self.kernel.absolute(),
            initrd=None if self.initrd is None else self.initrd.absolute(),
            devices=tuple(device.absolute() for device in self.devices),
        )

    def with_room_for_shares(self) -> MachineConfig:
        """Return the same with a device for shared folders that come while the machine runs.

        An agent mounts them; a machine without one, or whose board is full, stays as it is.
        """
        if not self.agent or self.shares:
            return self
        share: Any = DEVICE_CONFIGS.get("share")
        try:
            return replace(self, devices=(*self.devices, share.room()))
        except ConfigError:
            return self

    # ---- devices ----------------------------------------------------------

    def of_kind(self, kind: str) -> tuple[DeviceConfig, ...]:
        """Return the devices of one kind, in their order."""
        return tuple(device for device in self.devices if device.kind == kind)

    def numbered(self) -> Iterator[tuple[int, DeviceConfig]]:
        """Yield every device with its number within its kind."""
        seen = Counter[str]()
        for device in self.devices:
            yield seen[device.kind], device
            seen[device.kind] += 1

    def map_devices(self, change: Callable[[int, DeviceConfig], DeviceConfig]) -> MachineConfig:
        """Return the same with `change(number within the kind, device)` for each device."""
        devices = tuple(change(n, device) for n, device in self.numbered())
        if all(map(operator.is_, devices, self.devices)):
            # Another one would be checked anew, several times for each copy of a machine.
            return self
        return replace(self, devices=devices)

    @property
    def disks(self) -> tuple[DiskConfig, ...]:
        """The disks, in their order."""
        return self.of_kind("disk")  # type: ignore[return-value]

    @property
    def nets(self) -> tuple[NetConfig, ...]:
        """The network interfaces, in their order."""
        return self.of_kind("net")  # type: ignore[return-value]

    @property
    def shares(self) -> tuple[ShareConfig, ...]:
        """The shared folders, in their order."""
        return self.of_kind("share")  # type: ignore[return-value]

    @property
    def vsock(self) -> VsockConfig | None:
        """The socket device, where there is one."""
        return next(iter(self.of_kind("vsock")), None)  # type: ignore[return-value]


def _spelled(name: str, value: Any, faults: list[str]) -> list[DeviceConfig]:
    """Return the devices that the argument `name`, a kind or its plural, describes."""
    if name in DEVICE_CONFIGS:
        values: Iterable[Any] = () if value is None else (value,)
        kind = name
    elif name.endswith("s") and name[:-1] in DEVICE_CONFIGS:
        values, kind = value, name[:-1]
    else:
        faults.append(f"no field is called {name!r}{_meant(name)}")
        return []
    return _each(values, lambda item: _device(item, kind), faults, name)


def _meant(name: str) -> str:
    """Return the question for a field that was perhaps meant by `name`."""
    import difflib  # not of a start's time

    kinds = DEVICE_CONFIGS.names()
    known = [*field_names(MachineConfig), *kinds, *(f"{kind}s" for kind in kinds), "image"]
    close = difflib.get_close_matches(name, known, 1)
    return f": did you mean {close[0]!r}?" if close else ""


def _each(
    values: Iterable[Any], read: Callable[[Any], DeviceConfig], faults: list[str], name: str
) -> list[DeviceConfig]:
    found = []
    for value in values:
        try:
            found.append(read(value))
        except (InvalidValueError, NotFoundError, TypeError) as fault:
            faults.append(f"{name}: {fault}")
    return found


def _device(value: Any, kind: str | None = None) -> DeviceConfig:
    """Return the device in a record, plain data or text, of `kind` or naming its own."""
    if isinstance(value, DeviceConfig):
        if kind not in (None, value.kind):
            raise InvalidValueError(f"{value!r} is no {kind}")
        return value
    if isinstance(value, Mapping):
        try:
            device: DeviceConfig = from_plain(
                DeviceConfig, value if kind is None else {**value, "kind": kind}
            )
        except MisfitError as fault:
            raise InvalidValueError(
                f"no device in {value!r}{fault.place}: {fault.reason}"
            ) from fault
        return device
    text = str(value)
    if kind is None:
        kind, equals, text = text.partition("=")
        if not equals:
            raise InvalidValueError(f"no device in {value!r}", hint="write KIND=..., as disk=a.img")
    return DEVICE_CONFIGS.get(kind).parse(text)
