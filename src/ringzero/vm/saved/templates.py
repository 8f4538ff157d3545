"""Templates: idle guests written down, from which later starts of the same description go on.

    ROOT/NAME/state         HEADER, then JSON: the key, and the state tree of `ringzero.vm.state`
    ROOT/NAME/memory        the guest's memory, sparse, to be mapped
    ROOT/NAME/working-set   pages that a first command touches (`workingset`); a hint
    ROOT/NAME/code-pages    what the engine knows of pages whose code a first command runs; a hint
    ROOT/NAME.failed        why the last attempt to make one failed, for people
    ROOT/lock               held by whoever makes one: one at a time costs nobody much
    ROOT/.partial-*/        what is being made, or removed

A template is of a *description*: everything that a guest can see until it waits for its first
command. It is booted from a stand-in of the description, in which everything else (names, ports,
addresses, what the host has behind a device) is missing; the stand-in's plain data, the files that
it boots from and the versions of what made it are the key, and NAME is a hash of that.

Nothing of it is trusted that could have been changed: directories and files are this user's and
nobody else's (0700, 0600, no links); the state has a checksum; of the memory, which would take too
long to read, the state tells the inode, size and times of its last changes, which no write leaves
as they were. What does not fit is removed and made again. The memory of a template that is removed
stays with whoever has it mapped.
"""

from __future__ import annotations

import binascii
import contextlib
import errno
import json
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.config.tree import config_to_tree
from ringzero.digest import blake2b
from ringzero.errors import NotFoundError, RingzeroError, StateError
from ringzero.host.files import host_error, remove_tree
from ringzero.host.memory import HostMemory, MemoryBase, MemoryImage
from ringzero.host.private import open_private
from ringzero.records import record, replace
from ringzero.settings import CACHE_DIR
from ringzero.units import MIB
from ringzero.version import __version__
from ringzero.vm import boot
from ringzero.vm import state as states
from ringzero.vm.saved import workingset

if TYPE_CHECKING:
    from ringzero.config.device import DeviceConfig
    from ringzero.config.machine import MachineConfig
    from ringzero.engine.contract import Engine
    from ringzero.vm.build import Assembly
    from ringzero.vm.copies import Introduction

# Raised whenever a reader of before would misread what is written now.
FORMAT = 3
STATE, MEMORY, CODE = "state", "memory", "code-pages"
# Where in the key the stand-in's plain data stand.
_DESCRIPTION = 4
# Of the state file: magic, CRC-32 of all behind it.
HEADER = struct.Struct("<8sI4x")
MAGIC = b"RZTMPL01"
# What every guest of a template is called until it is told its own name.
HOSTNAME = "ringzero"
# A state tree has some 100 KiB. More is not ours.
_MAX_STATE = 64 << 20
_SECTOR = 512
_PARTIAL, _FAILED, _LOCK = ".partial-", ".failed", "lock"
# What a template takes on the disk, in bytes, with some room for others.
LEAST_SPACE = 256 * MIB
# For how long nobody tries again after an attempt failed, in seconds.
RETRY = 3600


@record
class Key:
    """What a template is of: `text` is all that went in, `config` the stand-in that is booted."""

    text: str
    config: MachineConfig

    @property
    def name(self) -> str:
        """What the template is called in the store."""
        return blake2b(self.text.encode(), digest_size=16).hexdigest()


def stand_in(config: MachineConfig, engine: str) -> MachineConfig | str:
    """Return the description that a template of `config` is booted from, or why there is none."""
    if config.boot_entry is not None or config.kernel is None:
        return "it boots from a disk"
    if not config.agent or not boot.has_own_agent(config.command_line):
        return "its guest is none of ringzero's own"
    services = boot.services_of(config.command_line)
    if boot.SERVICES in services and boot.KEPT not in services:
        return "its services begin with a boot: its image has no SNAPSHOT"
    devices: list[DeviceConfig] = []
    for number, device in config.numbered():
        if number and device.joined:
            # All of them are one device.
            continue
        found = device.stand_in(number)
        if isinstance(found, str):
            return found
        devices.append(found)
    return replace(config, name=HOSTNAME, engine=engine, devices=tuple(devices))


