"""What the host has run out of, when an operation fails that nobody expects to fail."""

from __future__ import annotations

import errno
import resource

from ringzero.errors import HostError
from ringzero.host.files import CACHE_HINT, too_large

# A machine takes some fifty descriptors, and each of its disks a few.
_DESCRIPTORS_HINT = "raise it: `ulimit -n 1024` (RLIMIT_NOFILE); a machine takes some fifty"


def host_limit(fault: BaseException) -> HostError | None:
    """Return the error that names the host's limit behind `fault`; None where it is another."""
    if isinstance(fault, MemoryError):
        return _memory("there is no memory left")
    if isinstance(fault, RuntimeError) and "can't start new thread" in str(fault):
        return _processes("the host gives no more threads")
    if not isinstance(fault, OSError):
        return None
    what = f" ({fault.filename})" if fault.filename else ""
    if fault.errno == errno.EMFILE:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return HostError(
            f"too many open files: the limit here is {limit}{what}", hint=_DESCRIPTORS_HINT
        )
    if fault.errno == errno.ENFILE:
        return HostError("the host has no descriptors left", hint="the limit is fs.file-max")
    if fault.errno == errno.ENOMEM:
        return _memory(f"the host has no memory left{what}")
    if fault.errno == errno.EAGAIN:
        return _processes(f"the host gives no more processes{what}")
    if fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return HostError(f"no room on the disk{what}", hint=CACHE_HINT)
    if fault.errno == errno.EFBIG:
        return too_large(f"a file would be too large{what}")
    return None


def _memory(message: str) -> HostError:
    return HostError(message, hint="give the machine less --memory, or stop others")


def _processes(message: str) -> HostError:
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    shown = "none" if limit == resource.RLIM_INFINITY else limit
    return HostError(
        message, hint=f"the limit of this user is {shown} (`ulimit -u`); a container may have less"
    )
