"""In what two images of the store differ, file by file."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Literal

from ringzero.host.progress import QUIET, Progress
from ringzero.image.fs.contract import Node
from ringzero.image.oci.files import Files, open_files
from ringzero.image.oci.store import StoredImage
from ringzero.records import record


@record
class Change:
    """A path and what is other about it; sizes in bytes, of what is no file 0."""

    kind: Literal["added", "changed", "removed"]
    path: str
    before: int = 0
    after: int = 0


def difference(before: StoredImage, after: StoredImage, progress: Progress = QUIET) -> list[Change]:
    """Return what is other in `after`, by path.

    A file has changed when its kind, mode or content has. What lies in a directory that was
    added or removed is told, too. Raises GuestImageError, FileSystemError, HostError.
    """
    with (
        open_files(before) as old,
        open_files(after) as new,
        progress.step(f"comparing {before.name} with {after.name}"),
    ):
        was, now = dict(old.walk()), dict(new.walk())
        found = [Change("removed", p, before=_size(was[p])) for p in was.keys() - now.keys()]
        found += [Change("added", p, after=_size(now[p])) for p in now.keys() - was.keys()]
        for path in was.keys() & now.keys():
            one, other = was[path], now[path]
            if _differ(old, one, new, other):
                found.append(Change("changed", path, _size(one), _size(other)))
    return sorted(found, key=lambda change: change.path)


def _size(node: Node) -> int:
    return node.size if node.is_file else 0


def _differ(old: Files, one: Node, new: Files, other: Node) -> bool:
    if one.mode != other.mode:
        return True
    if not (stat.S_ISREG(one.mode) or stat.S_ISLNK(one.mode)):
        return False
    return one.size != other.size or any(
        a != b for a, b in _pairs(old.content(one), new.content(other))
    )


def _pairs(one: Iterator[bytes], other: Iterator[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield pieces of equally long contents."""
    return zip(one, other, strict=True)