def key_of(config: MachineConfig, engine: Engine) -> Key | str:
    """Return the key of the template that a machine of `config` on `engine` may go on from.

    Or why it boots, in words.
    """
    from ringzero.board.contract import BOARDS

    if not engine.keeps_templates:
        return f"the engine {engine.name} has no templates"
    model = config.cpu or BOARDS.get(config.board).architecture.default_model
    found = stand_in(replace(config, cpu=model), engine.name)
    if isinstance(found, str):
        return found
    files = [found.kernel, found.initrd, *(disk.path for disk in found.disks)]
    try:
        stamps = [_stamp(path.stat()) for path in files if path is not None]
    except OSError as fault:
        # Told as such when it is read.
        return f"a file that it boots from cannot be read: {fault.strerror}"
    inputs = [
        *(FORMAT, __version__, states.VERSION, engine.code_version()),
        config_to_tree(found),
        stamps,
        boot.own_command_line(found, found.command_line, HOSTNAME),
    ]
    return Key(json.dumps(inputs, sort_keys=True), found)


def _stamp(status: os.stat_result) -> list[int]:
    """Return what changes whenever a file's content does, without reading it."""
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


class Template:
    """A template that is open: whatever becomes of its files, a machine may go on from it."""

    def __init__(
        self, memory: MemoryBase, tree: Mapping[str, Any], taken: int, place: Path, code: bytes
    ) -> None:
        self._memory = memory
        self._place = place
        self.tree = dict(tree)
        self.taken = taken
        self._code = code

    def resume(self, parts: Assembly) -> Introduction:
        """Have a machine that has not begun go on from here. Raises StateError, HostError."""
        from ringzero.vm import copies
        from ringzero.vm.seed import Seed

        image = MemoryImage(self._memory)
        state = states.MachineState(self.tree)
        introduction = copies.resume(parts, Seed(parts.config, state, image, taken=self.taken))
        better = parts.vm.expect(self._code)
        if better is not None:
            self._keep_code(better)
        return introduction

    def _keep_code(self, known: bytes) -> None:
        """Have the next one told of `known`; a hint, which need not be kept."""
        temporary = self._place / f".{CODE}-{os.urandom(4).hex()}"
        with contextlib.suppress(OSError):
            temporary.touch(0o600)
            temporary.write_bytes(known)
            temporary.replace(self._place / CODE)

    @property
    def size(self) -> int:
        """The guest's memory, in bytes."""
        return self._memory.size

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) of the memory's blocks that are not all zeroes, ascending."""
        from ringzero.vm.saved import blobs

        return blobs.file_blocks(self._memory.fd, self._memory.size)

    def holds(self, data: bytes) -> bool:
        """Whether some bytes, more than none, are in the memory or in the state."""
        import mmap

        if not data:
            return False
        with mmap.mmap(self._memory.fd, self._memory.size, prot=mmap.PROT_READ) as memory:
            return memory.find(data) >= 0 or data in json.dumps(self.tree).encode()

    def close(self) -> None:
        """Let go of the memory; machines that went on from it keep it."""
        self._memory.release()


@record
class Entry:
    """A template as people see it: `size` is what it takes on the disk, `used` in seconds of UTC.

    `description` is the stand-in's plain data; empty where the template cannot be used, which
    `fault` tells.
    """

    name: str
    size: int
    used: float
    description: dict[str, Any]
    fault: str = ""


