"""What the host itself does of the actions: with machines that do not run, and with none.

A handler takes the machine's directory, or the directory of all machines, and the action's
arguments by name. What has no handler here is asked of the machine's process.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.api import table
from ringzero.api.action import Stream
from ringzero.api.protocol import STDOUT
from ringzero.api.values import (
    ExitRecord,
    ImageSummary,
    MachineSummary,
    MetadataSummary,
    PortSummary,
    ShareSummary,
    SnapshotFacts,
    SnapshotSummary,
    Status,
)
from ringzero.control.host import (
    claims,
    copies,  # noqa: F401 - binds what is asked of it
    directory,
    logs,  # noqa: F401 - binds what is asked of it
    networks,  # noqa: F401 - the same
    storage,  # noqa: F401 - the same
)
from ringzero.control.host.directory import MACHINE, MachineDirectory
from ringzero.control.host.handlers import handles
from ringzero.control.host.notes import UNCHANGED
from ringzero.control.host.records import MachineRecord
from ringzero.control.host.session import Session, WayOut
from ringzero.errors import ConflictError, ControlError, InvalidValueError, RingzeroError
from ringzero.host.files import sync_file
from ringzero.records import replace

if TYPE_CHECKING:
    from ringzero.config.devices.net import NetConfig
    from ringzero.config.devices.share import ShareConfig
    from ringzero.config.ports import Forward
    from ringzero.vm.saved.snapshot import Snapshot
    from ringzero.vm.saved.store import Node

# Of what is told of a running machine, what its process alone knows.
_OF_THE_PROCESS = frozenset(("config", "agent", "watchers", "stats", "jail"))
# How long a machine's process may be there after it has left its socket, in seconds.
_ENDING = 2.0
# How long a process may take to be gone after it said that the machine has ended, in seconds.
GONE_WITHIN = 10.0


# ---- one machine ------------------------------------------------------------


@handles("inspect")
def inspect(where: MachineDirectory) -> MachineSummary:
    where.machine()
    if not where.alive:
        return where.summary()
    action, told = table.get("inspect"), dict[str, Any]()
    try:
        with Session(where, action.patience) as session:
            told = session.call(action, {})
    except (ConflictError, ControlError):
        # What only reads is told of a machine that ends meanwhile, too.
        if where.status() is Status.STARTING or not where.wait_end(_ENDING):
            raise
    facts = where.summary()
    for name in _OF_THE_PROCESS & told.keys():
        facts[name] = told[name]  # type: ignore[literal-required]
    return facts


@handles("ports", running=False)
def ports(where: MachineDirectory) -> list[PortSummary]:
    nets = where.machine().machine_config().nets
    return port_summaries([forward for net in nets for forward in net.ports])


@handles("shares", running=False)
def shares(where: MachineDirectory) -> list[ShareSummary]:
    return share_summaries(where.machine().machine_config().shares)


@handles("publish", running=False)
def publish(where: MachineDirectory, ports: str) -> list[PortSummary]:
    from ringzero.config.devices import net
    from ringzero.config.ports import double_faults, parse_ports

    wanted = parse_ports(ports)

    def change(old: MachineRecord) -> MachineRecord:
        nets = net.publish(old.machine_config().nets, wanted)
        for fault in double_faults([forward for each in nets for forward in each.ports]):
            raise ConflictError(fault, hint=f"`ringzero port {where.name}` lists its ports")
        return _with_nets(old, nets)

    where.redescribe(change)
    return port_summaries(wanted)


@handles("unpublish", running=False)
def unpublish(where: MachineDirectory, ports: str) -> list[PortSummary]:
    from ringzero.config.ports import choose, without

    gone: list[Forward] = []

    def change(old: MachineRecord) -> MachineRecord:
        nets = list(old.machine_config().nets)
        gone.extend(choose(ports, [forward for net in nets for forward in net.ports]))
        for forward in gone:
            nets = [replace(net, ports=without(net.ports, forward)) for net in nets]
        return _with_nets(old, nets)

    where.redescribe(change)
    return port_summaries(gone)


def _with_nets(record: MachineRecord, nets: Sequence[NetConfig]) -> MachineRecord:
    """Return a description with other interfaces."""
    from ringzero.config.tree import config_to_tree

    old = record.machine_config()
    if len(nets) != len(old.nets):
        raise ConflictError(
            "the machine has no network interface",
            hint="one made with --net user, or a network by its name, forwards ports",
        )
    changed = old.map_devices(lambda n, device: nets[n] if device.kind == "net" else device)
    return replace(record, config=config_to_tree(changed))


def port_summaries(forwards: Sequence[Forward]) -> list[PortSummary]:
    """Return forwarded ports as plain data."""
    return [
        {
            "address": forward.address,
            "port": forward.port,
            "guest_port": forward.guest_port,
            "protocol": forward.protocol,
        }
        for forward in forwards
    ]


def share_summaries(shares: Iterable[ShareConfig]) -> list[ShareSummary]:
    """Return shared folders as plain data; room for some is none."""
    return [
        {"path": str(share.path), "target": share.target, "read_only": share.read_only}
        for share in shares
        if share.target
    ]


@handles("metadata")
def metadata(where: MachineDirectory) -> MetadataSummary:
    from ringzero.control.host import description

    return description.metadata(where)


@handles("describe")
def describe(
    where: MachineDirectory,
    title: str | None,
    description: str | None,
    autostart: bool | None,
    metadata: dict[str, Any] | None,
) -> None:
    from ringzero.control.host.description import describe

    describe(where, title=title, description=description, autostart=autostart, metadata=metadata)


@handles("redefine")
def redefine(
    where: MachineDirectory,
    config: dict[str, Any],
    image: str,
    command: list[str] | None,
    timeout: float | None,
    serial: str | None,
) -> None:
    from ringzero.config.machine import MachineConfig
    from ringzero.control.host.description import redefine

    redefine(
        where,
        MachineConfig.create(**{**config, "name": where.name}).with_room_for_shares(),
        image=image,
        command=tuple(command or ()),
        timeout=timeout,
        serial=serial,
    )


@handles("next")
def next(where: MachineDirectory) -> dict[str, Any]:
    return where.coming().config


@handles("start")
def start(where: MachineDirectory) -> None:
    record = where.machine()
    if not where.alive and (record.snapshot or record.parent) and not record.revert:
        raise ConflictError(
            f"machine {where.name!r} was a copy; what it was went with it",
            hint=f"`ringzero snapshot revert {where.name} SNAPSHOT` starts it from a snapshot",
        )
    _launch(where, record)


@handles("restart")
def restart(where: MachineDirectory, timeout: float) -> None:
    if where.alive:
        stop = table.get("stop")
        with Session(where, timeout + stop.patience) as session:
            session.call(stop, {"timeout": timeout})
        where.wait_end(GONE_WITHIN)
    start(where)


@handles("revert")
def revert(where: MachineDirectory, snapshot: str) -> None:
    if where.alive:
        _revert_running(where, snapshot)
        return
    record = where.machine()
    if record.snapshot or record.parent:
        # A copy's disks went with it; it begins anew with the snapshot's.
        _launch(where, replace(record, snapshot=snapshot, parent="", revert=""))
    else:
        _launch(where, replace(record, revert=snapshot))


def _revert_running(where: MachineDirectory, snapshot: str) -> None:
    """Ask the process, with a note of it as long as the machine's disks are in between."""
    action = table.get("revert")
    with Session(where, action.patience) as session:
        where.amend(lambda old: replace(old, revert=snapshot))
        try:
            session.call(action, {"snapshot": snapshot})
        except RingzeroError as fault:
            if fault.context.get(UNCHANGED):
                where.amend(lambda old: replace(old, revert=""))
            raise
    where.amend(lambda old: replace(old, revert=""))


