"""Folders of the host as streams of tar, and such streams as folders of the host.

    plan = Plan([Path("src")])
    plan.write(send)                        what the guest's tar unpacks

    with Unpacking(Path("out")) as unpacking:
        unpacking.take(intake)              from the guest, who may have made it up
        unpacking.place()

What is unpacked arrives in a folder of its own beside the target, and is renamed from there
when it is whole. No member is written outside of it: each component of a name is opened
without following symbolic links, ".." is refused, and so are the same in hard links.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self, cast

from ringzero.api.copying import Rule, token
from ringzero.errors import GuestError, HostError, InvalidValueError, MissingFileError
from ringzero.host.files import host_error, remove_tree
from ringzero.units import MIB

_PIECE = 256 * 1024
# The longest header that tarfile may read at once: names and attributes fill some pages.
_MAX_HEADER = MIB
# What an intake holds before who fills it should wait.
_HIGH = 4 * MIB
# Access bits only: nothing from a guest becomes set-user-id on the host.
_ACCESS = 0o777

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Readable(Protocol):
    """Where bytes come from."""

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; b"" at their end."""
        ...


# ---- to the guest -----------------------------------------------------------


class Plan:
    """What is copied: files and folders of the host. Raises MissingFileError, InvalidValueError.

    `follow` copies what symbolic links lead to; `owners` keeps users and groups by number.
    """

    def __init__(
        self, sources: Sequence[str | Path], *, follow: bool = False, owners: bool = False
    ) -> None:
        self._follow, self._owners = follow, owners
        # Each with its name in the archive.
        several = len(sources) > 1
        self._sources = [(Path(source), _name(source, several=several)) for source in sources]
        if not sources:
            raise InvalidValueError("nothing to copy")
        for source, _ in self._sources:
            if not os.path.lexists(source):
                raise MissingFileError(f"{source} does not exist", hint="check the path")
        names = [name for _, name in self._sources]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InvalidValueError(
                f"two of the sources are called {twice!r}", hint="copy them one after the other"
            )
        # Sockets and the like, which no archive can hold.
        self.skipped: list[str] = []

    @property
    def rule(self) -> Rule:
        """Where it goes, as cp(1) would put it."""
        if len(self._sources) > 1:
            return Rule.INTO
        source = str(self._sources[0][0])
        if not Path(source).is_dir() or (Path(source).is_symlink() and not self._follow):
            return Rule.FILE
        return Rule.CONTENTS if self._contents else Rule.FOLDER

    @property
    def _contents(self) -> bool:
        return self._sources[0][1] == "."

    def size(self) -> int:
        """Return about how many bytes of content there are."""
        total = 0
        for source, _ in self._sources:
            with contextlib.suppress(OSError):
                total += source.stat(follow_symlinks=self._follow).st_size
            for place, _, files in os.walk(source, followlinks=self._follow):
                for name in files:
                    with contextlib.suppress(OSError):
                        total += Path(place, name).stat(follow_symlinks=self._follow).st_size
        return total

    def write(self, send: Callable[[bytes], object]) -> None:
        """Send the archive piece by piece. Raises HostError for what cannot be read."""
        with tarfile.open(
            fileobj=cast("IO[bytes]", _Outflow(send)),
            mode="w|",
            bufsize=_PIECE,
            format=tarfile.GNU_FORMAT,
            encoding="utf-8",
            errors="surrogateescape",
            dereference=self._follow,
        ) as archive:
            for source, name in self._sources:
                self._add(archive, source, "contents" if name == "." else name, set())

    def _add(
        self, archive: tarfile.TarFile, path: Path, name: str, above: set[tuple[int, int]]
    ) -> None:
        # Known by its inode, a file with several names is in the archive once.
        try:
            info = archive.gettarinfo(path, name)
        except OSError as fault:
            raise host_error(fault, "read", path) from fault
        if info is None:
            self.skipped.append(str(path))
            return
        info.uname = info.gname = ""
        if not self._owners:
            info.uid = info.gid = 0
        _forget(archive)
        if info.isreg():
            _add_file(archive, info, path)
            return
        archive.addfile(info)
        if not info.isdir():
            return
        try:
            identity = path.stat()
            children = _names(path)
        except OSError as fault:
            raise host_error(fault, "read", path) from fault
        key = (identity.st_dev, identity.st_ino)
        if key in above:
            raise InvalidValueError(f"{path} leads back to a folder that it is in")
        for child in children:
            self._add(archive, path / child, f"{name}/{child}", above | {key})


