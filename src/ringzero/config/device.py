"""What the description of a device is; each kind is a record in `ringzero.config.devices`.

    @DEVICE_CONFIGS.register("disk")
    @record
    class DiskConfig(DeviceConfig): ...

From the record come the device's spelling in Python (`Machine(disk=...)`, `disks=[...]`), its flag
(`--disk`), its checks, and its form in machines' directories and snapshots.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol, Self

from ringzero.records import field_names, replace
from ringzero.registry import Registry

# What machines, boards, engines, networks and disk formats may be called.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
# unix(7): the longest path of a socket.
MAXIMUM_SOCKET_PATH = 107


class Addresses(Protocol):
    """What a machine has of its own, from which its devices get theirs."""

    @property
    def name(self) -> str | None:
        """The machine's name, where it has a new one."""
        ...

    @property
    def cid(self) -> int:
        """The address of its socket device."""
        ...

    @property
    def vsock(self) -> Path | None:
        """The path of its socket device on the host, where one is given."""
        ...

    @property
    def net(self) -> DeviceConfig | None:
        """Its first network interface, where one is given."""
        ...

    def mac_of(self, number: int) -> str:
        """Return the MAC address of the interface with this number."""
        ...


class DeviceConfig:
    """A device that the user asks for: the base of the records of all kinds.

    `kind` is its name in the registries of descriptions and of devices; `spelling` and `help`
    are those of its flag. The first of a kind whose `first_has_number` is not set is called by
    the kind alone (`net`, `net1`), the others by kind and number (`disk0`). Its flag is
    `--KIND`, unless `flags` has other names; of a kind that is `joined`, all are one device.
    """

    kinds: ClassVar[Registry[type[DeviceConfig]]]
    kind: ClassVar[str]
    spelling: ClassVar[str]
    help: ClassVar[str]
    first_has_number: ClassVar[bool] = True
    flags: ClassVar[tuple[str, ...]] = ()
    joined: ClassVar[bool] = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what a person writes behind the flag; raises InvalidValueError."""
        raise NotImplementedError

    def faults(self) -> list[str]:
        """Return what is wrong with this description, for a list of all faults."""
        return []

    @classmethod
    def faults_together(cls, devices: Sequence[Self]) -> list[str]:
        """Return what is wrong with having all of these, which are one machine's of this kind."""
        return []

    @classmethod
    def places(cls, devices: Sequence[Self]) -> int:
        """Return how many places on the board these take, which are one machine's of this kind."""
        return 1 if cls.joined else len(devices)

    def file_faults(self) -> list[str]:
        """Return what is wrong with the files that it names."""
        return []

    def absolute(self) -> Self:
        """Return the same with paths that mean the same in every directory."""
        paths = {
            name: value.absolute()
            for name in field_names(type(self))
            if isinstance(value := getattr(self, name), Path)
        }
        return replace(self, **paths) if paths else self

    def complete(self, number: int, addresses: Addresses) -> Self:
        """Return the same with addresses for those left open; `number` counts within the kind."""
        return self

    def renew(self, number: int, addresses: Addresses) -> Self:
        """Return what a copy of the machine has for it."""
        return self

    def stand_in(self, number: int) -> Self | str:
        """Return what a template of such machines has in its place (`ringzero.vm.saved.templates`).

        While it boots and idles, a guest cannot tell the one from the other, and it needs nothing
        of the host's that is another's. Or why there is no such device, and the machine boots.
        """
        return f"it has a {self.kind}, of which there are no templates: {self.name_of(number)}"

    @classmethod
    def flag_names(cls) -> tuple[str, ...]:
        """Return what its flag is called on the command line; the first long one is its name."""
        return cls.flags or (f"--{cls.kind}",)

    @classmethod
    def name_of(cls, number: int) -> str:
        """Return what the device with this number within its kind is called in the machine."""
        return f"{cls.kind}{number}" if number or cls.first_has_number else cls.kind


DEVICE_CONFIGS: Registry[type[DeviceConfig]] = Registry("device", "ringzero.config.devices")
DeviceConfig.kinds = DEVICE_CONFIGS


def file_faults(noun: str, path: Path, *, writable: bool, device: bool) -> list[str]:
    """Return what is wrong with a file that is to be read; `device`: or a block device."""
    try:
        exists = path.exists()
    except OSError as fault:
        return [f"{noun} {path}: {fault.strerror}"]
    if not exists:
        return [f"{noun} {path} does not exist"]
    if path.is_dir():
        return [f"{noun} {path} is a directory"]
    if not (path.is_file() or (device and path.is_block_device())):
        return [f"{noun} {path} is no regular file"]
    if not os.access(path, os.R_OK):
        return [f"{noun} {path} is not readable for you"]
    if writable and not os.access(path, os.W_OK):
        return [f"{noun} {path} is not writable for you; add ',ro' to attach it read-only"]
    return []
