"""The one door: `open_disk` and `create_disk`, format probing, and the policy on names in images.

A disk image names other files (its backing file, its extents), and whoever
made the image chose the names. So a name in an image
- is a plain path: a protocol (`nbd:`, `https:`) is refused;
- never leads to a device, a FIFO or the kernel's file systems, unless the
  user named a directory of devices in `backing_roots`;
- may lead anywhere below the image's own directory, `backing_roots`, or
  RINGZERO_BACKING_DIRS, with symbolic links followed first;
- elsewhere only to a backing file that belongs to the user or to root and
  that is a disk image by its content (raw, which is any file, is not).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ringzero import settings
from ringzero.disk.contract import Disk, Options, Sample, Surroundings
from ringzero.disk.overlay import OverlayDisk
from ringzero.disk.registry import FORMATS
from ringzero.disk.storage import FileStorage, Storage
from ringzero.disk.trial import TrialStorage
from ringzero.errors import (
    DiskError,
    DiskFormatError,
    DiskUnsupportedError,
    InvalidValueError,
    NotFoundError,
)
from ringzero.host.placing import look_at
from ringzero.records import field, mutable_record, record, replace

HEAD = 4096
TAIL = 512

# Long chains are legal and slow; more than this is a mistake or an attack, and
# each layer takes a few frames of the interpreter's stack.
MAX_DEPTH = 100

_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_KERNEL_TREES = ("/dev", "/proc", "/sys")


@record
class _Rules:
    """What holds for a whole chain while it is opened."""

    # Resolved directories that names may lead to.
    roots: tuple[str, ...]
    lock: bool
    sync: bool


@mutable_record
class _Around(Surroundings):
    path: Path | None
    read_only: bool
    options: Options
    rules: _Rules
    with_backing: bool = True
    # Identity (device, inode) of the files above, to find loops.
    above: tuple[tuple[int, int], ...] = ()
    overwrite: bool = False
    made: list[Path] = field(default_factory=list)

    @property
    def depth(self) -> int:
        return len(self.above)

    def open_backing(self, name: str, format: str | None) -> Disk | None:
        if not self.with_backing:
            return None
        name, format = _plain_name(name, format)
        assert self.path is not None
        if self.depth > MAX_DEPTH:
            raise DiskFormatError(
                f"{self.path}: more than {MAX_DEPTH} backing files below one another",
                hint="flatten the chain with `ringzero disk convert`",
            )
        path, status, near = self._judge(name)
        if (status.st_dev, status.st_ino) in self.above:
            raise DiskFormatError(
                f"{self.path}: the backing file {name} is one of the layers above it",
                hint="repair the chain with `ringzero disk rebase -u`",
                path=path,
            )
        storage = FileStorage(path, read_only=True, sync=False, lock=self.rules.lock)
        try:
            if not near:
                self._refuse_foreign(storage, os.fstat(storage.fd), name, format)
            return _open_storage(
                storage, path, format, {}, read_only=True, rules=self.rules, above=self.above
            )
        except BaseException:
            storage.close()
            raise

    def look_at(self, name: str, format: str | None) -> Disk:
        found = replace(self, with_backing=True).open_backing(name, format)
        assert found is not None
        return found

    def open_storage(self, name: str) -> Storage:
        return FileStorage(
            self._own_file(name),
            read_only=self.read_only,
            sync=self.rules.sync,
            lock=self.rules.lock,
        )

    def create_storage(self, name: str) -> Storage:
        path = self._own_file(name, new=True)
        exists = self.overwrite and path.exists()
        storage = FileStorage(path, create=not exists, sync=self.rules.sync, lock=self.rules.lock)
        if exists:
            storage.truncate(0)
        else:
            self.made.append(path)
        return storage

    def remove_storage(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._own_file(name).unlink()

    def _own_file(self, name: str, *, new: bool = False) -> Path:
        assert self.path is not None
        name, _ = _plain_name(name, "raw")
        path = _beside(self.path, name)
        if new and not path.exists():
            near = self._is_near(os.path.realpath(path))
        else:
            path, _, near = self._judge(name)
        if not near:
            raise DiskError(
                f"{self.path} names a part outside its directory: {name}",
                hint="allow the directory with RINGZERO_BACKING_DIRS if you trust the image",
                path=path,
            )
        return path

    def _judge(self, name: str) -> tuple[Path, os.stat_result, bool]:
        """Return the path and state of a file named in the image, and whether it is near.

        Refuses what is no regular file by its mode, before it is opened.
        """
        assert self.path is not None
        path = _beside(self.path, name)
        real = os.path.realpath(path)
        try:
            status = os.stat(real)  # noqa: PTH116 - a chain opens faster without a Path
        except FileNotFoundError as fault:
            raise NotFoundError(
                f"{self.path} needs {name}, which does not exist",
                hint="move the file back, or name another with `ringzero disk rebase -u -b`",
                path=real,
            ) from fault
        except OSError as fault:
            raise DiskError(f"{self.path} needs {name}: {fault.strerror}", path=real) from fault
        special = not stat.S_ISREG(status.st_mode) or _is_below(real, _KERNEL_TREES)
        # /dev/shm holds ordinary files.
        special = special and not (stat.S_ISREG(status.st_mode) and _is_below(real, ("/dev/shm",)))
        trusted = [root for root in self.rules.roots if _is_below(root, _KERNEL_TREES)]
        if special and not _is_below(real, trusted):
            raise DiskError(
                f"{self.path} names a device or special file: {name}",
                hint="devices are refused unless backing_roots names their directory",
                path=real,
            )
        return path, status, self._is_near(real)

    def _is_near(self, real: str) -> bool:
        assert self.path is not None
        # An image given by a link lives where the link leads, and where it is.
        given = os.path.realpath(self.path.parent)
        led = os.path.dirname(os.path.realpath(self.path))  # noqa: PTH120 - as above
        return _is_below(real, (given, led, *self.rules.roots))

    def _refuse_foreign(
        self,
        storage: FileStorage,
        status: os.stat_result,
        name: str,
        format: str | None,
    ) -> None:
        hint = (
            "if you trust the image, allow the directory with RINGZERO_BACKING_DIRS "
            "or backing_roots"
        )
        if status.st_uid not in (0, os.geteuid()):
            raise DiskError(
                f"{self.path} names a backing file that belongs to somebody else: {name}",
                hint=hint,
                path=storage.path,
            )
        if format == "raw" or probe(storage) == "raw":
            raise DiskError(
                f"{self.path} names a file outside its directory, and it is no disk image "
                f"by its content: {name}",
                hint=hint,
                path=storage.path,
            )


class _OnTrial(_Around):
    """What surrounds an image that is made in memory: its further files are there too."""

    def open_storage(self, name: str) -> Storage:
        return TrialStorage(name)

    def create_storage(self, name: str) -> Storage:
        self._own_file(name, new=True)
        return TrialStorage(name)


def open_disk(
    path: Path | str,
    format: str | None = None,
    *,
    read_only: bool = False,
    backing: bool = True,
    throw_away: bool = False,
    copy_on_read: bool = False,
    options: Mapping[str, Any] | None = None,
    backing_roots: Sequence[Path | str] = (),
    lock: bool = True,
    sync: bool = True,
) -> Disk:
    """Open the disk image `path`, with all its backing files.

    `format` is found by the content when it is not given, but raw is assumed
    only for reading. `backing=False` opens this layer alone. `throw_away`
    opens the image read-only under an overlay in memory, which takes all
    writes and is forgotten at the end. `copy_on_read` copies into the image
    what is read from its backing file. `backing_roots` are directories whose
    files the names in the image may lead to. `lock=False` looks at an image
    that somebody may be writing. `sync=False` makes flush cheap and a loss of
    power fatal.

    Raises NotFoundError, DiskFormatError, DiskUnsupportedError,
    DiskLockedError, DiskReadOnlyError, DiskError.
    """
    path = Path(path)
    roots = (*map(Path, backing_roots), *settings.BACKING_DIRS.get())
    rules = _Rules(tuple(os.path.realpath(root) for root in roots), lock, sync)
    read_only = read_only or throw_away
    storage = FileStorage(path, read_only=read_only, sync=sync, lock=lock)
    try:
        if format is None:
            format = probe(storage)
            if format == "raw" and not read_only:
                raise DiskFormatError(
                    f"{path} has no known format",
                    hint="say format=raw (`--format raw`) if it is a raw image",
                    path=path,
                )
        disk = _open_storage(
            storage,
            path,
            format,
            options or {},
            read_only=read_only,
            rules=rules,
            with_backing=backing,
        )
    except BaseException:
        storage.close()
        raise
    if copy_on_read and not read_only:
        disk.copy_on_read = True
    return OverlayDisk(disk) if throw_away else disk


def create_disk(
    path: Path | str,
    format: str,
    size: int | None = None,
    *,
    backing: Path | str | None = None,
    backing_format: str | None = None,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    check_backing: bool = True,
    sync: bool = True,
) -> None:
    """Make an empty image of `size` bytes, a multiple of 512.

    With `backing` it is an overlay: `backing` is written into the image as it
    is given (relative: to the new image's directory), its format as given or
    found, and `size` defaults to the backing file's. `check_backing=False`
    does not look at the backing file; `backing_format` and `size` are then
    needed. A failed creation leaves no file behind.
    """
    path = Path(path)
    kind = FORMATS.get(format)
    made_options = Options(kind.create_options, options or {}, f"format {format}")
    below: tuple[str, str] | None = None
    if backing is not None:
        if not kind.can_have_backing:
            raise InvalidValueError(
                f"{format} images have no backing file", hint="use qcow2 for an overlay"
            )
        name = str(backing)
        if check_backing:
            roots = [_beside(path, name).parent]
            with open_disk(
                _beside(path, name), backing_format, read_only=True, backing_roots=roots
            ) as base:
                backing_format = base.format
                size = base.size if size is None else size
        if backing_format is None:
            raise InvalidValueError("the backing file's format is not given")
        below = (name, backing_format)
    if size is None:
        raise InvalidValueError("the size of the disk is not given", hint="for example 10G")
    if size < 0 or size % 512:
        raise InvalidValueError(
            f"a disk of {size} bytes is not possible", hint="use a multiple of 512", size=size
        )
    place = look_at(path)
    exists = place.old is not None
    if not exists:
        # Through a link that leads nowhere yet.
        path = place.path
    if exists and not overwrite:
        raise DiskError(f"{path} exists", hint="remove it first, or choose another name", path=path)
    storage = FileStorage(path, create=not exists, sync=sync)
    rules = _Rules((), True, sync)
    around = _Around(path, False, Options((), {}, ""), rules, overwrite=overwrite)
    try:
        if exists:
            # What is refused is refused before the old image is lost.
            trial = TrialStorage(path.name)
            kind.create(
                trial, size, made_options, _OnTrial(path, False, around.options, rules), below
            )
            trial.close()
        if exists and not storage.is_device:
            storage.truncate(0)
        kind.create(storage, size, made_options, around, below)
        storage.flush()
    except BaseException:
        for leftover in [*around.made, *([] if exists else [path])]:
            leftover.unlink(missing_ok=True)
        raise
    finally:
        storage.close()
    if sync:
        _sync_directory(path.parent)


def probe(storage: Storage) -> str:
    """Return the name of the format that the bytes of `storage` are in; `raw` when none."""
    tail_at = max(0, storage.size - TAIL)
    sample = Sample(
        storage.read(0, min(HEAD, storage.size)),
        storage.read(tail_at, storage.size - tail_at),
        storage.size,
        storage.name,
    )
    score, name = max((kind.probe(sample), name) for name, kind in FORMATS)
    return name if score else "raw"


def _open_storage(
    storage: Storage,
    path: Path,
    format: str | None,
    options: Mapping[str, Any],
    *,
    read_only: bool,
    rules: _Rules,
    with_backing: bool = True,
    above: tuple[tuple[int, int], ...] = (),
) -> Disk:
    """Open what is in `storage`, which stays the caller's when this raises."""
    kind = FORMATS.get(format or probe(storage))
    status = path.stat()
    around = _Around(
        path,
        read_only,
        Options(kind.open_options, options, f"format {kind.format}"),
        rules,
        with_backing,
        (*above, (status.st_dev, status.st_ino)),
    )
    return kind.open(storage, around)


def _plain_name(name: str, format: str | None) -> tuple[str, str | None]:
    """Return the path (and format) that a name in an image stands for."""
    if "\0" in name or not name:
        raise DiskFormatError("an image names a file that cannot exist", name=repr(name))
    if name.startswith("json:"):
        return _json_name(name, format)
    if name.startswith("file:"):
        return name.removeprefix("file:"), format
    protocol = _PROTOCOL.match(name)
    if protocol and "/" not in protocol[0]:
        raise DiskUnsupportedError(
            f"an image names its backing file by the protocol {protocol[0]!r}: {name[:200]}",
            hint="only files are supported; copy it to this host and rebase",
        )
    return name, format


def _json_name(name: str, format: str | None) -> tuple[str, str | None]:
    """Read QEMU's json: pseudo-protocol as far as it names a plain file."""
    try:
        tree = json.loads(name.removeprefix("json:"))
        driver = tree.get("driver", format)
        file = tree.get("file", tree)
        filename = file.get("filename", tree.get("file.filename"))
        protocol = file.get("driver", "file") if file is not tree else "file"
    except (ValueError, AttributeError, RecursionError) as fault:
        raise DiskFormatError(f"not a file name: {name[:200]}") from fault
    if not isinstance(filename, str) or protocol != "file" or not isinstance(driver, str | None):
        raise DiskUnsupportedError(f"an image names its backing file as {name[:200]}")
    return filename, None if driver == "file" else driver


def _beside(image: Path, name: str) -> Path:
    """Return the path of a name that is written in `image`."""
    # Relative to where the image really is, as in QEMU: the link's directory.
    return image.absolute().parent / name


def _is_below(path: str, trees: Sequence[str]) -> bool:
    """Whether a resolved path is one of `trees` or in one of them."""
    return any(path == tree or path.startswith(tree.rstrip("/") + "/") for tree in trees)


def _sync_directory(directory: Path) -> None:
    """Make a new name durable; file systems that cannot are left alone."""
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
