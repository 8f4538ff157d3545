"""The one door: `open_disk` and `create_disk`.

What an image names is opened by the rules of `policy`, and what is made asks the same rules
first: an image that would not open is not made.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ringzero.disk.contract import Disk, Options, Surroundings
from ringzero.disk.filenames import (
    FileName,
    literal_path,
    moved_name,
    name_to_write,
    parse_name,
    plain_path,
)
from ringzero.disk.formatnames import format_name
from ringzero.disk.overlay import OverlayDisk
from ringzero.disk.policy import Rules, beside, is_near, judge, refuse_strange, warn
from ringzero.disk.probing import probe
from ringzero.disk.registry import FORMATS
from ringzero.disk.storage import FileStorage, Storage, Window
from ringzero.disk.trial import TrialStorage
from ringzero.errors import (
    DiskError,
    DiskFormatError,
    DiskUnsupportedError,
    InvalidValueError,
    NotFoundError,
)
from ringzero.host.placing import look_at
from ringzero.records import field, mutable_record

# Long chains are legal and slow; more than this is a mistake or an attack, and
# each layer takes a few frames of the interpreter's stack.
MAX_DEPTH = 100

# Stands for an image that is being made, in the list of the layers above.
_NOT_YET = (-1, -1)


@mutable_record
class _Around(Surroundings):
    path: Path | None
    read_only: bool
    options: Options
    rules: Rules
    with_backing: bool = True
    # Identity (device, inode) of this file and of those above, to find loops.
    above: tuple[tuple[int, int], ...] = ()
    # Whether the image is in an archive: what it names is not beside it.
    inside: bool = False
    overwrite: bool = False
    made: list[Path] = field(default_factory=list)

    def open_backing(self, name: str, format: str | None) -> Disk | None:
        if not self.with_backing:
            return None
        self._refuse_inside(name)
        found = self._find(parse_name(name, format))
        disk = self._open_layer(found)
        if found.format is None:
            # A guess: whoever wrote to a raw base may have made it look like something else.
            self.rules.tell(
                f"{self.path} does not say of which format {found.path} is: by its content it is "
                f"{disk.format}; `ringzero disk rebase -u -F {disk.format} -b {name} {self.path}` "
                "writes that down"
            )
        return disk

    def _find(self, name: FileName) -> FileName:
        """Return where a backing file is: as it is named, or where that is gone, beside the image.

        Nothing in a qcow2 image tells its backing file from another, so that the user is told.
        """
        assert self.path is not None
        moved = moved_name(name)
        if moved is None or os.path.lexists(beside(self.path, name.path)):
            return name
        here = beside(self.path, moved.path)
        # An overlay is often called what its base is called.
        if not here.is_file() or _identity(here) in self.above:
            return name
        self.rules.tell(f"{self.path} needs {name.path}, which does not exist: {here} is taken")
        return moved

    def open_parent(
        self,
        names: Sequence[str],
        format: str,
        is_it: Callable[[Disk], bool],
        *,
        given: str | None = None,
    ) -> Disk | None:
        if not self.with_backing:
            return None
        if given is None:
            self._refuse_inside("its parent")
        faults: list[DiskError | NotFoundError] = []
        # What the user says may also be meant from where the user is.
        for name in [given, str(Path(given).absolute())] if given else names:
            try:
                found = FileName(plain_path(name), format)
                disk = self._open_layer(found, trusted=given is not None)
            except (NotFoundError, DiskFormatError) as fault:
                faults.append(fault)
                continue
            if is_it(disk):
                return disk
            disk.close()
            faults.append(self._not_it(name))
        # A file that is there and is wrong tells more than one that is not there.
        faults.sort(key=lambda fault: isinstance(fault, NotFoundError))
        if faults and isinstance(faults[0], NotFoundError):
            faults[0].hint = (
                "put it beside the image, say where it is (`--open parent=FILE`, "
                "options={'parent': FILE}), or write another name into the image with "
                "`ringzero disk rebase -u -b`"
            )
        raise (
            faults[0]
            if faults
            else DiskFormatError(
                f"{self.path} does not say where its parent is",
                hint="say it with `--open parent=FILE`, or write it into the image with "
                "`ringzero disk rebase -u -b FILE`",
                path=self.path,
            )
        )

    def _not_it(self, name: str) -> DiskFormatError:
        return DiskFormatError(
            f"{self.path}: its parent {name} has been changed since, or is another image",
            hint="if it is the right one, link it again with `ringzero disk rebase -u`",
            path=self.path,
        )

    def _open_layer(self, name: FileName, *, trusted: bool = False) -> Disk:
        """Open a file below this image; `trusted` when the user, and not the image, named it."""
        assert self.path is not None
        if len(self.above) > MAX_DEPTH:
            raise DiskFormatError(
                f"{self.path}: more than {MAX_DEPTH} backing files below one another",
                hint="flatten the chain with `ringzero disk convert`",
            )
        place = judge(self.path, name.path, self.rules)
        if place.identity in self.above:
            raise DiskFormatError(
                f"{self.path}: the backing file {name.path} is one of the layers above it",
                hint="repair the chain with `ringzero disk rebase -u`",
                path=place.path,
            )
        storage = FileStorage(place.path, read_only=True, sync=False, lock=self.rules.lock)
        try:
            view = _part(storage, name.window)
            if not place.near and not trusted:
                refuse_strange(self.path, storage, view, name.path, name.format)
            return _open_storage(
                view, place.path, name.format, name.options,
                read_only=True, rules=self.rules, above=self.above,
            )  # fmt: skip
        except BaseException:
            storage.close()
            raise

    def look_at(self, name: str, format: str | None) -> Disk:
        try:
            return self._open_layer(parse_name(name, format))
        except NotFoundError as fault:
            raise NotFoundError(f"no file {name}", hint="check the path", path=name) from fault

    def open_inside(self, part: Storage) -> Disk:
        assert self.path is not None
        return _open_storage(
            part, self.path, None, {}, read_only=True, rules=self.rules,
            with_backing=self.with_backing, above=self.above[:-1], inside=True,
        )  # fmt: skip

    def _refuse_inside(self, name: str) -> None:
        if self.inside:
            raise DiskUnsupportedError(
                f"the image in {self.path} names {name}, and in an archive it has to be whole",
                hint="unpack the archive, and open the image beside it",
                path=self.path,
            )

    def open_storage(self, *names: str) -> Storage:
        return FileStorage(
            self._own_file(*names),
            read_only=self.read_only,
            sync=self.rules.sync,
            lock=self.rules.lock,
        )

    def is_own(self, name: str) -> bool:
        assert self.path is not None
        with contextlib.suppress(DiskError, NotFoundError):
            return (
                not self.inside
                and judge(self.path, literal_path(name), self.rules).identity in self.above[-1:]
            )
        return False

    def create_storage(self, name: str) -> Storage:
        path = self._new_file(name)
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

    def _own_file(self, *names: str) -> Path:
        """Return the path of a part of the image: the first of `names` that is there."""
        assert self.path is not None
        self._refuse_inside(names[0])
        first: NotFoundError | None = None
        for name in names:
            try:
                place = judge(self.path, literal_path(name), self.rules)
            except NotFoundError as fault:
                first = first or fault
                continue
            return self._near(name, place.path, place.near)
        assert first is not None
        raise first

    def _new_file(self, name: str) -> Path:
        assert self.path is not None
        path = beside(self.path, literal_path(name))
        if path.exists():
            place = judge(self.path, name, self.rules)
            return self._near(name, place.path, place.near)
        return self._near(name, path, is_near(self.path, os.path.realpath(path), self.rules))

    def _near(self, name: str, path: Path, near: bool) -> Path:
        if not near:
            raise DiskError(
                f"{self.path} names a part outside its directory: {name}",
                hint="allow the directory with RINGZERO_BACKING_DIRS if you trust the image",
                path=path,
            )
        return path


class _OnTrial(_Around):
    """What surrounds an image that is made in memory: its further files are there too."""

    def open_storage(self, *names: str) -> Storage:
        return TrialStorage(names[0])

    def create_storage(self, name: str) -> Storage:
        self._new_file(name)
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
    tell: Callable[[str], None] = warn,
) -> Disk:
    """Open the disk image `path`, with all its backing files.

    `format` (our name or QEMU's) is found by the content when it is not given,
    but raw is assumed only for reading. `backing=False` opens this layer alone. `throw_away`
    opens the image read-only under an overlay in memory, which takes all
    writes and is forgotten at the end. `copy_on_read` copies into the image
    what is read from its backing file. `backing_roots` are directories whose
    files the names in the image may lead to. `lock=False` looks at an image
    that somebody may be writing. `sync=False` makes flush cheap and a loss of
    power fatal. `tell` is given what the user should know of, a backing file
    that was found elsewhere than the image says, or whose format the image does not say; by
    default that is a Python warning.

    Raises NotFoundError, DiskFormatError, DiskUnsupportedError,
    DiskLockedError, DiskReadOnlyError, DiskError.
    """
    path = Path(path)
    rules = Rules.make(backing_roots, lock=lock, sync=sync, tell=tell)
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
    backing_roots: Sequence[Path | str] = (),
) -> None:
    """Make an empty image of `size` bytes, a multiple of 512.

    With `backing` it is an overlay: `backing` is written into the image as it
    is given (relative: to the new image's directory), its format as given or
    found, and `size` defaults to the backing file's. The backing file must be
    one that `open_disk` with the same `backing_roots` will open below the new
    image. `check_backing=False` does not look at the backing file;
    `backing_format` and `size` are then needed. A failed creation leaves no
    file behind.

    Raises what `open_disk` raises, and InvalidValueError.
    """
    path = Path(path)
    kind = FORMATS.get(format_name(format))
    made_options = Options(kind.create_options, options or {}, f"format {kind.format}")
    rules = Rules.make(backing_roots, sync=sync)
    place = look_at(path)
    exists = place.old is not None
    if not exists:
        # Through a link that leads nowhere yet.
        path = place.path
    if exists and not overwrite:
        raise DiskError(f"{path} exists", hint="remove it first, or choose another name", path=path)
    above = (_identity(path) if exists else _NOT_YET,)
    around = _Around(path, False, Options((), {}, ""), rules, above=above, overwrite=overwrite)
    below: tuple[str, str] | None = None
    if backing is not None:
        if not kind.can_have_backing:
            raise InvalidValueError(
                f"{kind.format} images have no backing file", hint="use qcow2 for an overlay"
            )
        name = name_to_write(str(backing))
        if check_backing:
            with around.look_at(name, backing_format) as base:
                backing_format = base.format
                size = base.size if size is None else size
        if backing_format is None:
            raise InvalidValueError("the backing file's format is not given")
        below = (name, format_name(backing_format))
    if size is None:
        raise InvalidValueError("the size of the disk is not given", hint="for example 10G")
    if size < 0 or size % 512:
        raise InvalidValueError(
            f"a disk of {size} bytes is not possible", hint="use a multiple of 512", size=size
        )
    storage = FileStorage(path, create=not exists, sync=sync)
    try:
        if exists:
            # What is refused is refused before the old image is lost.
            trial = TrialStorage(path.name)
            tried = _OnTrial(path, False, around.options, rules, above=above)
            kind.create(trial, size, made_options, tried, below)
            trial.close()
        if exists and not storage.is_device:
            storage.truncate(0)
        kind.create(storage, size, made_options, around, below)
        storage.flush()
        storage.close()
        _open_again(path, kind.format, rules, with_backing=check_backing)
    except BaseException:
        for leftover in [*around.made, *([] if exists else [path])]:
            leftover.unlink(missing_ok=True)
        raise
    finally:
        storage.close()
    if sync:
        _sync_directory(path.parent)


def open_as_backing(
    image: Path | str,
    name: str,
    format: str | None = None,
    *,
    backing_roots: Sequence[Path | str] = (),
) -> Disk:
    """Open the file that `image` has below it once `name` is written into it, by the same rules.

    Raises what `open_disk` raises.
    """
    image = Path(image)
    around = _Around(
        image, True, Options((), {}, ""), Rules.make(backing_roots), above=(_identity(image),)
    )
    return around.look_at(name_to_write(name), format)


def _open_again(path: Path, format: str, rules: Rules, *, with_backing: bool) -> None:
    """Open an image that has just been made, as its next user will; raises what that raises."""
    # Somebody else may have found it already.
    rules = Rules(rules.roots, lock=False, sync=rules.sync, tell=rules.tell)
    storage = FileStorage(path, read_only=True, lock=False)
    try:
        disk = _open_storage(
            storage, path, format, {}, read_only=True, rules=rules, with_backing=with_backing
        )
    except BaseException:
        storage.close()
        raise
    disk.close()


def _open_storage(
    storage: Storage,
    path: Path,
    format: str | None,
    options: Mapping[str, Any],
    *,
    read_only: bool,
    rules: Rules,
    with_backing: bool = True,
    above: tuple[tuple[int, int], ...] = (),
    inside: bool = False,
) -> Disk:
    """Open what is in `storage`, which stays the caller's when this raises."""
    kind = FORMATS.get(format_name(format) if format else probe(storage))
    around = _Around(
        path,
        read_only,
        Options(kind.open_options, options, f"format {kind.format}"),
        rules,
        with_backing,
        (*above, _identity(path)),
        inside,
    )
    return kind.open(storage, around)


def _part(storage: FileStorage, window: tuple[int, int | None] | None) -> Storage:
    """Return the part of a file that a name means; DiskFormatError when it has no such part."""
    if window is None:
        return storage
    start, size = window
    end = storage.size if size is None else start + size
    if not start <= end <= storage.size:
        raise DiskFormatError(
            f"bytes {start} to {end} are not in {storage.name}, which has {storage.size}",
            path=storage.name,
        )
    return Window(storage, start, end - start)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _sync_directory(directory: Path) -> None:
    """Make a new name durable; file systems that cannot are left alone."""
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