@handles("revert_disks")
def revert_disks(where: MachineDirectory, snapshot: str) -> None:
    from ringzero.disk import open_disk
    from ringzero.disk.instant import LiveDisk
    from ringzero.vm.saved.revert import check_disks, take_back
    from ringzero.vm.saved.snapshot import Snapshot

    record, found = _with_disks(where), Snapshot.open(snapshot)
    with contextlib.ExitStack() as closing:
        disks = []
        for disk in record.machine_config().disks:
            live = LiveDisk(open_disk(disk.path, format=disk.format, read_only=disk.read_only))
            closing.callback(live.close)
            disks.append(live)
        check_disks(disks, found)
        contents = found.disks()
        for content in contents:
            closing.callback(content.close)
        # The images are locked from here on: nobody starts the machine before it is done.
        where.redescribe(lambda old: replace(old, revert=snapshot))
        sync_file(where.path / MACHINE)
        take_back(disks, contents)
        where.redescribe(lambda old: replace(old, revert=""))


@handles("snapshot", running=False)
def snapshot(where: MachineDirectory, name: str, store: str, memory: bool, compress: bool) -> str:
    from ringzero.vm.saved.store import Store

    record = _with_disks(where)
    if record.revert:
        raise ConflictError(
            f"machine {where.name!r} died while it was taken back to a snapshot",
            hint=f"`ringzero start {where.name}` completes that",
        )
    place = Store(Path(store) if store else None)
    return place.save_disks(record.machine_config(), name).identifier


