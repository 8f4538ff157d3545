"""The calling process confined, for good: by all that this host allows, and that its work needs.

A process is confined while it has one thread: Landlock and capabilities are of a thread and of what
it starts. Each part says whether it holds, and why not.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ringzero.errors import HostError
from ringzero.host.jail import landlock, namespaces, privileges, roles, seccomp
from ringzero.host.jail.landlock import Grant
from ringzero.host.jail.roles import Freedom, Role
from ringzero.host.service import have_threads
from ringzero.records import record, replace

# How long threads that are about to end may take, in seconds.
_PATIENCE = 2.0
_PAUSE = 0.001
_TASKS = "/proc/self/task"

NO_NEW_PRIVILEGES, LIMITS, CAPABILITIES = "no-new-privileges", "limits", "capabilities"
NAMESPACES, LANDLOCK, SECCOMP = "namespaces", "landlock", "seccomp"
# Without these a process is not confined at all.
ESSENTIAL = (NO_NEW_PRIVILEGES, LANDLOCK, SECCOMP)


@record
class Needs:
    """What the process must still be able to do.

    `grants` are the files that it may come to, `freedom` what it may ask of the kernel,
    `capabilities` (names in `privileges.FILES`) what it keeps of root's. With `alone` it starts no
    process, nobody attaches to it, and it has namespaces of its own, where the host allows them.
    """

    grants: tuple[Grant, ...]
    freedom: Freedom = Freedom()
    capabilities: tuple[str, ...] = ()
    alone: bool = False


@record
class Part:
    """One mechanism: whether it holds, and in words what it does, or why it does not."""

    name: str
    holds: bool
    detail: str


# Of this process, and of those it forks.
_parts: tuple[Part, ...] = ()
_needs: Needs | None = None


def parts() -> tuple[Part, ...]:
    """Return what confines the calling process; () where nothing does."""
    return _parts


def needs_granted() -> Needs | None:
    """Return what the calling process was left with; None where it is not confined."""
    return _needs


def confine(needs: Needs, *, strict: bool = False) -> tuple[Part, ...]:
    """Confine the calling process; return each part, and whether it holds.

    With `strict` all of ESSENTIAL hold, or HostError is raised; the process may be half confined
    then, and is to end.
    """
    begin(needs)
    found = (*_parts, _part(SECCOMP, lambda: filter_calls(needs.freedom)))
    missing = [part for part in found if part.name in ESSENTIAL and not part.holds]
    if strict and missing:
        raise HostError(
            "this host does not allow a strict jail: "
            + "; ".join(f"{part.name}: {part.detail}" for part in missing),
            hint="--jail=auto takes what there is; `ringzero info` says what that is",
        )
    return _remember(found, needs)


def begin(needs: Needs) -> tuple[Part, ...]:
    """Confine the calling process by all but seccomp, which `filter_calls` adds later."""
    found = [_part(NO_NEW_PRIVILEGES, _no_new_privileges)]
    alone = _await_alone()
    if needs.alone:
        # A process that hides may not say who its users are.
        found.append(_part(NAMESPACES, lambda: _namespaces(needs), alone))
    found.append(_part(LIMITS, lambda: _limits(needs)))
    found.append(_part(CAPABILITIES, lambda: _capabilities(needs), alone))
    found.append(_part(LANDLOCK, lambda: _landlock(needs), alone))
    return _remember(tuple(found), needs)


def filter_calls(freedom: Freedom) -> str:
    """Filter the system calls of all threads, and of those to come by their roles; tell of it.

    To whom may be signalled is Landlock's affair, where `begin` has it. Raises HostError.
    """
    scoped = any(part.name == LANDLOCK and part.holds for part in _parts)
    freedom = replace(freedom, signals=scoped and landlock.version() >= landlock.SCOPE_ABI)
    seccomp.install(roles.program(Role.CONTROL, freedom, os.getpid()), all_threads=True)
    have_threads(_narrow(freedom))
    return f"{len(roles.rules(Role.CONTROL, freedom, 0))} system calls"


def _remember(found: tuple[Part, ...], needs: Needs) -> tuple[Part, ...]:
    global _parts, _needs
    _parts, _needs = found, needs
    return found


def narrow(grants: Iterable[Grant]) -> None:
    """Leave the calling process, which is confined, no files but those of `grants`.

    For one that has one thread, as a fork has at first. Raises HostError.
    """
    global _needs
    if _needs is None or not any(part.name == LANDLOCK and part.holds for part in _parts):
        return
    left = tuple(grants)
    landlock.restrict(left, network=_needs.freedom.internet)
    _needs = replace(_needs, grants=left)


def _part(name: str, do: Callable[[], str], alone: bool = True) -> Part:
    if not alone:
        return Part(name, False, "the process has several threads already")
    try:
        return Part(name, True, do())
    except HostError as fault:
        return Part(name, False, fault.message)
    except OSError as fault:
        return Part(name, False, fault.strerror or str(fault))


def _await_alone() -> bool:
    """Wait for threads that are about to end; whether the calling one is the only one."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            count = len(os.listdir(_TASKS))  # noqa: PTH208 - no Path is needed for it
        except OSError:
            count = threading.active_count()
        if count == 1 or time.monotonic() >= deadline:
            return count == 1
        time.sleep(_PAUSE)


