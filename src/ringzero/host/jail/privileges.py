"""What a process may become, is seen as, and may use: no_new_privs, capabilities, limits."""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Iterable

from ringzero.errors import HostError
from ringzero.host.jail import kernel

# <linux/prctl.h>.
_SET_DUMPABLE, _CAPBSET_DROP, _SET_NO_NEW_PRIVS, _CAP_AMBIENT = 4, 24, 38, 47
_AMBIENT_CLEAR_ALL = 4
# _LINUX_CAPABILITY_VERSION_3: two words of 32 bits for each of the three sets.
_VERSION = 0x20080522
_HEADER = struct.Struct("=Ii")
_SETS = struct.Struct("=6I")
# <linux/capability.h>: those that say whose files one may touch, which shared folders need of root.
FILES = {"chown": 0, "dac_override": 1, "dac_read_search": 2, "fowner": 3, "fsetid": 4, "mknod": 27}
# What makes and configures network devices, TAP devices among them.
NETWORKS = {"net_admin": 12}
_LAST_CAPABILITY = "/proc/sys/kernel/cap_last_cap"
_KNOWN_LAST = 40


def forbid_new() -> None:
    """Have no program that is started gain privileges (PR_SET_NO_NEW_PRIVS). Raises HostError."""
    try:
        kernel.prctl(_SET_NO_NEW_PRIVS, 1)
    except OSError as fault:
        raise HostError(f"no_new_privs: {fault.strerror}") from fault


def hide() -> None:
    """Have nobody but root attach to the process, read its memory, or dump it."""
    kernel.prctl(_SET_DUMPABLE, 0)


def forbid_core_dumps() -> None:
    """Write no memory of the guest's to the disk when the process crashes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def capabilities() -> int:
    """Return the calling thread's effective capabilities, a bit for each."""
    sets = ctypes.create_string_buffer(_SETS.size)
    kernel.call(kernel.NR_CAPGET, _HEADER.pack(_VERSION, 0), sets)
    words = _SETS.unpack(sets.raw)
    return int(words[0] | words[3] << 32)


def keep_capabilities(kept: Iterable[str] = ()) -> None:
    """Give up all capabilities of the calling thread but those of `kept`, for good.

    Raises HostError.
    """
    known = FILES | NETWORKS
    mask = sum(1 << known[name] for name in kept)
    held = capabilities()
    try:
        if held >> _SETPCAP & 1:
            for number in range(_last() + 1):
                if not mask >> number & 1:
                    kernel.prctl(_CAPBSET_DROP, number)
        kernel.prctl(_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
        low, high = mask & held & 0xFFFFFFFF, (mask & held) >> 32
        sets = _SETS.pack(low, low, 0, high, high, 0)
        kernel.call(kernel.NR_CAPSET, _HEADER.pack(_VERSION, 0), sets)
    except OSError as fault:
        raise HostError(f"capabilities: {fault.strerror}") from fault


_SETPCAP = 8


def _last() -> int:
    """Return the number of the kernel's last capability."""
    try:
        with open(_LAST_CAPABILITY) as file:  # noqa: PTH123 - no Path is needed for it
            return int(file.read())
    except (OSError, ValueError):
        return _KNOWN_LAST


def become(uid: int, gid: int) -> None:
    """Be another user, with one group and no capability, for good. Raises HostError."""
    try:
        os.setgroups([gid] if os.geteuid() == 0 else os.getgroups())
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as fault:
        raise HostError(f"cannot become user {uid} of group {gid}: {fault.strerror}") from fault