def _with_disks(where: MachineDirectory) -> MachineRecord:
    """Return what a machine is whose disks are there while it does not run."""
    record = where.machine()
    if record.snapshot or record.parent:
        raise ConflictError(
            f"machine {where.name!r} was a copy, and its disks went with it",
            hint="save a copy while it runs",
        )
    return record


@handles("kill")
def kill(where: MachineDirectory) -> ExitRecord:
    """End the machine, with its process where that does not answer."""
    action = table.get("kill")
    with contextlib.suppress(ControlError), Session(where, action.patience) as session:
        ended: ExitRecord = session.call(action, {})
        if where.wait_end(GONE_WITHIN):
            return ended
    where.end_process()
    record = ExitRecord("killed", "by `kill`; its process did not answer", 137, 0.0)
    where.write_death(record)
    return record


@handles("wait")
def wait(where: MachineDirectory, stream: Stream) -> ExitRecord:
    way = WayOut()
    stream.begin(way)
    if where.alive:
        action = table.get("wait")
        with contextlib.suppress(ControlError), Session(where) as session:
            way.session = session
            if not way.left:
                session.stream(action, {}, Stream())
        while not way.left and not where.wait_end(GONE_WITHIN):
            pass
    if way.left:
        raise ControlError(f"nobody waits for the end of machine {where.name!r} any more")
    record = where.exit()
    if record is None:
        where.require_alive()
        raise directory.not_found(where.name, where.path.parent)
    return record


@handles("rename")
def rename(where: MachineDirectory, name: str) -> None:
    where.rename(name)


@handles("remove")
def remove(where: MachineDirectory, force: bool) -> None:
    if force:
        where.end_process()
    where.remove()


def _launch(where: MachineDirectory, record: MachineRecord) -> None:
    from ringzero.control.host.launch import launch

    launch(where.reclaim(replace(record, foreground=False)))


# ---- the host ---------------------------------------------------------------


@handles("machines")
def machines(where: Path, status: str | None) -> list[MachineSummary]:
    found = [machine.summary() for machine in directory.machines(where)]
    return [facts for facts in found if status in (None, facts["status"])]


@handles("define")
def define(
    where: Path,
    config: dict[str, Any],
    name: str | None,
    image: str,
    command: list[str] | None,
    timeout: float | None,
    serial: str | None,
    remove: bool,
    uuid: str | None,
) -> str:
    notes = {} if uuid is None else {"uuid": uuid}
    words = tuple(command or ())
    if image and not config.keys() & {"kernel", "boot_entry"}:
        config, words = _of_image(image, config, command)
    made = define_machine(
        where,
        config,
        name,
        notes,
        image=image,
        command=words,
        timeout=timeout,
        serial=serial,
        remove=remove,
    )
    return made.name