def _no_new_privileges() -> str:
    privileges.forbid_new()
    return "no program that is started gains rights"


def _limits(needs: Needs) -> str:
    privileges.forbid_core_dumps()
    if needs.alone:
        privileges.hide()
        return "no core dumps; nobody but root attaches to it"
    return "no core dumps"


def _namespaces(needs: Needs) -> str:
    wanted = ["ipc", "uts"]
    if not (needs.freedom.internet or needs.freedom.local):
        wanted.append("net")
    return ", ".join(namespaces.enter(wanted))


def _capabilities(needs: Needs) -> str:
    privileges.keep_capabilities(needs.capabilities)
    return "none" if not privileges.capabilities() else ", ".join(needs.capabilities)


def _landlock(needs: Needs) -> str:
    abi = landlock.restrict(needs.grants, network=needs.freedom.internet)
    return f"version {abi}; {len(needs.grants)} paths"


def _narrow(freedom: Freedom) -> Callable[[str], None]:
    def add(role: str) -> None:
        # A copy of the machine is another process.
        program = roles.program(Role(role), freedom, os.getpid())
        seccomp.install(program, all_threads=False)

    return add


# What the interpreter and its libraries are read from when a module is loaded late.
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
# Read-only facts of the host that Python, the engine and a machine's own files tell.
_FACTS = (
    "/proc/self", "/proc/sys/kernel/random/boot_id", "/proc/sys/vm/overcommit_memory",
    "/proc/sys/kernel/cap_last_cap", "/sys/devices/system/cpu", "/etc/localtime",
    "/usr/share/zoneinfo",
)  # fmt: skip
# Who has a network of the guest's asks for names as the host does.
_NAMES = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/run/systemd/resolve")
# Where packages are installed, ours among others.
_INSTALLED = ("site-packages", "dist-packages")
_STREAMS = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


def program_grants(package: Path, path: Iterable[str], *, internet: bool) -> list[Grant]:
    """Return what a Python program needs to go on: its modules, its libraries, facts, /dev/null.

    `package` is our own, `path` where modules are looked for (sys.path). Beside our package only
    names are read, unless what it needs is installed there, too.
    """
    read = [*_LIBRARIES, *_FACTS, *(_NAMES if internet else ())]
    found = [Grant(Path(name).resolve(), landlock.READ) for name in read]
    found += [Grant(Path(name), landlock.READ_FILE | landlock.WRITE_FILE) for name in _STREAMS]
    found.append(Grant(package, landlock.READ))
    for entry in filter(None, path):
        own = Path(entry) == package.parent and package.parent.name not in _INSTALLED
        found.append(Grant(Path(entry), landlock.READ_DIR if own else landlock.READ))
    return found
