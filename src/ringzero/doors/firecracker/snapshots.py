"""Snapshots as Firecracker's clients have them: a file of the state, and one of the memory.

The state is JSON behind a line with its version and checksum. The memory file is the guest's
memory as it is, sparse, so that it can be mapped; a Diff has what has changed since the last
snapshot, or since the one that was loaded, at its place, and a memory file that is there is
brought up by it. Disks are not in it: they are the client's.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.config.tree import config_from_tree, config_to_tree
from ringzero.core.state import to_tree
from ringzero.doors.firecracker.table import SNAPSHOT_VERSION
from ringzero.errors import ConfigError, StateError
from ringzero.host.files import atomic_file, host_error
from ringzero.host.memory import PAGE, MemoryBase, MemoryImage
from ringzero.records import record
from ringzero.units import MIB

if TYPE_CHECKING:
    from ringzero.config.machine import MachineConfig
    from ringzero.vm.build import Assembly
    from ringzero.vm.machine import Machine
    from ringzero.vm.seed import Seed
    from ringzero.vm.state import MachineState

# What the file of a state begins with; behind it come the version and a SHA-256 of the rest.
_MAGIC = "ringzero-microvm"
# A guest's memory has its secrets in it.
_PRIVATE = 0o600
_LONGEST_HEAD, _LONGEST_STATE = 256, 256 * MIB


@record
class Saved:
    """What a state's file holds: the API's configuration, the machine's, and its state."""

    configuration: dict[str, Any]
    machine: MachineConfig
    taken: int
    state: dict[str, Any]


def version_of(path: Path) -> str:
    """Return the version of a state's file. Raises StateError, HostError."""
    return _head(_read(path, _LONGEST_HEAD), path)[0]


def save(
    machine: Machine,
    configuration: dict[str, Any],
    state: Path,
    memory: Path,
    since: MemoryImage | None,
) -> MemoryImage:
    """Write a paused machine down; return its memory as it is now, to be closed.

    With `since` only what differs from that is written, into a memory file of the same size that
    is there, or else into a sparse one. A file is there as a whole or not at all, but for one
    that is brought up. Raises StateError, HostError.
    """
    with machine.seed(same_files=True) as seed:
        if since is None:
            _write_memory(memory, seed.memory)
        else:
            _write_changes(memory, seed.memory, since)
        _write_state(state, configuration, seed, machine.engine_name)
        return seed.memory.hold()


def _write_state(path: Path, configuration: dict[str, Any], seed: Seed, engine: str) -> None:
    data = encode(configuration, seed.config, engine, seed.taken, seed.state)
    with atomic_file(path, _PRIVATE) as file:
        file.write(data)


def encode(
    configuration: dict[str, Any],
    config: MachineConfig,
    engine: str,
    taken: int,
    state: MachineState,
) -> bytes:
    """Return what a state's file holds of a machine of `config`, taken at UTC nanoseconds."""
    tree = {
        "configuration": configuration,
        "machine": {**config_to_tree(config), "engine": engine},
        "taken": taken,
        "state": to_tree(state.parts),
    }
    data = json.dumps(tree, separators=(",", ":")).encode()
    head = f"{_MAGIC} {SNAPSHOT_VERSION} {_checksum(SNAPSHOT_VERSION, data)}\n"
    return head.encode() + data


def _write_memory(path: Path, image: MemoryImage) -> None:
    from ringzero.vm.saved import blobs

    with atomic_file(path, _PRIVATE) as file:
        os.ftruncate(file.fileno(), image.size)
        for offset, data in blobs.memory_blocks(image):
            blobs.write_all(file.fileno(), data, offset)


def _write_changes(path: Path, image: MemoryImage, since: MemoryImage) -> None:
    from ringzero.vm.saved import blobs

    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
        try:
            if os.fstat(descriptor).st_size != image.size:
                os.ftruncate(descriptor, 0)
                os.ftruncate(descriptor, image.size)
            blocks, earlier = blobs.memory_blocks(image), blobs.memory_blocks(since)
            for offset, data in blobs.differences(image.size, blocks, earlier):
                blobs.write_all(descriptor, data, offset)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as fault:
        raise host_error(fault, "write", path) from fault


def read(path: Path) -> Saved:
    """Return what a state's file holds. Raises StateError, HostError."""
    return decode(_read(path, _LONGEST_STATE), path)