def _name(source: str | Path, *, several: bool) -> str:
    """Return the last name of a path; "." where what a folder holds is meant."""
    text = os.fspath(source)
    if not several and (text in (".", "/") or text.endswith("/.")):
        return "."
    name = text.rstrip("/").rpartition("/")[2]
    return (Path(text).resolve().name or ".") if name in ("", ".", "..") else name


def _add_file(archive: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> None:
    try:
        with path.open("rb") as file:
            archive.addfile(info, file)
    except OSError as fault:
        if fault.errno is None:
            raise HostError(f"{path} became shorter while it was copied") from fault
        raise host_error(fault, "read", path) from fault


class _Outflow:
    """What tarfile writes into."""

    def __init__(self, send: Callable[[bytes], object]) -> None:
        self._send = send

    def write(self, data: bytes) -> int:
        self._send(bytes(data))
        return len(data)


# ---- from the guest ---------------------------------------------------------


class Intake:
    """Bytes on their way from one thread to another.

    `close` ends them, with the fault that ended them, which `read` raises.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._data = bytearray()
        self._closed = self._left = False
        self._fault: BaseException | None = None
        # Called, by who reads, when there is room again after `feed` returned False.
        self.on_room: Callable[[], object] = lambda: None
        self._full = False

    def feed(self, data: bytes) -> bool:
        """Add bytes; False where there are many unread. Nothing is kept once nobody reads."""
        with self._changed:
            if not self._left:
                self._data += data
                self._full = len(self._data) > _HIGH
                self._changed.notify_all()
            return not self._full

    def wait_room(self) -> None:
        """Return when there is room, or nobody reads."""
        with self._changed:
            self._changed.wait_for(lambda: not self._full or self._left)

    def close(self, fault: BaseException | None = None) -> None:
        """No more will come."""
        with self._changed:
            self._closed, self._fault = True, fault
            self._changed.notify_all()

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes once there are any; b"" at the end. Raises the fault."""
        with self._changed:
            self._changed.wait_for(lambda: self._data or self._closed)
            if not self._data and self._fault is not None:
                raise self._fault
            data = bytes(self._data[:size])
            del self._data[:size]
            room = self._full and len(self._data) <= _HIGH // 2
            if room:
                self._full = False
                self._changed.notify_all()
        if room:
            self.on_room()
        return data

    def drain(self) -> None:
        """Read to the end. Raises the fault."""
        while self.read(_PIECE):
            pass

    def leave(self) -> None:
        """Nobody reads any more."""
        with self._changed:
            self._left, self._full = True, False
            self._data.clear()
            self._changed.notify_all()


class Unpacking:
    """An archive that becomes `target`, or goes into it. Raises HostError, InvalidValueError.

    `contents`: the archive's root is what goes among what the target holds; else it has one
    member. `owners` gives files to the archive's users and groups, where the host lets us.
    """

    def __init__(self, target: Path, *, contents: bool = False, owners: bool = False) -> None:
        self._target, self._contents = target, contents
        self._owners = owners and os.geteuid() == 0
        self._into = target.is_dir()
        if not self._into and target.exists() and contents:
            raise InvalidValueError(f"{target} is a file, and no folder")
        place = target if self._into else target.absolute().parent
        if not place.is_dir():
            raise MissingFileError(f"there is no folder {place}", hint="make it first: mkdir -p")
        self._work = place / token()
        self._root = -1
        # Mode and time of folders, which are given when their content is in its place.
        self._folders: dict[tuple[str, ...], tarfile.TarInfo] = {}
        # What no user can make, or should: device nodes and the like.
        self.skipped: list[str] = []

    def __enter__(self) -> Self:
        try:
            self._work.mkdir(0o700)
            self._root = os.open(self._work, _DIRECTORY)
        except OSError as fault:
            remove_tree(self._work)
            raise host_error(fault, "write into", self._work.parent) from fault
        except BaseException:
            # A Ctrl-C, in the middle of it.
            remove_tree(self._work)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._root)
        remove_tree(self._work)

    def take(self, source: Readable) -> None:
        """Unpack the archive. Raises GuestError for one that is damaged, or leads elsewhere."""
        try:
            archive = tarfile.TarFile(
                fileobj=cast("IO[bytes]", _Inflow(source)),
                encoding="utf-8",
                errors="surrogateescape",
            )
            for info in _members(archive):
                try:
                    self._unpack(archive, info)
                except OSError as fault:
                    raise host_error(fault, "write", self._target / info.name) from fault
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as fault:
            raise GuestError(f"the guest's archive is damaged: {fault}") from fault

    def place(self) -> None:
        """Put what arrived where it belongs. Raises HostError, GuestError."""
        try:
            self._place()
        except OSError as fault:
            raise host_error(fault, "write", self._target) from fault

    def _unpack(self, archive: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        parts = _parts(info.name)
        if not parts:
            self._folders[()] = info
            return
        with self._beneath(self._root, parts[:-1], make=True) as place:
            name = parts[-1]
            if info.isdir():
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=place)
                self._folders[parts] = info
                return
            # A later member of the same name counts, as tar has it.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=place)
            if info.isreg():
                self._write_file(archive, info, name, place)
            elif info.issym():
                os.symlink(info.linkname, name, dir_fd=place)
            elif info.islnk():
                *above, linked = _parts(info.linkname) or ("",)
                with self._beneath(self._root, above) as origin:
                    os.link(
                        linked, name, src_dir_fd=origin, dst_dir_fd=place, follow_symlinks=False
                    )
            else:
                self.skipped.append(info.name)

    def _write_file(
        self, archive: tarfile.TarFile, info: tarfile.TarInfo, name: str, place: int
    ) -> None:
        content = archive.extractfile(info)
        with os.fdopen(os.open(name, _NEW, 0o600, dir_fd=place), "wb", buffering=0) as file:
            # A size that no file can have is refused before anything is written.
            file.truncate(info.size)
            position = 0
            while content is not None and (piece := content.read(_PIECE)):
                position += len(piece)
                if piece.count(0) == len(piece):
                    file.seek(position)
                    continue
                rest = memoryview(piece)
                while rest:
                    rest = rest[file.write(rest) :]
            if position != info.size:
                raise GuestError(f"the guest's archive ends within {info.name}")
            self._describe(info, file.fileno())

    def _describe(self, info: tarfile.TarInfo, descriptor: int) -> None:
        """Give a file or folder its owner, mode and time."""
        if self._owners:
            os.fchown(descriptor, info.uid, info.gid)
        os.fchmod(descriptor, info.mode & _ACCESS)
        with contextlib.suppress(OverflowError, OSError):
            os.utime(descriptor, (info.mtime, info.mtime))

    @contextlib.contextmanager
    def _beneath(self, root: int, parts: Sequence[str], *, make: bool = False) -> Iterator[int]:
        """Open the folder `parts` beneath `root`, through no symbolic link, for the block."""
        found = os.dup(root)
        try:
            for part in parts:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o700, dir_fd=found)
                try:
                    inner = os.open(part, _DIRECTORY, dir_fd=found)
                except NotADirectoryError:
                    raise GuestError(
                        f"the guest's archive writes through {'/'.join(parts)!r}, "
                        "which is no folder in it"
                    ) from None
                os.close(found)
                found = inner
            yield found
        finally:
            os.close(found)

    def _place(self) -> None:
        if self._contents:
            if self._into:
                with self._opened(self._target) as target:
                    self._merge(self._root, target, ())
                return
            self._rename_root()
            return
        names = _names(self._root)
        if len(names) != 1:
            # An archive of nothing but what is skipped has none.
            if not names and self.skipped:
                return
            raise GuestError("the guest's archive does not hold what was asked for")
        (name,) = names
        parent = self._target if self._into else self._target.absolute().parent
        with self._opened(parent) as place:
            self._put(self._root, name, place, name if self._into else self._target.name, (name,))

    def _rename_root(self) -> None:
        with self._opened(self._target.absolute().parent) as place:
            name = self._target.name
            os.mkdir(name, 0o700, dir_fd=place)
            with self._beneath(place, (name,)) as target:
                self._merge(self._root, target, ())
                if () in self._folders:
                    self._describe(self._folders[()], target)

    def _merge(self, source: int, target: int, at: tuple[str, ...]) -> None:
        for name in _names(source):
            self._put(source, name, target, name, (*at, name))

    def _put(self, source: int, name: str, target: int, new: str, at: tuple[str, ...]) -> None:
        """Rename `name`, which is `at` in the archive; folders that are there are added to."""
        folder = _is_folder(source, name)
        there = _is_folder(target, new)
        if folder and there:
            with self._beneath(source, (name,)) as inner, self._beneath(target, (new,)) as outer:
                self._merge(inner, outer, at)
            return
        if there is not None and folder != there:
            kinds = ("a folder", "no file") if there else ("a file", "no folder")
            raise HostError(f"{self._target}: {new} is {kinds[0]}, and {kinds[1]}")
        os.rename(name, new, src_dir_fd=source, dst_dir_fd=target)
        if folder:
            with self._beneath(target, (new,)) as placed:
                for path in sorted(self._folders, reverse=True):
                    if path[: len(at)] == at:
                        with self._beneath(placed, path[len(at) :]) as inner:
                            self._describe(self._folders[path], inner)

    @contextlib.contextmanager
    def _opened(self, path: Path) -> Iterator[int]:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _names(place: int | Path) -> list[str]:
    with os.scandir(place) as entries:
        return sorted(entry.name for entry in entries)


