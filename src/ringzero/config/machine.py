"""The description of a machine: frozen dataclasses that check themselves.

All faults of a description are collected and reported together (ConfigError).
Building one reads nothing but its arguments; `check_files` looks at the disk.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ringzero.errors import ConfigError, InvalidValueError
from ringzero.records import field_names, record
from ringzero.units import MIB, format_size, parse_size

# Less does not hold a stock kernel's decompressed code and data.
MINIMUM_MEMORY = 32 * MIB
# Physical addresses of the guests' CPUs have 40 bits.
MAXIMUM_MEMORY = 1 << 40
# xAPIC identifiers have 8 bits, and 255 means everybody.
MAXIMUM_CPUS = 254
# x86 Linux cuts a command line at COMMAND_LINE_SIZE (2048) without a word.
MAXIMUM_COMMAND_LINE = 2047
# virtio over MMIO: one interrupt line and one page for each device.
MAXIMUM_DISKS = 16

# Interrupt lines for disks, vsock and network together, after console and entropy source.
MAXIMUM_DEVICES = 17
# unix(7): the longest path of a socket.
MAXIMUM_SOCKET_PATH = 107
# What a context identifier of a guest may be (virtio 1.2 section 5.10.4).
FIRST_CID, LAST_CID = 3, 0xFFFF_FFFE

# What machines, boards, engines and disk formats may be called.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_PAGE = 4096
# Six bytes of which the lowest bit of the first, which makes a group of it, is not set.
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
# What IPv4 asks of every link (RFC 791), and what Ethernet calls jumbo frames.
MINIMUM_MTU, MAXIMUM_MTU = 68, 9000


@record
class DiskConfig:
    """A disk image: `format` None means that the content tells."""

    path: Path
    read_only: bool = False
    format: str | None = None

    @classmethod
    def parse(cls, text: str) -> DiskConfig:
        """Read "FILE[,ro][,format=NAME]"; raises InvalidValueError."""
        path, read_only, name = text, False, None
        # Options are taken from the end, so that a file name may hold a comma.
        while "," in path:
            head, _, option = path.rpartition(",")
            if option == "ro":
                read_only = True
            elif option.startswith("format=") and option != "format=":
                name = option.removeprefix("format=")
            else:
                break
            path = head
        if not path:
            raise InvalidValueError(
                f"no file in the disk {text!r}", hint="write FILE, FILE,ro or FILE,format=raw"
            )
        return cls(Path(path), read_only, name)

    def faults(self) -> list[str]:
        """Return what is wrong with this description, for a list of all faults."""
        if self.format is not None and not NAME.fullmatch(self.format):
            return [f"disk {self.path}: no format is called {self.format!r}"]
        return []

    def file_faults(self) -> list[str]:
        """Return what is wrong with the file itself."""
        return _file_faults("disk", self.path, writable=not self.read_only, device=True)


@record
class VsockConfig:
    """A socket device: `path` is the Unix socket by which the host connects to the guest.

    `cid` None means a random one. `base` is what a clone's path was made from.
    """

    path: Path
    cid: int | None = None
    base: Path | None = None

    @classmethod
    def parse(cls, value: object) -> VsockConfig:
        """Read "PATH[,cid=N]", a Path, or what `to_dict` gave; raises InvalidValueError."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            base = value.get("base")
            return cls(Path(value["path"]), value.get("cid"), None if base is None else Path(base))
        path, comma, number = str(value).rpartition(",cid=")
        if not comma:
            path, number = str(value), ""
        if not path or (comma and not number.isdecimal()):
            raise InvalidValueError(f"no socket device in {value!r}", hint="write PATH[,cid=N]")
        return cls(Path(path), int(number) if number else None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, with absolute paths."""
        base = None if self.base is None else str(self.base.absolute())
        return {"path": str(self.path.absolute()), "cid": self.cid, "base": base}

    def faults(self) -> list[str]:
        """Return what is wrong with this description, for a list of all faults."""
        found = []
        if len(os.fsencode(self.path)) > MAXIMUM_SOCKET_PATH:
            found.append(f"vsock {self.path}: a socket's path has at most 107 bytes")
        if self.cid is not None and not FIRST_CID <= self.cid <= LAST_CID:
            found.append(f"a vsock CID of {self.cid} is outside {FIRST_CID} to {LAST_CID}")
        return found


@record
class NetConfig:
    """A network interface. `network` is a name in the registry of `ringzero.net`.

    `target` is that network's argument, a path for "socket"; with `listen`, others
    connect there. `mac` None means a random address; `mtu` is in bytes.
    """

    network: str = "none"
    target: str = ""
    listen: bool = False
    mac: str | None = None
    mtu: int = 1500

    @classmethod
    def parse(cls, value: object) -> NetConfig:
        """Read "none|socket=PATH[,listen][,mac=ADDRESS][,mtu=N]", or what `to_dict` gave.

        Raises InvalidValueError, TypeError.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            return cls(**value)
        text, values = str(value), dict[str, Any]()
        while "," in text:
            head, _, option = text.rpartition(",")
            name, equals, given = option.partition("=")
            if option == "listen":
                values["listen"] = True
            elif name == "mac" and equals:
                values["mac"] = given.lower()
            elif name == "mtu" and given.isdecimal():
                values["mtu"] = int(given)
            else:
                break
            text = head
        network, equals, target = text.partition("=")
        if not network or (equals and not target) or "," in network:
            raise InvalidValueError(
                f"no network in {value!r}", hint="write none, or socket=PATH[,listen][,mac=ADDRESS]"
            )
        return cls(network, target, **values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, with absolute paths."""
        values = {name: getattr(self, name) for name in field_names(type(self))}
        if self.network == "socket":
            values["target"] = str(Path(self.target).absolute())
        return values

    def faults(self) -> list[str]:
        """Return what is wrong with this description, for a list of all faults."""
        found = []
        if not isinstance(self.network, str) or not NAME.fullmatch(self.network):
            found.append(f"no network is called {self.network!r}")
        if len(os.fsencode(self.target)) > MAXIMUM_SOCKET_PATH:
            found.append(f"network {self.target}: a socket's path has at most 107 bytes")
        if self.mac is not None and not _MAC.fullmatch(self.mac):
            found.append(
                f"{self.mac!r} is no MAC address of an interface: write 02:xx:xx:xx:xx:xx, "
                "whose first byte is even"
            )
        if not MINIMUM_MTU <= self.mtu <= MAXIMUM_MTU:
            found.append(f"an MTU of {self.mtu} is outside {MINIMUM_MTU} to {MAXIMUM_MTU}")
        return found


@record
class MachineConfig:
    """One machine. Sizes are in bytes.

    `kernel` is booted directly, with `initrd` and `command_line`; `agent` adds
    the ports by which ringzero's own guests take commands
    (`ringzero.vm.guest.agent`). `vsock` is a socket device and `net` a network interface, if there
    is to be one. `board` and
    `engine` are names in their registries; `cpu` is a model of `ringzero.isa.x86.cpuid`, or
    "host".
    """

    name: str = "machine"
    memory: int = 512 * MIB
    cpus: int = 1
    board: str = "microvm"
    engine: str = "auto"
    cpu: str = "x86-64-v2"
    kernel: Path | None = None
    initrd: Path | None = None
    command_line: str = ""
    disks: tuple[DiskConfig, ...] = ()
    agent: bool = False
    vsock: VsockConfig | None = None
    net: NetConfig | None = None

    def __post_init__(self) -> None:
        faults = self.faults()
        if faults:
            raise ConfigError(faults, hint="see `ringzero run --help`")

    @classmethod
    def create(cls, **values: Any) -> MachineConfig:
        """Build a description from people's spellings: sizes, paths and disks may be text.

        Raises ConfigError with all faults: unknown fields, unreadable sizes, and
        what `faults` finds.
        """
        known = field_names(cls)
        faults = [f"no field is called {name!r}" for name in values if name not in known]
        clean: dict[str, Any] = {}
        for name, value in values.items():
            try:
                if name == "memory":
                    clean[name] = parse_size(value)
                elif name in ("kernel", "initrd"):
                    clean[name] = None if value is None else Path(value)
                elif name == "disks":
                    clean[name] = tuple(
                        d if isinstance(d, DiskConfig) else DiskConfig.parse(str(d)) for d in value
                    )
                elif name == "vsock":
                    clean[name] = None if value is None else VsockConfig.parse(value)
                elif name == "net":
                    clean[name] = None if value is None else NetConfig.parse(value)
                elif name in known:
                    clean[name] = value
            except (InvalidValueError, TypeError, KeyError) as fault:
                faults.append(f"{name}: {fault}")
        try:
            config = cls(**clean)
        except ConfigError as fault:
            faults += fault.faults
        if faults:
            raise ConfigError(faults, hint="see `ringzero run --help`")
        return config

    def faults(self) -> list[str]:
        """Return everything that is wrong with this description."""
        found = []
        if not NAME.fullmatch(self.name):
            found.append(f"name {self.name!r}: use letters, digits, '_', '.' and '-'")
        if not MINIMUM_MEMORY <= self.memory <= MAXIMUM_MEMORY:
            found.append(
                f"memory of {format_size(self.memory)} is outside "
                f"{format_size(MINIMUM_MEMORY)} to {format_size(MAXIMUM_MEMORY)}"
            )
        elif self.memory % _PAGE:
            found.append(f"memory of {self.memory} bytes is not a multiple of {_PAGE}")
        if not 1 <= self.cpus <= MAXIMUM_CPUS:
            found.append(f"{self.cpus} CPUs are outside 1 to {MAXIMUM_CPUS}")
        found += [
            f"no {noun} is called {value!r}"
            for noun, value in (("board", self.board), ("engine", self.engine), ("CPU", self.cpu))
            if not NAME.fullmatch(value)
        ]
        if self.kernel is None and self.initrd is not None:
            found.append("an initrd without a kernel")
        if self.kernel is None and self.command_line:
            found.append("a kernel command line without a kernel")
        if len(os.fsencode(self.command_line)) > MAXIMUM_COMMAND_LINE:
            found.append(
                f"a kernel command line of {len(os.fsencode(self.command_line))} bytes; "
                f"Linux takes {MAXIMUM_COMMAND_LINE}"
            )
        if any(c in self.command_line for c in "\0\n"):
            found.append("a kernel command line with a NUL or a line break in it")
        if len(self.disks) > MAXIMUM_DISKS:
            found.append(f"{len(self.disks)} disks; at most {MAXIMUM_DISKS}")
        writable = [disk.path for disk in self.disks if not disk.read_only]
        found += [
            f"disk {path} is attached twice and written to"
            for path in dict.fromkeys(writable)
            if [disk.path for disk in self.disks].count(path) > 1
        ]
        for disk in self.disks:
            found += disk.faults()
        links = [link for link in (self.vsock, self.net) if link is not None]
        for link in links:
            found += link.faults()
        devices = len(self.disks) + len(links)
        if len(self.disks) <= MAXIMUM_DISKS and devices > MAXIMUM_DEVICES:
            found.append(f"{devices} disks and other devices; at most {MAXIMUM_DEVICES}")
        return found

    def check_files(self) -> None:
        """Raise ConfigError when files of this description are missing or unreadable."""
        found = []
        for noun, path in (("kernel", self.kernel), ("initrd", self.initrd)):
            if path is not None:
                found += _file_faults(noun, path, writable=False, device=False)
        for disk in self.disks:
            found += disk.file_faults()
        if found:
            raise ConfigError(found, hint="check the paths")


def _file_faults(noun: str, path: Path, *, writable: bool, device: bool) -> list[str]:
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
