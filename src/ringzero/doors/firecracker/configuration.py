"""What clients have said of the machine before it begins, and the description made of it."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ringzero.config.device import NAME, DeviceConfig
from ringzero.config.devices.balloon import BalloonConfig
from ringzero.config.devices.disk import DiskConfig
from ringzero.config.devices.net import NetConfig
from ringzero.config.devices.pmem import PmemConfig
from ringzero.config.devices.vsock import VsockConfig
from ringzero.config.machine import MachineConfig
from ringzero.doors.firecracker import faults
from ringzero.doors.firecracker.faults import ApiFault
from ringzero.errors import ConfigError, RingzeroError
from ringzero.records import replace
from ringzero.settings import ENGINE
from ringzero.units import MIB

# What Firecracker gives a kernel for which nothing is said: no modules, no legacy devices.
DEFAULT_COMMAND_LINE = (
    "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd "
    "swiotlb=noforce"
)
# Firecracker's bound of vCPUs, and its memory in MiB where nothing is said.
MAXIMUM_VCPUS, DEFAULT_MEMORY = 32, 128
_MACHINE = {
    "vcpu_count": 1,
    "mem_size_mib": DEFAULT_MEMORY,
    "smt": False,
    "track_dirty_pages": False,
    "huge_pages": "None",
}
# Where interfaces lead: to the tap that `host_dev_name` names, or to a user network of ours.
TAP, USER = NETWORKS = ("tap", "user")
_LINK_LOCAL = ipaddress.IPv4Network("169.254.0.0/16")
METADATA_ADDRESS = "169.254.169.254"

# What a snapshot has of a configuration.
_KEPT = (
    *("machine", "boot_source", "drives", "nets", "vsock", "entropy", "balloon", "metadata"),
    *("boot_timer", "pmem"),
)

Fields = dict[str, Any]


class Configuration:
    """What a client has set, checked as it comes. Every method raises ApiFault.

    `network` is one of NETWORKS. `touched` says that something was set with which no snapshot
    can be loaded any more. `boot_timer`: the guest has one.
    """

    def __init__(self, network: str = TAP, *, boot_timer: bool = False) -> None:
        self.network = network
        self.boot_timer = boot_timer
        self.touched = False
        self.machine: Fields = dict(_MACHINE)
        self.boot_source: Fields = {}
        self.cpu: Fields | None = None
        self.drives: list[Fields] = []
        self.pmem: list[Fields] = []
        self.nets: list[Fields] = []
        self.vsock: Fields | None = None
        self.entropy: Fields | None = None
        self.balloon: Fields | None = None
        self.metadata: Fields | None = None
        self.serial: Fields = {}

    # ---- the whole --------------------------------------------------------

    def full(self) -> Fields:
        """Return all of it, as `GET /vm/config` shows it."""
        return {
            "balloon": self.balloon,
            "drives": self.drives,
            "boot-source": {
                name: self.boot_source.get(name)
                for name in ("kernel_image_path", "initrd_path", "boot_args")
            },
            "cpu-config": self.cpu,
            "logger": None,
            "machine-config": self.machine,
            "metrics": None,
            "mmds-config": self.metadata,
            "network-interfaces": self.nets,
            "vsock": self.vsock,
            "entropy": self.entropy,
            "pmem": self.pmem,
            "memory-hotplug": None,
        }

    # ---- machine and kernel -----------------------------------------------

    def set_machine(self, fields: Fields) -> None:
        """Take the machine's size as a whole: what is not said is as at the start."""
        self._take_machine({**_MACHINE, **fields})

    def update_machine(self, fields: Fields) -> None:
        """Change some of the machine's size."""
        if not fields:
            raise ApiFault(faults.NO_BODY["PATCH"])
        self._take_machine({**self.machine, **fields})

    def _take_machine(self, fields: Fields) -> None:
        self.touched = True
        count, memory = fields["vcpu_count"], fields["mem_size_mib"]
        odd = fields["smt"] and count > 1 and count % 2
        if not 0 < count <= MAXIMUM_VCPUS or odd:
            raise ApiFault(
                "Machine config error: The number of vCPUs must be greater than 0, less than "
                f"{MAXIMUM_VCPUS} and must be 1 or an even number if SMT is enabled."
            )
        pages = fields["huge_pages"]
        if memory == 0 or (pages != "None" and memory % 2):
            raise ApiFault(
                "Machine config error: The memory size (MiB) is either 0, or not a multiple of the "
                "configured page size."
            )
        if pages == "2M":
            raise faults.not_supported("guest memory in hugetlbfs; Transparent pages are there")
        if self.balloon is not None and memory < self.balloon["amount_mib"]:
            raise ApiFault(
                "Machine config error: The memory size (MiB) is smaller than the previously set "
                "balloon device target size."
            )
        if fields.get("cpu_template") == "None":
            fields = {name: value for name, value in fields.items() if name != "cpu_template"}
        self.machine = fields

    def set_boot_source(self, fields: Fields) -> None:
        """Take kernel, initrd and command line."""
        self.touched = True
        for name, sentence in (
            ("kernel_image_path", "The kernel file cannot be opened: "),
            (
                "initrd_path",
                "The initrd file cannot be opened due to invalid path or invalid permissions. ",
            ),
        ):
            if name in fields:
                _open(fields[name], f"Boot source error: {sentence}")
        line = fields.get("boot_args", "")
        if "\n" in line or not line.isascii():
            raise ApiFault(
                "Boot source error: The kernel command line is invalid: it has a line break or "
                "a letter beyond ASCII"
            )
        self.boot_source = fields

    def set_cpu(self, fields: Fields) -> None:
        """Take a CPU template of the client's own: one that changes nothing."""
        if any(fields.values()):
            raise faults.not_supported("CPU templates that change CPUID leaves or MSRs")
        self.cpu = fields

    # ---- devices ----------------------------------------------------------

    def put_drive(self, fields: Fields) -> None:
        """Take a drive, or another description of one that is there. The root comes first."""
        self.touched = True
        known = [drive["drive_id"] for drive in self.drives]
        position = known.index(fields["drive_id"]) if fields["drive_id"] in known else None
        root = bool(self.drives) and self.drives[0]["is_root_device"]
        if fields["is_root_device"] and root and position != 0:
            raise ApiFault("Drive config error: A root block device already exists!")
        if fields["is_root_device"] and any(item["root_device"] for item in self.pmem):
            raise ApiFault("Drive config error: A root block device already exists!")
        drive = checked_drive(fields)
        if position is not None:
            del self.drives[position]
        if fields["is_root_device"]:
            self.drives.insert(0, drive)
        else:
            self.drives.insert(len(self.drives) if position is None else position, drive)

    def put_pmem(self, fields: Fields) -> None:
        """Take persistent memory, or another description of what is there."""
        self.touched = True
        known = [item["id"] for item in self.pmem]
        position = known.index(fields["id"]) if fields["id"] in known else len(known)
        others = [item for item in self.pmem if item["id"] != fields["id"]]
        roots = [*self.drives[:1], *others]
        if fields.get("root_device") and any(
            item.get("is_root_device") or item.get("root_device") for item in roots
        ):
            raise ApiFault(
                "Pmem config error: Attempt to add pmem as a root device while the root "
                "device defined as a block device"
            )
        read_only = fields.get("read_only", False)
        path = fields["path_on_host"]
        _open(path, "Pmem config error: Error while opening the backing file: ", read_only)
        wrong = PmemConfig(Path(path), read_only).file_faults()
        if wrong:
            raise ApiFault(f"Pmem config error: {wrong[0]}")
        self.pmem = [
            *others[:position],
            {
                "id": fields["id"],
                "path_on_host": path,
                "root_device": fields.get("root_device", False),
                "read_only": read_only,
                "rate_limiter": fields.get("rate_limiter"),
            },
            *others[position:],
        ]

    def update_pmem(self, fields: Fields) -> None:
        """Take a limit of flushes, which does nothing."""
        number = next((n for n, item in enumerate(self.pmem) if item["id"] == fields["id"]), None)
        if number is None:
            raise ApiFault(
                f"Pmem config error: Unable to update the pmem device: {fields['id']} not found"
            )
        self.pmem[number] = {**self.pmem[number], **fields}

    def put_net(self, fields: Fields) -> None:
        """Take a network interface, or another description of one that is there."""
        self.touched = True
        others = [net for net in self.nets if net["iface_id"] != fields["iface_id"]]
        address = fields.get("guest_mac")
        if address is not None and any(net.get("guest_mac") == address for net in others):
            raise ApiFault(f"Network config error: The MAC address is already in use: {address}")
        self.check_net(fields)
        self.nets = [*others, fields]

    def check_net(self, fields: Fields) -> None:
        """Raise ApiFault unless the host has what an interface is to lead to."""
        from ringzero.net.contract import NETWORKS as KINDS

        config = self.net_config(fields)
        if config.network == TAP:
            try:
                KINDS.get(TAP)(config).close()
            except RingzeroError as fault:
                raise ApiFault(
                    "Network config error: Could not create the network device: Open tap device "
                    f"failed: {faults.told(fault)}. Invalid TUN/TAP Backend provided by "
                    f"{fields['host_dev_name']}; a user network needs no tap: --network user, or "
                    "RINGZERO_FIRECRACKER_NETWORK=user"
                ) from fault

    def set_vsock(self, fields: Fields) -> None:
        """Take the socket device."""
        self.touched = True
        if os.path.lexists(fields["uds_path"]):
            raise ApiFault(
                "Vsock config error: Cannot create backend for vsock device: Error binding to the "
                "host-side Unix socket: Address in use (os error 98)"
            )
        wrong = VsockConfig(Path(fields["uds_path"]), fields["guest_cid"]).faults()
        if wrong:
            raise ApiFault(f"Vsock config error: Cannot create vsock device: {wrong[0]}")
        self.vsock = {name: fields[name] for name in ("guest_cid", "uds_path")}

    def set_balloon(self, fields: Fields) -> None:
        """Take the balloon."""
        self.touched = True
        self.check_balloon(fields["amount_mib"])
        self.balloon = {
            "amount_mib": fields["amount_mib"],
            "deflate_on_oom": fields["deflate_on_oom"],
            "stats_polling_interval_s": fields.get("stats_polling_interval_s", 0),
            "free_page_hinting": fields.get("free_page_hinting", False),
            "free_page_reporting": fields.get("free_page_reporting", False),
        }

    def check_balloon(self, amount: int) -> None:
        """Raise ApiFault unless the machine has so many MiB for a balloon."""
        if amount > self.machine["mem_size_mib"]:
            raise ApiFault("Balloon config error: Amount of pages requested is too large.")

    def set_entropy(self, fields: Fields) -> None:
        """Take the entropy device, which every machine has."""
        self.touched = True
        self.entropy = {"rate_limiter": fields.get("rate_limiter")}

    def set_serial(self, fields: Fields) -> None:
        """Take where the serial line's output goes."""
        self.serial = fields

    def set_metadata_config(self, fields: Fields) -> None:
        """Take which interfaces lead to the metadata, and how it is asked for."""
        self.touched = True
        names = fields["network_interfaces"]
        if not names:
            raise ApiFault(
                "MMMDS config error: The list of network interface IDs that allow forwarding MMDS "
                "requests is empty."
            )
        if not set(names) <= {net["iface_id"] for net in self.nets}:
            raise ApiFault(
                "MMMDS config error: The list of network interface IDs provided contains at least "
                "one ID that does not correspond to any existing network interface."
            )
        address = fields.get("ipv4_address", METADATA_ADDRESS)
        if ipaddress.IPv4Address(address) not in _LINK_LOCAL:
            raise ApiFault("MMMDS config error: The MMDS IPv4 address is not link local.")
        self.metadata = {
            "version": fields.get("version", "V1"),
            "network_interfaces": names,
            "ipv4_address": address,
            "imds_compat": fields.get("imds_compat", False),
        }

    # ---- snapshots --------------------------------------------------------

    def kept(self) -> Fields:
        """Return what a snapshot has of it."""
        return {name: getattr(self, name) for name in _KEPT}

    def loaded(
        self, kept: Fields, nets: Sequence[Mapping[str, str]], vsock: Mapping[str, str] | None
    ) -> Configuration:
        """Return what `kept` gave, with other taps for some interfaces and another socket.

        Raises ApiFault; LookupError, TypeError where it was never kept.
        """
        found = Configuration(self.network)
        for name in _KEPT:
            # Earlier versions had no persistent memory.
            setattr(found, name, kept.get(name, []) if name == "pmem" else kept[name])
        # Where the output goes is this process's affair.
        found.serial = self.serial
        for override in nets:
            names = [net["iface_id"] for net in found.nets]
            if override["iface_id"] not in names:
                raise ApiFault(
                    "Load snapshot error: Failed to restore from snapshot: Unknown Network Device: "
                    f"{override['iface_id']}"
                )
            position = names.index(override["iface_id"])
            device = override["host_dev_name"]
            found.nets[position] = {**found.nets[position], "host_dev_name": device}
        if vsock is not None:
            if found.vsock is None:
                raise ApiFault(
                    "Load snapshot error: Failed to restore from snapshot: Unknown Vsock Device"
                )
            found.vsock = {**found.vsock, "uds_path": vsock["uds_path"]}
        return found

    def adapt(self, config: MachineConfig) -> MachineConfig:
        """Return the description of a machine that was saved with what leads out of it as here."""

        def change(number: int, device: DeviceConfig) -> DeviceConfig:
            if isinstance(device, NetConfig):
                return replace(self.net_config(self.nets[number]), mac=device.mac)
            if isinstance(device, VsockConfig) and self.vsock is not None:
                return replace(device, path=Path(self.vsock["uds_path"]))
            return device

        return config.map_devices(change)

    # ---- the description --------------------------------------------------

    def describe(self, name: str) -> MachineConfig:
        """Return the machine's description. Raises ApiFault where there is none."""
        if not self.boot_source:
            raise ApiFault(
                "Start microvm error: Cannot start microvm without kernel configuration."
            )
        if "cpu_template" in self.machine:
            raise ApiFault(
                "Start microvm error: Failed to get CPU template: no CPU here is made to look "
                f"like {self.machine['cpu_template']}; leave cpu_template away"
            )
        initrd = self.boot_source.get("initrd_path")
        try:
            return MachineConfig(
                name=name if NAME.fullmatch(name) else "microvm",
                memory=self.machine["mem_size_mib"] * MIB,
                cpus=self.machine["vcpu_count"],
                engine=ENGINE.get(),
                kernel=Path(self.boot_source["kernel_image_path"]),
                initrd=Path(initrd) if initrd is not None else None,
                command_line=self.command_line(),
                devices=(
                    *(disk_config(drive) for drive in self.drives),
                    *(
                        PmemConfig(Path(item["path_on_host"]), item["read_only"])
                        for item in self.pmem
                    ),
                    *(self.net_config(net) for net in self.nets),
                    *self._vsock(),
                    *self._balloon(),
                ),
            )
        except ConfigError as fault:
            raise ApiFault(f"Start microvm error: {'; '.join(fault.faults)}") from fault

    def command_line(self) -> str:
        """Return the kernel's command line, with the root: the first drive, or a pmem device."""
        line: str = self.boot_source.get("boot_args", DEFAULT_COMMAND_LINE)
        for number, item in enumerate(self.pmem):
            if item["root_device"]:
                return f"{line} root=/dev/pmem{number} {'ro' if item['read_only'] else 'rw'}"
        if not self.drives or not self.drives[0]["is_root_device"]:
            return line
        root = self.drives[0]
        named = root.get("partuuid")
        device = f"PARTUUID={named}" if named else "/dev/vda"
        return f"{line} root={device} {'ro' if root['is_read_only'] else 'rw'}"

    def net_config(self, fields: Fields) -> NetConfig:
        """Return the description of an interface. Raises ApiFault."""
        network = self.network
        config = NetConfig(
            network,
            target=fields["host_dev_name"] if network == TAP else "",
            mac=fields.get("guest_mac"),
            mtu=fields.get("mtu", 1500),
        )
        wrong = config.faults()
        if wrong:
            raise ApiFault(f"Network config error: Could not create the network device: {wrong[0]}")
        return config

    def _vsock(self) -> Sequence[VsockConfig]:
        if self.vsock is None:
            return ()
        return (VsockConfig(Path(self.vsock["uds_path"]), self.vsock["guest_cid"]),)

    def _balloon(self) -> Sequence[BalloonConfig]:
        balloon = self.balloon
        if balloon is None:
            return ()
        return (
            BalloonConfig(
                balloon["amount_mib"] * MIB,
                balloon["deflate_on_oom"],
                balloon["stats_polling_interval_s"],
                balloon["free_page_reporting"],
                balloon["free_page_hinting"],
            ),
        )