def decode(data: bytes, path: Path) -> Saved:
    """Return what `data`, which a state's file at `path` had, holds. Raises StateError."""
    version, digest, rest = _head(data, path)
    if version.partition(".")[0] != SNAPSHOT_VERSION.partition(".")[0]:
        raise StateError(
            f"{path} has version {version}, this ringzero reads {SNAPSHOT_VERSION}", path=path
        )
    if _checksum(version, rest) != digest:
        raise StateError(f"{path} is damaged: its checksum does not match", path=path)
    try:
        tree = json.loads(rest)
        config = config_from_tree(tree["machine"])
        return Saved(dict(tree["configuration"]), config, int(tree["taken"]), dict(tree["state"]))
    except (ValueError, KeyError, TypeError, RecursionError, ConfigError) as fault:
        raise StateError(f"{path} contradicts itself: {fault}", path=path) from fault


def map_memory(path: Path, size: int) -> MemoryImage:
    """Return the memory in a file, of which a machine maps pages of its own. StateError, HostError.

    The file must not be changed while the machine runs.
    """
    try:
        descriptor = _open(path)
    except OSError as fault:
        raise host_error(fault, "open", path) from fault
    base = MemoryBase(descriptor, size, owned=False)
    found = os.fstat(descriptor).st_size
    # What is missing at the end would be a bus error at the first touch.
    if found != size:
        base.release()
        raise StateError(f"{path} has {found} bytes, the machine's memory {size}", path=path)
    return MemoryImage(base)


class Supply:
    """A process on a Unix socket that supplies a guest's memory as it is touched (Uffd).

    It is told where the memory lies, and given a userfaultfd. The connection stays until `close`,
    so that it sees when nobody needs it any more.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closing = contextlib.ExitStack()

    def memory(self, size: int) -> MemoryImage:
        """Return a memory of `size` bytes that it supplies. Raises HostError."""
        try:
            descriptor = os.memfd_create("guest-ram", os.MFD_CLOEXEC)
            base = MemoryBase(descriptor, size, owned=False)
            os.ftruncate(descriptor, size)
        except OSError as fault:
            raise host_error(fault, "make", "the guest's memory") from fault
        return MemoryImage(base, supplied=self._begin)

    def _begin(self, address: int, size: int) -> None:
        from ringzero.host.unixsocket import connect
        from ringzero.host.userfault import Userfault

        pages = Userfault()
        self._closing.callback(pages.close)
        pages.register(address, size)
        mapping = {
            "base_host_virt_addr": address,
            "size": size,
            "offset": 0,
            "page_size": PAGE,
            # The name that it had before, in bytes as well.
            "page_size_kib": PAGE,
        }
        try:
            link = connect(self._path)
            self._closing.callback(link.close)
            socket.send_fds(link, [json.dumps([mapping]).encode()], [pages.fd])
        except OSError as fault:
            raise host_error(fault, "connect by", self._path) from fault

    def close(self) -> None:
        """Let go of it, while the memory is there: what it did not supply is zero."""
        self._closing.close()


def grow(
    saved: Saved,
    config: MachineConfig,
    memory: MemoryImage,
    attach: Callable[[Assembly], None] = lambda parts: None,
) -> Machine:
    """Return the machine that was saved, paused, with `config` for its description.

    `attach` attaches what the description does not have. Its guest is told that it is a copy by
    the VM generation identifier. Raises StateError and what building a machine raises.
    """
    from ringzero.vm import copies
    from ringzero.vm.build import assemble
    from ringzero.vm.guest.identity import Identity
    from ringzero.vm.machine import Machine
    from ringzero.vm.seed import Seed
    from ringzero.vm.state import MachineState

    identity = Identity()
    parts = assemble(config, identity=identity, content=memory)
    with contextlib.ExitStack() as undo:
        undo.callback(parts.close)
        attach(parts)
        seed = Seed(config, MachineState(saved.state), memory, (), saved.taken)
        introduction = copies.become(parts, seed, identity)
        undo.pop_all()
    return Machine.of(parts, introduction)


def _checksum(version: str, data: bytes) -> str:
    return hashlib.sha256(f"{version}\n".encode() + data).hexdigest()


def _head(data: bytes, path: Path) -> tuple[str, str, bytes]:
    """Return version, checksum and what follows them."""
    line, _, rest = data.partition(b"\n")
    words = line[:_LONGEST_HEAD].decode("ascii", "replace").split(" ")
    if len(words) != 3 or words[0] != _MAGIC:
        raise StateError(
            f"{path} is no snapshot of a microVM of ringzero's",
            hint="those that Firecracker itself has written hold the state of KVM",
            path=path,
        )
    return words[1], words[2], rest


def _open(path: Path) -> int:
    """Return a descriptor of a regular file; it never waits. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return descriptor


def _read(path: Path, limit: int) -> bytes:
    try:
        with os.fdopen(_open(path), "rb") as file:
            data = file.read(limit + 1)
    except OSError as fault:
        raise host_error(fault, "read", path) from fault
    if len(data) > limit > _LONGEST_HEAD:
        raise StateError(f"{path} is too long for a state", path=path)
    return data