def _is_folder(place: int, name: str) -> bool | None:
    """Whether it is a folder; None where there is nothing called so."""
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=place, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return None


def _parts(name: str) -> tuple[str, ...]:
    """Return the components of a member's name. Raises GuestError for one that leads out."""
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if posixpath.isabs(name) or ".." in parts or "\0" in name:
        raise GuestError(f"the guest's archive names {name[:256]!r}, which leads out of it")
    return parts


def _forget(archive: tarfile.TarFile) -> None:
    """Have tarfile not keep every member until the end."""
    archive.members = []  # type: ignore[attr-defined]


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (info := archive.next()) is not None:
        yield info
        _forget(archive)


class _Inflow:
    """What tarfile reads from: forwards only, and no header of more than `_MAX_HEADER`."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = 0) -> int:
        if whence or position < self._position:
            raise tarfile.ReadError("it is read only once")
        while self._position < position:
            if not self._read(min(position - self._position, _PIECE)):
                break
        return self._position

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError("a header of it is too large")
        data = bytearray()
        while len(data) < size and (piece := self._read(size - len(data))):
            data += piece
        return bytes(data)

    def _read(self, size: int) -> bytes:
        data = self._source.read(size)
        self._position += len(data)
        return data


def plain_stream(file: Any) -> Readable:
    """Return what the archive on `file` holds, uncompressed where gzip, bzip2 or xz pressed it."""
    head = file.peek(6)[:6]
    if head.startswith(b"\x1f\x8b"):
        import gzip

        return gzip.GzipFile(fileobj=file)
    if head.startswith(b"BZh"):
        import bz2

        return bz2.BZ2File(file)
    if head == b"\xfd7zXZ\0":
        import lzma

        return lzma.LZMAFile(file)
    return cast("Readable", file)