class Templates:
    """The templates below `root`, by default in the cache. From many processes."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else CACHE_DIR.get() / "templates"

    # ---- using ------------------------------------------------------------

    def take(self, key: Key) -> Template:
        """Return the template of `key`, to be closed.

        Raises NotFoundError where there is none, StateError where what is there cannot be
        trusted, HostError.
        """
        with contextlib.ExitStack() as stack:
            try:
                # Whoever could change this one could put another in the template's place.
                root = open_private(self.root, directory=True)
                stack.callback(os.close, root)
                return open_template(self.root / key.name, key, root)
            except FileNotFoundError as fault:
                raise NotFoundError("there is no template of it yet") from fault
            except OSError as fault:
                raise host_error(fault, "read", self.root / key.name) from fault

    def failure(self, key: Key) -> str:
        """Return why one could not be made of late; "" where nothing is known."""
        note = self.root / f"{key.name}{_FAILED}"
        try:
            if time.time() - note.stat().st_mtime > RETRY:
                return ""
            return note.read_text(errors="replace")[:1000] or "no reason is known"
        except OSError:
            return ""

    def check_writable(self) -> None:
        """Raise HostError, StateError where no template can be kept: no right, no room."""
        self._make_root()
        try:
            if not os.access(self.root, os.W_OK | os.X_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            status = os.statvfs(self.root)
            if status.f_bavail * status.f_frsize < LEAST_SPACE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as fault:
            raise host_error(fault, "write", self.root) from fault

    # ---- making -----------------------------------------------------------

    @contextlib.contextmanager
    def making(self, key: Key) -> Iterator[Path | None]:
        """Yield an empty directory for the template of `key`; it appears when the block ends well.

        None where another process makes one, or it is there. Raises HostError, StateError.
        """
        self._make_root()
        with self._locked() as held:
            work = self.root / f"{_PARTIAL}{key.name}"
            if not held or self._has(key):
                yield None
                return
            self._sweep()
            try:
                work.mkdir(0o700)
                yield work
                self._discard(key.name)
                work.rename(self.root / key.name)
                (self.root / f"{key.name}{_FAILED}").unlink(missing_ok=True)
            except OSError as fault:
                raise host_error(fault, "write", work) from fault
            finally:
                remove_tree(work)

    def note_failure(self, key: Key, why: str) -> None:
        """Write down why none can be made; nobody tries again for RETRY seconds."""
        with contextlib.suppress(OSError):
            (self.root / f"{key.name}{_FAILED}").write_text(why)

    def _has(self, key: Key) -> bool:
        try:
            self.take(key).close()
        except RingzeroError:
            return False
        return True

    def _make_root(self) -> None:
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                self.root.mkdir(0o700)
            os.close(open_private(self.root, directory=True))
        except OSError as fault:
            raise host_error(fault, "create", self.root) from fault

    @contextlib.contextmanager
    def _locked(self) -> Iterator[bool]:
        """Hold the makers' lock for the block, unless another has it: whether it is held."""
        import fcntl

        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(self.root / _LOCK, flags, 0o600)
        except OSError as fault:
            raise host_error(fault, "open", self.root / _LOCK) from fault
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except OSError:
            held = False
        try:
            yield held
        finally:
            os.close(descriptor)

    # ---- looking and removing ---------------------------------------------

    def entries(self) -> list[Entry]:
        """Return all templates, the latest used first; those that cannot be used among them."""
        found = []
        for path in self._names():
            with contextlib.suppress(OSError):
                size = sum(f.stat().st_blocks for f in path.iterdir()) * _SECTOR
                used = path.stat().st_mtime
                try:
                    description, fault = self._describe(path.name), ""
                except RingzeroError as error:
                    description, fault = {}, error.message
                found.append(Entry(path.name, size, used, description, fault))
        return sorted(found, key=lambda entry: (-entry.used, entry.name))

    def _names(self) -> list[Path]:
        try:
            return [p for p in self.root.iterdir() if p.is_dir() and p.name[0] != "."]
        except OSError:
            return []

    def _describe(self, name: str) -> dict[str, Any]:
        with contextlib.ExitStack() as stack:
            try:
                place = open_private(self.root / name, directory=True)
                stack.callback(os.close, place)
                found = _read_state(name, place)
                _open_memory(name, place, found).release()
                return dict(json.loads(found["key"])[_DESCRIPTION])
            except (ValueError, LookupError, TypeError) as fault:
                raise _unfit(name, "its state is damaged") from fault
            except OSError as fault:
                raise host_error(fault, "read", self.root / name) from fault

    def remove(self, name: str) -> None:
        """Remove a template; machines that went on from it keep what they have."""
        self._discard(name)
        (self.root / f"{name}{_FAILED}").unlink(missing_ok=True)

    def prune(self, limit: int) -> list[Entry]:
        """Remove the templates that were used longest ago until the others take `limit` bytes.

        What killed processes left goes, too. Returns what was removed.
        """
        left, gone = limit, []
        for entry in self.entries():
            left -= entry.size
            if left < 0 or entry.fault:
                gone.append(entry)
                self.remove(entry.name)
        if self.root.is_dir():
            with self._locked() as held:
                if held:
                    self._sweep()
        return gone

    def _discard(self, name: str) -> None:
        """Take a template away at once, whole: whoever opens it finds all of it, or nothing."""
        rubbish = self.root / f"{_PARTIAL}{os.urandom(8).hex()}"
        with contextlib.suppress(OSError):
            (self.root / name).rename(rubbish)
            remove_tree(rubbish)

    def _sweep(self) -> None:
        """Remove what killed processes left; the lock is held."""
        for entry in self.root.glob(f"{_PARTIAL}*"):
            remove_tree(entry)