def checked_drive(fields: Mapping[str, Any]) -> Fields:
    """Return a drive as it is kept and shown. Raises ApiFault."""
    sentence = "Drive config error: Unable to create the virtio block device: "
    if fields.get("socket") is not None:
        raise faults.not_supported("drives of another process (vhost-user)")
    path = fields.get("path_on_host")
    if path is None:
        raise ApiFault(f"{sentence}Running method expected different backend.")
    read_only = fields.get("is_read_only", False)
    _open(path, f"{sentence}Virtio backend error: Error manipulating the backing file: ", read_only)
    return {
        "drive_id": fields["drive_id"],
        "partuuid": fields.get("partuuid"),
        "is_root_device": fields["is_root_device"],
        "cache_type": fields.get("cache_type", "Unsafe"),
        "is_read_only": read_only,
        "path_on_host": path,
        "rate_limiter": fields.get("rate_limiter"),
        "io_engine": fields.get("io_engine", "Sync"),
        "socket": None,
    }


def disk_config(drive: Mapping[str, Any]) -> DiskConfig:
    """Return the description of a drive's disk: an image without a format, as Firecracker's are."""
    return DiskConfig(Path(drive["path_on_host"]), read_only=drive["is_read_only"], format="raw")


def _open(path: str, sentence: str, read_only: bool = True) -> None:
    """Raise ApiFault unless a file can be opened."""
    try:
        # Not blocking: it may be a named pipe.
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
        os.close(os.open(path, flags))
    except OSError as fault:
        raise ApiFault(f"{sentence}{faults.os_error(fault)} {path}") from fault
    if not (Path(path).is_file() or Path(path).is_block_device()):
        raise ApiFault(f"{sentence}no regular file: {path}")
