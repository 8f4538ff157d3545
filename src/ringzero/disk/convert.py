"""Converting an image file into another: made beside its place, put there when it is whole.

The target is made in a directory `.NAME.convert` next to its place. Its files
are moved out, the main one last, when everything is in them and durable; so
a name that exists is a finished image. When the work is interrupted, the
directory stays, with a note of how far it got, and the same command goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ringzero.disk.contract import Disk
from ringzero.disk.copying import Copy
from ringzero.disk.opening import create_disk, open_disk
from ringzero.errors import DiskError, InvalidValueError
from ringzero.records import field, mutable_record

_NOTE = "progress.json"
# A flush costs the pause of a disk; a crash may cost this many seconds of work.
_CHECKPOINT = 20.0


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
    threads: int = 2
    overwrite: bool = False
    sync: bool = True
    on_progress: Callable[[int], None] = lambda done: None
    resumed: int = 0

    def run(self, source: Disk) -> None:
        """Convert `source`; raises DiskError and leaves no half-made target behind.

        KeyboardInterrupt and SystemExit leave what can be continued.
        """
        target = self.target
        if target.is_block_device():
            raise InvalidValueError(
                f"{target} is a device: nothing is made there",
                hint="write into it with `ringzero disk convert -n`",
            )
        if target.exists() and not self.overwrite:
            raise DiskError(
                f"{target} exists", hint="remove it first, or choose another name", path=target
            )
        work = target.parent / f".{target.name}.convert"
        identity = self._identity(source)
        start = self._resume(work, identity)
        path = work / target.name
        if start == 0:
            self._begin(source, work, path)
        self.resumed = start
        self._copy(source, path, work, identity, start)
        self._move(work, path)

    def _begin(self, source: Disk, work: Path, path: Path) -> None:
        _discard(work)
        try:
            work.mkdir(mode=0o777)
        except OSError as fault:
            raise DiskError(f"cannot make {work}: {fault.strerror}", path=work) from fault
        try:
            backing = self.backing and str(self.target.absolute().parent / self.backing)
            create_disk(
                path, self.format, source.size, options=self.options, backing=backing,
                backing_format=self.backing_format, sync=False,
            )  # fmt: skip
        except BaseException:
            _discard(work)
            raise

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
        return json.dumps(facts, default=str)

    def _resume(self, work: Path, identity: str) -> int:
        """Return how far an interrupted conversion of the same kind has come, in bytes."""
        try:
            note = json.loads((work / _NOTE).read_text())
            return int(note["done"]) if note["identity"] == identity else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _copy(self, source: Disk, path: Path, work: Path, identity: str, start: int) -> None:
        place = self.target.absolute().parent
        roots = [] if self.backing is None else [(place / self.backing).parent]
        disk = open_disk(path, self.format, sync=self.sync, backing_roots=roots)
        done, saved = start, time.monotonic()
        one_go = disk.compression is not None and disk.compression.only

        def save() -> None:
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

        copy = Copy(
            source, disk, sparse=self.sparse,
            compress=self.compress or one_go, threads=self.threads, on_progress=progress,
        )  # fmt: skip
        if self.compress and disk.compression is None:
            disk.close()
            _discard(work)
            raise InvalidValueError(f"{self.format} images are not compressed")
        try:
            copy.run(start)
            if self.backing is not None:
                disk.change_backing(self.backing, self.backing_format or disk.backing_format)
            disk.flush()
            disk.close()
        except (KeyboardInterrupt, SystemExit):
            if one_go or not done:
                disk.close()
                _discard(work)
            else:
                save()
                disk.close()
            raise
        except BaseException:
            with contextlib.suppress(Exception):
                disk.close()
            _discard(work)
            raise

    def _move(self, work: Path, path: Path) -> None:
        (work / _NOTE).unlink(missing_ok=True)
        place = self.target.parent
        try:
            # The name that says "finished" comes last.
            for part in sorted(work.iterdir(), key=lambda part: part == path):
                if part != path and (place / part.name).exists() and not self.overwrite:
                    raise DiskError(f"{place / part.name} exists", hint="remove it first")
                part.replace(place / part.name)
        finally:
            _discard(work)
        if self.sync:
            with contextlib.suppress(OSError):
                handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)


def _discard(work: Path) -> None:
    """Remove the directory of an unfinished image, as far as that can be done."""
    with contextlib.suppress(OSError):
        for part in work.iterdir():
            part.unlink()
        work.rmdir()