def open_template(path: Path, key: Key, within: int | None = None) -> Template:
    """Return the template of `key` in a directory, to be closed. Raises StateError, OSError.

    `within` is the open directory that it lies in.
    """
    with contextlib.ExitStack() as stack:
        place = open_private(path.name if within is not None else path, within, directory=True)
        stack.callback(os.close, place)
        found = _read_state(key.name, place)
        if found["key"] != key.text:
            raise _unfit(key.name, "it is of another description")
        memory = _open_memory(key.name, place, found)
        stack.callback(memory.release)
        workingset.prefetch(path / workingset.FILE, memory.fd, memory.size)
        # The latest use, for whoever looks for room.
        with contextlib.suppress(OSError):
            os.utime(place)
        # Let go above, once.
        code = _read_code(place)
        return Template(memory.hold(), found["machine"], found["taken"], path, code)


def write(work: Path, key: Key, state: states.MachineState, memory: HostMemory, taken: int) -> None:
    """Write a template of `key`, but for the hints, into the directory `work`. Raises HostError.

    It is of a machine that stands still, and has stood at `taken`, UTC in nanoseconds.
    """
    from ringzero.vm.saved import blobs

    def fill(fd: int) -> None:
        os.ftruncate(fd, memory.size)
        for offset, data in blobs.pieces(memory):
            blobs.write_all(fd, data, offset)

    write_parts(work, key, taken=taken, size=memory.size, tree=state.tree, fill=fill)


def write_parts(
    work: Path,
    key: Key,
    *,
    taken: int,
    size: int,
    tree: Mapping[str, Any],
    fill: Callable[[int], None],
) -> None:
    """Write the same from its parts; `fill` writes the memory to an empty file's descriptor.

    Raises HostError, and what `fill` raises.
    """
    from ringzero.vm.saved import blobs

    memory = work / MEMORY
    _write(memory, fill)
    found = {
        "key": key.text,
        "taken": taken,
        "size": size,
        "memory": _stamp(memory.stat()),
        "machine": tree,
    }
    content = json.dumps(found, separators=(",", ":")).encode()
    header = HEADER.pack(MAGIC, binascii.crc32(content))
    _write(work / STATE, lambda fd: blobs.write_all(fd, header + content, 0))


def note_code(work: Path, known: bytes) -> None:
    """Write down beside a template what a VM knows of pages with code. Raises HostError."""
    from ringzero.vm.saved import blobs

    _write(work / CODE, lambda fd: blobs.write_all(fd, known, 0))


def _read_code(place: int) -> bytes:
    """Return what `note_code` wrote into an open directory; nothing where it is not to be had."""
    try:
        with os.fdopen(open_private(CODE, place), "rb") as file:
            return file.read(_MAX_STATE)
    except (OSError, StateError):
        return b""


def _write(path: Path, fill: Callable[[int], None]) -> None:
    from ringzero.vm.saved import blobs

    blobs.write_file(path, fill)
    path.chmod(0o600)


def _read_state(name: str, place: int) -> dict[str, Any]:
    """Return what the state file in an open directory holds. Raises StateError, OSError."""
    with os.fdopen(open_private(STATE, place), "rb") as file:
        data = file.read(_MAX_STATE)
    content = memoryview(data)[HEADER.size :]
    if data[: HEADER.size] != HEADER.pack(MAGIC, binascii.crc32(content)):
        raise _unfit(name, "its state is damaged")
    try:
        found: dict[str, Any] = json.loads(bytes(content))
        kinds = {"key": str, "taken": int, "size": int, "memory": list, "machine": dict}
        if not all(type(found[field]) is kind for field, kind in kinds.items()):
            raise _unfit(name, "its state is damaged")
    except (ValueError, KeyError, TypeError, RecursionError) as fault:
        raise _unfit(name, "its state is damaged") from fault
    return found


def _open_memory(name: str, place: int, found: Mapping[str, Any]) -> MemoryBase:
    """Return the memory in an open directory when it is what was written. StateError, OSError."""
    memory = MemoryBase(open_private(MEMORY, place), found["size"], owned=False)
    status = os.fstat(memory.fd)
    if _stamp(status) != found["memory"] or status.st_size != found["size"]:
        memory.release()
        raise _unfit(name, "its memory is not what was written")
    return memory


def _unfit(name: str, why: str) -> StateError:
    return StateError(f"the template {name[:12]} is not used: {why}")
