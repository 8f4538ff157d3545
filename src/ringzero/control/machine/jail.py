"""What a machine's process may still do once its guest runs, and how it is confined to that.

The process opens, loads and starts beforehand what it can. What it needs later is granted: what it
writes in its directory while it runs, the folders that it shares, its disks' files, what Python and
the engine load late; sockets where the guest has a network of ringzero's own. `auto` adds what the
machine's verbs need: processes, which copies are, and the store for snapshots. docs/jail.md has the
whole table.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ringzero
from ringzero.config.machine import MachineConfig
from ringzero.control.host.directory import RUN, MachineDirectory
from ringzero.control.host.records import MachineRecord
from ringzero.errors import ConflictError, HostError
from ringzero.host.jail import confine, landlock
from ringzero.host.jail.confine import Needs, Part
from ringzero.host.jail.landlock import Grant
from ringzero.host.jail.privileges import FILES
from ringzero.host.jail.roles import Freedom
from ringzero.settings import CACHE_DIR, DATA_DIR, Jail

if TYPE_CHECKING:
    from ringzero.config.devices.disk import DiskConfig

# Networks of ringzero's own: those that it makes of the host's sockets, and of Unix sockets.
_CLOSED, _CABLES, _DEVICES = ("none",), ("socket", "passt"), ("tap", "bridge")
# Files that are written, and replaced by a rename; no links, sockets or directories.
RUNNING = (
    landlock.READ | landlock.WRITE_FILE | landlock.TRUNCATE | landlock.MAKE_REG
    | landlock.REMOVE_FILE
)  # fmt: skip
_DEVICE = landlock.READ_FILE | landlock.WRITE_FILE | landlock.IOCTL_DEV


def needs(
    config: MachineConfig,
    level: Jail,
    engine: str,
    *,
    directory: MachineDirectory | None = None,
    secrets: Mapping[str, Mapping[str, str]] | None = None,
    snapshot: str = "",
) -> Needs:
    """Return what a machine of `config` needs in a jail of `level`, which is not Jail.NONE.

    `engine` is the name of the one that it runs on. `directory` is its own, where it has a name;
    `secrets` are read when its command starts; `snapshot` is what it goes on from.
    """
    networks = {net.network for net in config.nets}
    internet = bool(networks.difference(_CLOSED, _CABLES, _DEVICES))
    local = bool(networks.intersection(_CABLES)) or any(v.path != Path() for v in _vsocks(config))
    alone = level is Jail.STRICT
    grants = confine.program_grants(Path(ringzero.__file__).parent, sys.path, internet=internet)
    grants.append(Grant(CACHE_DIR.get(), landlock.READ))
    if directory is not None:
        # What the machine is, and who runs it, is not the process's to write.
        grants += [Grant(directory.path, landlock.READ), Grant(directory.path / RUN, RUNNING)]
        if not alone:
            store = DATA_DIR.get() / "snapshots"
            # What is not there cannot be granted.
            with contextlib.suppress(OSError):
                store.mkdir(parents=True, exist_ok=True)
            grants.append(Grant(store, landlock.WRITE))
    if snapshot:
        # Of a store: the memory and the disks are beside the snapshots.
        grants.append(Grant(Path(snapshot).parent, landlock.READ))
    grants += [grant for disk in config.disks for grant in _disk_grants(disk)]
    grants += [
        Grant(share.path, landlock.READ if share.read_only else landlock.WRITE)
        for share in config.shares
        if share.target
    ]
    paths = (source["file"] for source in (secrets or {}).values() if "file" in source)
    grants += [Grant(Path(path).resolve(), landlock.READ_FILE) for path in paths]
    if engine == "kvm":
        grants.append(Grant(Path("/dev/kvm"), _DEVICE))
    if networks.intersection(_DEVICES):
        grants.append(Grant(Path("/dev/net/tun"), _DEVICE))
    folders = any(share.target for share in config.shares)
    return Needs(
        grants=tuple(grants),
        freedom=Freedom(
            internet=internet,
            local=local,
            children=not alone,
            folders=folders,
            trees=not alone,
            kvm=engine == "kvm",
        ),
        capabilities=tuple(FILES) if folders else (),
        alone=alone,
    )


def enter(
    machine: Any,
    level: Jail,
    directory: MachineDirectory | None = None,
    record: MachineRecord | None = None,
) -> tuple[Part, ...]:
    """Confine the calling process to what its machine needs, before the guest runs.

    One that is confined already, as a copy is, stays so. Returns what holds, and what does not.
    With Jail.STRICT, raises HostError where the host does not allow it.
    """
    if level is Jail.NONE or confine.parts():
        return confine.parts()
    machine.prepare_confinement()
    wanted = needs(
        machine.config,
        level,
        str(machine.stats().get("engine", "")),
        directory=directory,
        secrets=record.secrets if record is not None else None,
        snapshot=record.snapshot if record is not None else "",
    )
    return confine.confine(wanted, strict=level is Jail.STRICT)


def leave_origin(origin: MachineDirectory) -> None:
    """In a jailed machine's copy: come no more to what the original writes while it runs.

    A copy of copies of copies, 16 deep, keeps what the one before it had (landlock(7)).
    """
    left = confine.needs_granted()
    if left is not None:
        run = origin.path / RUN
        with contextlib.suppress(HostError):
            confine.narrow([grant for grant in left.grants if grant.path != run])


def require_children(name: str, what: str) -> None:
    """Raise ConflictError where a machine's process makes no `what`: it is in a strict jail."""
    left = confine.needs_granted()
    if left is not None and left.alone:
        raise ConflictError(
            f"machine {name!r} is in a strict jail: its process makes no {what}",
            hint="start it with --jail=auto, which leaves room for that",
        )


def require_own_description(name: str) -> None:
    """Raise ConflictError where a machine's process may not write down what the machine is."""
    if confine.needs_granted() is not None:
        raise ConflictError(
            f"machine {name!r} is jailed: its process cannot make another image its disk, "
            "which it would have to write down",
            hint="start it with --jail=none",
        )


def require_path(name: str, path: Path) -> None:
    """Raise ConflictError where a machine's process was not left what it is asked to use now."""
    left = confine.needs_granted()
    whole = path.absolute()
    if left is None or any(whole.is_relative_to(grant.path) for grant in left.grants):
        return
    raise ConflictError(
        f"machine {name!r} is jailed, and its process cannot come to {path}",
        hint="name it when the machine starts, or start it with --jail=none",
    )


def require_network(name: str, network: str) -> None:
    """Raise ConflictError where a machine's process was left no sockets for `network`."""
    left = confine.needs_granted()
    if left is None or network in _CLOSED:
        return
    free = left.freedom.local if network in _CABLES else left.freedom.internet
    if network in _DEVICES or not free:
        raise ConflictError(
            f"machine {name!r} is jailed, and its process has no sockets for {network!r}",
            hint="give it the network when it starts, or start it with --jail=none",
        )


def _disk_grants(disk: DiskConfig) -> list[Grant]:
    access = landlock.READ_FILE
    if not disk.read_only:
        access |= landlock.WRITE_FILE | landlock.TRUNCATE
    return [Grant(disk.path, access)]


def _vsocks(config: MachineConfig) -> list[Any]:
    return [device for device in config.devices if device.kind == "vsock"]
