"""Converting an image file into another: made beside its place, put there when it is whole.

The target is looked at first: links are followed, and what is no file is
refused. The image is made in a directory `.NAME.convert` next to its place. Its
files are moved out, the main one last, when everything is in them and durable;
so a name that exists is a finished image. They take over owner and rights of
what they replace. When the work is interrupted, the directory stays, with a
note of how far it got, and the same command goes on.

A file that nothing else can stand in for (it has other names, is mounted, or
belongs to somebody else) is written in place; see `host.placing`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

from ringzero.disk.contract import Disk
from ringzero.disk.copying import THREADS, Copy
from ringzero.disk.opening import create_disk, open_disk
from ringzero.disk.registry import FORMATS
from ringzero.disk.storage import FileStorage
from ringzero.errors import DiskError, InvalidValueError
from ringzero.host.placing import Place, look_at, take_over
from ringzero.records import field, mutable_record

_NOTE = "progress.json"
# A flush costs the pause of a disk; a crash may cost this many seconds of work.
_CHECKPOINT = 20.0
# Of a file's name, in bytes, with the file systems that people use (limits.h).
_NAME_MAX = 255


@mutable_record
class Conversion:
    """What to convert, and how. `resumed` is where an interrupted one went on, in bytes."""

    target: Path
    format: str
    options: Mapping[str, Any] = field(default_factory=dict)
    # How the source was opened: part of what it is.
    opening: Mapping[str, Any] = field(default_factory=dict)
    backing: str | None = None
    backing_format: str | None = None
    compress: bool = False
    sparse: int = 4096
    threads: int = THREADS
    overwrite: bool = False
    sync: bool = True
    on_progress: Callable[[int], None] = lambda done: None
    resumed: int = 0
    # Whether the same conversion goes on where this one is interrupted, and whether the target
    # holds what has come so far.
    resumable: bool = True
    in_place: bool = False

    def run(self, source: Disk) -> None:
        """Convert `source`; raises DiskError and leaves no half-made target behind.

        KeyboardInterrupt and SystemExit leave what can be continued. A target that is written
        in place is not whole after either.
        """
        place = self._look(source)
        if place.in_place is not None:
            self._convert_in_place(source, place)
            return
        # Nobody else may write to what is about to be replaced.
        held = FileStorage(place.path) if place.old is not None else None
        try:
            work = _work_directory(place.path)
            identity = self._identity(source)
            start = self._resume(work, identity)
            path = work / place.path.name
            if start == 0 and not self._begin(source, work, path, place):
                if held is not None:
                    held.close()
                    held = None
                self._convert_in_place(source, place)
                return
            self.resumed = start
            self._copy(source, path, work, identity, start)
            self._move(work, path, place)
        finally:
            if held is not None:
                held.close()

    def _look(self, source: Disk) -> Place:
        """Return where the target goes; raises for one that cannot be or must not be filled."""
        target = self.target
        if self.compress and FORMATS.get(self.format).compression is Disk.compression:
            raise self._not_compressed()
        if self.compress and self.options.get("preallocation", "off") != "off":
            raise InvalidValueError(
                "what is compressed needs less space than is reserved",
                hint="leave -c or preallocation out",
            )
        place = look_at(target)
        if place.is_device:
            raise InvalidValueError(
                f"{target} is a device: nothing is made there",
                hint="write into it with `ringzero disk convert -n`",
            )
        if place.old is None:
            return place
        if not self.overwrite:
            raise DiskError(
                f"{target} exists",
                hint="remove it first, choose another name, or say --force",
                path=target,
            )
        for layer in source.chain():
            if layer.path is not None and layer.path.samefile(target):
                raise InvalidValueError(
                    f"{target} is the source, or lies below it", hint="choose another target"
                )
        return place

    def _not_compressed(self) -> InvalidValueError:
        return InvalidValueError(
            f"{self.format} images are not compressed", hint="leave -c out, or choose qcow2 or vmdk"
        )

    def _convert_in_place(self, source: Disk, place: Place) -> None:
        self.resumable, self.in_place = False, True
        backing = self.backing and str(self.target.absolute().parent / self.backing)
        create_disk(
            place.path, self.format, source.size, options=self.options, backing=backing,
            backing_format=self.backing_format, overwrite=True, sync=False,
            backing_roots=self._directories(),
        )  # fmt: skip
        disk = self._open(place.path)
        try:
            self._fill(disk, Copy(source, disk, on_progress=self.on_progress), 0)
        finally:
            disk.close()

    def _begin(self, source: Disk, work: Path, path: Path, place: Place) -> bool:
        """Make the empty image; False when it cannot be given the owner of what it replaces."""
        _discard(work)
        try:
            # Nobody reads what may be more private than a new file would be.
            work.mkdir(mode=0o700)
        except OSError as fault:
            raise DiskError(
                f"cannot make {work}: {fault.strerror}", hint="choose another target", path=work
            ) from fault
        try:
            backing = self.backing and str(self.target.absolute().parent / self.backing)
            create_disk(
                path, self.format, source.size, options=self.options, backing=backing,
                backing_format=self.backing_format, sync=False,
                backing_roots=self._directories(),
            )  # fmt: skip
            if take_over(place, path):
                return True
        except BaseException:
            _discard(work)
            raise
        _discard(work)
        return False

    def _identity(self, source: Disk) -> str:
        """Return what tells the source's files, and what is to become of them, from others."""
        facts: list[Any] = [
            self.format, sorted(self.options.items()), sorted(self.opening.items()),
            self.backing, self.compress, source.size,
        ]  # fmt: skip
        for layer in source.chain():
            if layer.path is not None:
                status = layer.path.stat()
                facts.append([status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns])
        return repr(facts)

    def _resume(self, work: Path, identity: str) -> int:
        """Return how far an interrupted conversion of the same kind has come, in bytes."""
        try:
            text = (work / _NOTE).read_text()
        except OSError:
            return 0
        import json

        try:
            note = json.loads(text)
            return int(note["done"]) if note["identity"] == identity else 0
        except (ValueError, KeyError, TypeError):
            return 0

    def _open(self, path: Path) -> Disk:
        return open_disk(path, self.format, sync=self.sync, backing_roots=self._directories())

    def _directories(self) -> list[Path]:
        """Return the target's directory, given and real: the work is done in one below it."""
        return [self.target.absolute().parent, self.target.resolve().parent]

    def _fill(self, disk: Disk, copy: Copy, start: int) -> None:
        """Run `copy`, and make durable what it has written."""
        if self.compress and disk.compression is None:
            raise self._not_compressed()
        copy.sparse, copy.threads = self.sparse, self.threads
        copy.compress = self.compress or _takes_only_packed(disk)
        copy.run(start)
        if self.backing is not None:
            disk.change_backing(self.backing, self.backing_format or disk.backing_format)
        disk.flush()

    def _copy(self, source: Disk, path: Path, work: Path, identity: str, start: int) -> None:
        disk = self._open(path)
        done, saved = start, time.monotonic()
        one_go = _takes_only_packed(disk)

        def save() -> None:
            import json

            disk.flush()
            text = json.dumps({"identity": identity, "done": done})
            fresh = work / f"{_NOTE}.new"
            fresh.write_text(text)
            fresh.replace(work / _NOTE)

        def progress(reached: int) -> None:
            nonlocal done, saved
            done = reached
            self.on_progress(reached)
            if self.sync and not one_go and time.monotonic() - saved > _CHECKPOINT:
                save()
                saved = time.monotonic()

        try:
            self._fill(disk, Copy(source, disk, on_progress=progress), start)
            disk.close()
        except (KeyboardInterrupt, SystemExit):
            self.resumable = bool(done) and not one_go
            if self.resumable:
                save()
            disk.close()
            if not self.resumable:
                _discard(work)
            raise
        except BaseException:
            with contextlib.suppress(Exception):
                disk.close()
            _discard(work)
            raise

    def _move(self, work: Path, path: Path, place: Place) -> None:
        (work / _NOTE).unlink(missing_ok=True)
        directory = place.path.parent
        try:
            # The name that says "finished" comes last.
            parts = sorted(work.iterdir(), key=lambda part: part == path)
            places = [place if part == path else look_at(directory / part.name) for part in parts]
            for where in places[:-1]:
                if where.old is not None and not self.overwrite:
                    raise DiskError(f"{where.path} exists", hint="remove it first, or say --force")
            for part, where in zip(parts, places, strict=True):
                take_over(where, part)
                part.replace(where.path)
        except OSError as fault:
            raise DiskError(
                f"cannot put {self.target} in its place: {fault.strerror}", path=self.target
            ) from fault
        finally:
            _discard(work)
        if self.sync:
            with contextlib.suppress(OSError):
                handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)


def _takes_only_packed(disk: Disk) -> bool:
    """Whether the image takes nothing but packed units, each once."""
    return disk.compression is not None and disk.compression.only


def _work_directory(path: Path) -> Path:
    """Return where an image is made that becomes `path`."""
    name = f".{path.name}.convert"
    if len(os.fsencode(name)) > _NAME_MAX:
        # As much of it as there is room for, and a sum that tells it from others.
        cut = os.fsencode(path.name)[: _NAME_MAX - 18]
        name = f".{os.fsdecode(cut)}.{crc32(os.fsencode(path.name)):08x}.convert"
    return path.parent / name


def _discard(work: Path) -> None:
    """Remove the directory of an unfinished image, as far as that can be done."""
    with contextlib.suppress(OSError):
        for part in work.iterdir():
            part.unlink()
        work.rmdir()
