"""seccomp(2): which system calls a process may make, from a filter on."""

from __future__ import annotations

import ctypes
import errno
import struct

from ringzero.errors import HostError
from ringzero.host.jail import kernel

# SECCOMP_SET_MODE_FILTER; SECCOMP_FILTER_FLAG_TSYNC: for all threads of the process at once.
_SET_MODE_FILTER, _TSYNC = 1, 1
_STEP = 8


def install(program: bytes, *, all_threads: bool) -> None:
    """Filter the calls of the calling thread and of what it starts, or those of `all_threads`.

    `program` is an array of struct sock_filter; earlier filters stay, the strictest answer counts.
    Needs no_new_privs, or CAP_SYS_ADMIN. Raises HostError.
    """
    steps = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of steps, and a pointer.
    whole = struct.pack("@HxxxxxxP", len(program) // _STEP, ctypes.addressof(steps))
    try:
        left = kernel.call(kernel.NR_SECCOMP, _SET_MODE_FILTER, _TSYNC if all_threads else 0, whole)
    except OSError as fault:
        # EINVAL: a kernel without filters. ENOSYS: one that is older than them.
        known = fault.errno in (errno.EINVAL, errno.ENOSYS)
        text = "this kernel has no seccomp filters" if known else f"seccomp: {fault.strerror}"
        raise HostError(text, hint="CONFIG_SECCOMP_FILTER") from fault
    if left:
        raise HostError(f"seccomp: thread {left} has a filter of its own")
