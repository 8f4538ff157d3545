"""Landlock (landlock(7), <linux/landlock.h>): which files a process may reach from now on.

What is open already stays open; what is not granted beneath a path that a rule names is refused
with EACCES. The restriction is of the calling thread and of all that it starts later, threads and
processes, and cannot be taken back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

from ringzero.errors import HostError
from ringzero.host.jail import kernel
from ringzero.records import record

# LANDLOCK_ACCESS_FS_*.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << n for n in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK = (1 << n for n in range(6, 12))
MAKE_SYM, REFER, TRUNCATE, IOCTL_DEV = (1 << n for n in range(12, 16))
# What a rule about a file that is no directory may hold.
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
READ = READ_FILE | READ_DIR
# No device nodes: who may write somewhere does not come to a disk of the host by it.
WRITE = (
    READ | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SOCK
    | MAKE_FIFO | MAKE_SYM | REFER
)  # fmt: skip
# LANDLOCK_ACCESS_NET_BIND_TCP and CONNECT_TCP; LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET and SIGNAL.
_TCP, _SCOPES = 0b11, 0b11
# Since which version of the interface the kernel knows these.
_REFER_ABI, _TRUNCATE_ABI, _TCP_ABI, _IOCTL_ABI, SCOPE_ABI = 2, 3, 4, 5, 6
# Before it files cannot be moved between directories at all, which snapshots are made by.
MINIMUM_ABI = _REFER_ABI
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_RULESET = struct.Struct("=QQQ")
_PATH_BENEATH = struct.Struct("=Qi")
# How much of the ruleset's attributes older kernels know, in bytes.
_SIZES = ((SCOPE_ABI, 24), (_TCP_ABI, 16), (0, 8))


@record
class Grant:
    """What may be done with a file, or with all that is beneath a directory."""

    path: Path
    access: int


def version() -> int:
    """Return the version of the kernel's interface; 0 where there is no Landlock."""
    if not kernel.supported():
        return 0
    try:
        return kernel.call(kernel.NR_LANDLOCK_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError:
        # ENOSYS: a kernel without it. EOPNOTSUPP: one that was booted without it.
        return 0


def handled(abi: int) -> int:
    """Return the accesses to files that version `abi` can refuse."""
    known = (1 << 13) - 1
    for since, access in ((_REFER_ABI, REFER), (_TRUNCATE_ABI, TRUNCATE), (_IOCTL_ABI, IOCTL_DEV)):
        if abi >= since:
            known |= access
    return known


def restrict(grants: Iterable[Grant], *, network: bool) -> int:
    """Refuse the calling thread every file but those granted; return the version in force.

    Without `network` it binds and connects no TCP port. From version 6 on it signals no process
    that is not restricted as it is, and connects to no abstract Unix socket of such a one. Paths
    that are not there are granted to nobody. Needs no_new_privs. Raises HostError.
    """
    abi = version()
    if abi < MINIMUM_ABI:
        raise HostError(
            f"this kernel's Landlock is of version {abi}, and {MINIMUM_ABI} is needed",
            hint="Linux 5.19, booted with landlock among its security modules (lsm=)",
        )
    files = handled(abi)
    attributes = _RULESET.pack(files, 0 if network else _TCP, _SCOPES)
    size = next(size for since, size in _SIZES if abi >= since)
    ruleset = -1
    try:
        ruleset = kernel.call(kernel.NR_LANDLOCK_CREATE_RULESET, attributes, size, 0)
        for grant in grants:
            _add(ruleset, grant, files)
        kernel.call(kernel.NR_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    except OSError as fault:
        raise HostError(f"Landlock cannot be had: {fault.strerror}") from fault
    finally:
        if ruleset >= 0:
            os.close(ruleset)
    return abi


def _add(ruleset: int, grant: Grant, files: int) -> None:
    try:
        descriptor = os.open(grant.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        access = grant.access & files
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            access &= _OF_FILES
        if not access:
            return
        rule = ctypes.create_string_buffer(_PATH_BENEATH.pack(access, descriptor))
        kernel.call(kernel.NR_LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    except OSError as fault:
        # Sockets, pipes and memory files are beneath no path.
        if fault.errno != errno.EBADFD:
            raise
    finally:
        os.close(descriptor)
