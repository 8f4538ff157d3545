"""What layers unpack to, kept once for all images that have them:

    layers/FORMAT-HEX/content    the content of a layer's files (`ringzero.image.erofs.content`)
    layers/FORMAT-HEX/members    all else about them, as JSON

HEX is of the digest of the blob that was unpacked, which is right. That a packed blob unpacks to
the tar that the image's configuration tells of is not asked here (`verify`): a name stands for what
its own bytes unpack to, so that no image can put something else in the place of another's layer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.host.files import atomic_file, remove_tree
from ringzero.records import record

if TYPE_CHECKING:
    from ringzero.image.layers.tar import Member

# Of both files; layers of another one are unpacked again.
FORMAT = 1
CONTENT, MEMBERS = "content", "members"
# Names and values of a tar are bytes; each is one character of this.
_BYTES = "latin-1"


@record
class Layer:
    """A layer that is unpacked: what is in it, and where the content of its files lies.

    `size` is that of the content, whole blocks.
    """

    members: list[Member]
    content: Path
    size: int


class Layers:
    """The layers below the cache directory `cache`."""

    def __init__(self, cache: Path) -> None:
        self.folder = cache / "layers"

    def place(self, digest: str) -> Path:
        """Return where the layer that the blob with a digest unpacks to lies or will lie."""
        return self.folder / f"{FORMAT}-{digest.replace(':', '-')}"

    def size(self, digest: str) -> int | None:
        """Return the size of a layer's content, or None where it is not there."""
        try:
            return (self.place(digest) / CONTENT).stat().st_size
        except OSError:
            return None

    def find(self, digest: str, diff_id: str) -> Layer | None:
        """Return a layer by its blob's digest, else by its plain tar's (a blob, where it came so).

        None when neither is wholly there.
        """
        return self.load(digest) or self.load(diff_id)

    def load(self, digest: str) -> Layer | None:
        """Return a layer, or None when anything is amiss."""
        place = self.place(digest)
        try:
            size = (place / CONTENT).stat().st_size
            found = json.loads((place / MEMBERS).read_bytes())
            members = [_member(item) for item in found["members"]]
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None
        inside = (m.offset + m.size - len(m.tail) <= size for m in members if m.size)
        whole = size == found["size"] and all(inside)
        return Layer(members, place / CONTENT, size) if whole else None

    def sweep(self, kept: Sequence[str]) -> int:
        """Remove all layers but those of the digests `kept`; return how many bytes that frees."""
        freed, names = 0, {self.place(digest).name for digest in kept}
        for path in self.folder.glob("[0-9]*"):
            if path.name not in names:
                freed += taken(path / CONTENT)
                remove_tree(path)
        return freed


def taken(path: Path) -> int:
    """Return how much of the disk is free once `path` is gone, in bytes."""
    try:
        status = path.stat()
    except OSError:
        return 0
    return status.st_blocks * 512 if status.st_nlink == 1 else 0


def write_members(place: Path, members: Sequence[Member], size: int) -> None:
    """Write what is in a layer, whose content has `size` bytes, beside it. Raises HostError."""
    value = {"size": size, "members": [_plain(member) for member in members]}
    with atomic_file(place / MEMBERS) as file:
        file.write(json.dumps(value).encode())


def _plain(member: Member) -> list[Any]:
    xattrs = member.xattrs or {}
    return [
        *(member.name.decode(_BYTES), member.mode, member.uid, member.gid, member.mtime),
        *(member.size, member.offset, member.link.decode(_BYTES), list(member.device)),
        {name.decode(_BYTES): value.decode(_BYTES) for name, value in xattrs.items()},
        member.tail.decode(_BYTES),
    ]


def _member(item: list[Any]) -> Member:
    from ringzero.image.layers.tar import Member

    name, mode, uid, gid, mtime, size, offset, link, device, xattrs, tail = item
    return Member(
        *(name.encode(_BYTES), mode, uid, gid, mtime, size, offset, link.encode(_BYTES)),
        (device[0], device[1]),
        {n.encode(_BYTES): v.encode(_BYTES) for n, v in xattrs.items()} or None,
        tail.encode(_BYTES),
    )