def _of_image(
    image: str, fields: Mapping[str, Any], command: Sequence[str] | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the description of a machine with an image, which is made or pulled, and its command.

    Raises InvalidValueError for an image with disks of its own: they would be made for a machine
    that may never be.
    """
    from ringzero.config.tree import config_to_tree
    from ringzero.image import names
    from ringzero.vm.boot import complete

    files = names.find(image)()
    if files.disks or (files.machine is not None and files.machine.disks):
        raise InvalidValueError(
            f"the image {image!r} has disks of its own",
            hint=f"on its host: `ringzero create {image}`",
        )
    words = tuple(files.words(()) if command is None else command)
    return config_to_tree(complete(None, image, dict(fields))), words


def define_machine(
    where: Path, config: Mapping[str, Any], name: str | None, notes: Mapping[str, Any], **more: Any
) -> MachineDirectory:
    """Describe a machine without starting it, with `notes` as `description.describe` takes them.

    It is there whole or not at all. `more` is as `claims.create` takes it, and raises.
    """
    from ringzero.config.machine import MachineConfig
    from ringzero.control.host import description

    def complete(new: MachineDirectory) -> None:
        if notes:
            description.describe(new, **notes)
        new.write_defined()

    machine = MachineConfig.create(**config).with_room_for_shares()
    claim = claims.create(name, machine, where=where, complete=complete, **more)
    claim.release()
    return claim.directory


@handles("images")
def images(where: Path) -> list[ImageSummary]:
    from ringzero.image import stored

    return stored.images()


@handles("snapshots")
def snapshots(where: Path) -> list[SnapshotSummary]:
    from ringzero.vm.saved.store import Store

    return [snapshot_summary(node) for node in Store().tree()]


@handles("remove_snapshot")
def remove_snapshot(where: Path, name: str) -> int:
    from ringzero.control.host import owndisks
    from ringzero.vm.saved.store import Store

    store = Store()
    disks: list[Path] = []
    # Of one that cannot be read it is not known which disks were made for its machine.
    with contextlib.suppress(RingzeroError):
        disks = owndisks.in_tree(store.get(name).manifest.config)
    freed = store.remove(name)
    owndisks.release(disks, directory.descriptions(where))
    return freed


@handles("export_snapshot")
def export_snapshot(where: Path, name: str, path: str) -> int:
    from ringzero.vm.saved.store import Store
    from ringzero.vm.saved.transfer import export

    return export(Store().get(name), _absolute(path))


@handles("import_snapshot")
def import_snapshot(where: Path, path: str, name: str | None) -> SnapshotFacts:
    from ringzero.vm.saved.store import Store
    from ringzero.vm.saved.transfer import import_file

    return snapshot_facts(import_file(Store(), _absolute(path), name))


def _absolute(path: str) -> Path:
    """Return a path that means the same to whoever gave it. Raises InvalidValueError."""
    if not Path(path).is_absolute():
        raise InvalidValueError(
            f"the path {path!r} is not absolute", hint="begin it with /: others are elsewhere"
        )
    return Path(path)


def snapshot_summary(node: Node) -> SnapshotSummary:
    """Return what a snapshot is, and its place in the tree, as plain data."""
    return {
        **snapshot_facts(node.snapshot),
        "parent": node.parent,
        "own": node.own,
        "shared": node.shared,
    }


def snapshot_facts(snapshot: Snapshot) -> SnapshotFacts:
    """Return what a snapshot is by itself, as plain data."""
    manifest = snapshot.manifest
    return {
        "name": snapshot.name,
        "id": manifest.identifier,
        "taken": manifest.taken / 1e9,
        "machine": manifest.config.get("name"),
        "memory": manifest.memory.size if manifest.memory is not None else None,
        "disks": [part.size for part in manifest.disks],
        "engine": manifest.engine,
        "directory": str(snapshot.path),
    }


@handles("events")
def events(where: Path, stream: Stream) -> None:
    from ringzero.control.host.events import Watch

    with Watch(where) as watch:
        stream.begin(watch)
        for event in watch.events():
            stream.data(STDOUT, json.dumps(event.to_dict()).encode() + b"\n")
