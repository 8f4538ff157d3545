"""Which of the host's file systems are its kernel's own: no guest looks into those."""

from __future__ import annotations

import os
from pathlib import Path

# What is beneath their mount points are no files, but this host's processes and devices: memory
# of the process that serves the share can be read there.
_KERNELS = frozenset(
    (
        *("proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "debugfs", "tracefs"),
        *("securityfs", "selinuxfs", "smackfs", "bpf", "configfs", "pstore", "efivarfs"),
        *("mqueue", "binfmt_misc", "fusectl", "nsfs", "nfsd", "rpc_pipefs", "resctrl"),
    )
)
# proc(5): mountinfo of the process itself.
_MOUNTS = Path("/proc/self/mountinfo")


class KernelMounts:
    """Tells by device numbers; the table of mounts is read again for one that it does not know."""

    def __init__(self) -> None:
        self._known: dict[int, bool] = {}

    def has(self, device: int) -> bool:
        """Whether `device` (st_dev) is a file system of the kernel's own."""
        if device not in self._known:
            self._read()
        # Some file systems have files of other devices than their mount's (btrfs).
        return self._known.setdefault(device, False)

    def _read(self) -> None:
        for line in _MOUNTS.read_text("utf-8", "surrogateescape").splitlines():
            before, _, behind = line.partition(" - ")
            major, _, minor = before.split()[2].partition(":")
            kind = behind.partition(" ")[0]
            self._known[os.makedev(int(major), int(minor))] = kind in _KERNELS
