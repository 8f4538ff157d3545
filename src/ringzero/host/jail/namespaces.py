"""Namespaces of a process's own (namespaces(7)): users, networks, names, message queues."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ringzero.errors import HostError
from ringzero.host.jail import kernel

# <linux/sched.h>.
FLAGS = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}


def enter(names: Iterable[str]) -> tuple[str, ...]:
    """Give the process new namespaces; return which. It must have one thread only.

    Who may not make them gets a user namespace first, in which the user's and the group's number
    stay what they are; the capabilities that come with it are to be given up. Raises HostError.
    """
    wanted = tuple(names)
    flags = sum(FLAGS[name] for name in wanted)
    try:
        if os.geteuid() == 0:
            kernel.unshare(flags)
            return wanted
        user, group = os.geteuid(), os.getegid()
        kernel.unshare(flags | FLAGS["user"])
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    except OSError as fault:
        raise HostError(
            f"namespaces of its own: {fault.strerror}",
            hint="does this host let users make user namespaces?",
        ) from fault
    return ("user", *wanted)
