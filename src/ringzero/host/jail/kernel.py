"""System calls that Python's library has no function for, by the C library's syscall(2)."""

from __future__ import annotations

import ctypes
import os

# <asm/unistd_64.h>; Landlock's and seccomp's own are the same numbers on x86-64 only.
NR_CAPGET, NR_CAPSET, NR_PIVOT_ROOT, NR_SECCOMP = 125, 126, 155, 317
NR_LANDLOCK_CREATE_RULESET, NR_LANDLOCK_ADD_RULE, NR_LANDLOCK_RESTRICT_SELF = 444, 445, 446
# Both the tables of numbers here and the filters are of this machine alone.
MACHINE = "x86_64"

_libc = ctypes.CDLL(None, use_errno=True)


def supported() -> bool:
    """Whether the numbers here are those of this host's kernel."""
    return os.uname().machine == MACHINE


def call(number: int, *arguments: object) -> int:
    """Make a system call; returns its result, raises OSError."""
    passed = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *passed))
    if result < 0:
        _raise()
    return result


def prctl(option: int, *arguments: int) -> int:
    """Call prctl(2); raises OSError."""
    passed = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
    result = int(_libc.prctl(ctypes.c_int(option), *passed))
    if result < 0:
        _raise()
    return result


def mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    """Call mount(2); raises OSError."""
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    text = None if data is None else os.fsencode(data)
    if _libc.mount(*words, ctypes.c_ulong(flags), text) < 0:
        _raise(target)


def unmount(target: str, flags: int = 0) -> None:
    """Call umount2(2); raises OSError."""
    if _libc.umount2(os.fsencode(target), flags) < 0:
        _raise(target)


def unshare(flags: int) -> None:
    """Call unshare(2); raises OSError."""
    if _libc.unshare(flags) < 0:
        _raise()


def setns(descriptor: int, flags: int) -> None:
    """Call setns(2); raises OSError."""
    if _libc.setns(descriptor, flags) < 0:
        _raise()


def _raise(path: str | None = None) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), path)
