"""A file tree in memory, without content: what layers make of each other (layer.md); no I/O.

Names are looked up in the tree itself, so that no link and no ".." leads anywhere else.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable

from ringzero.errors import GuestImageError
from ringzero.image.layers.tar import Member

_WHITEOUT, _OPAQUE, _AUFS = b".wh.", b".wh..wh..opq", b".wh..wh."
# Linux: NAME_MAX, PATH_MAX, and how many symbolic links a look-up follows.
_MAX_COMPONENT, _MAX_PATH, _MAX_LINKS = 255, 4096, 40
# Deeper than any PATH_MAX allows.
_MAX_DEPTH = 2048
# Overlay file systems' own notes would be taken for instructions.
_OVERLAY = (b"trusted.overlay.", b"user.overlay.")


class Node:
    """A file: its inode, with `children` where it is a directory.

    `layer` and `offset` tell where its content lies, but for `tail`, the end of it. Hard links are
    one node in several places.
    """

    __slots__ = (
        "children", "device", "gid", "layer", "links", "mode", "mtime", "offset", "size",
        "tail", "target", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, mode: int, uid: int = 0, gid: int = 0, mtime: int = 0) -> None:
        self.mode = mode
        self.uid, self.gid, self.mtime = uid, gid, mtime
        self.size = self.offset = self.layer = 0
        self.target = self.tail = b""
        self.device = (0, 0)
        self.links = 1
        self.xattrs: dict[bytes, bytes] = {}
        self.children: dict[bytes, Node] | None = {} if stat.S_ISDIR(mode) else None


class Tree:
    """The root directory, which layers are applied to from the lowest on."""

    def __init__(self, limit: int) -> None:
        self.root = Node(stat.S_IFDIR | 0o755)
        self._limit, self._count = limit, 0

    def apply(self, members: Iterable[Member], layer: int) -> None:
        """Apply the layer with the number `layer`. Raises GuestImageError."""
        rest: list[tuple[list[bytes], Member]] = []
        for member in members:
            self._count += 1
            if self._count > self._limit:
                raise GuestImageError(f"the image has more than {self._limit} files")
            parts = _parts(member.name)
            if any(part.startswith(_WHITEOUT) for part in parts[:-1]):
                # Of aufs' own bookkeeping, which some old layers carry.
                continue
            name = parts[-1] if parts else b""
            if not name.startswith(_WHITEOUT):
                rest.append((parts, member))
            elif name == _OPAQUE:
                # All of lower layers, before anything of this one comes.
                found = self._existing(parts[:-1])
                if found is not None and found.children is not None:
                    found.children.clear()
            elif not name.startswith(_AUFS):
                found = self._existing(parts[:-1])
                hidden = name.removeprefix(_WHITEOUT)
                if hidden in (b"", b".", b".."):
                    raise GuestImageError("a layer hides a file without a name")
                if found is not None and found.children is not None:
                    found.children.pop(hidden, None)
        for parts, member in rest:
            self._add(parts, member, layer)

    def find(self, path: bytes) -> Node | None:
        """Return what is at `path`, links followed, or None."""
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        return self._walk(parts, make=False)

    def directory(self, path: bytes) -> Node:
        """Return the directory `path`, made where it is missing. Raises GuestImageError."""
        found = self._walk(_parts(path), make=True)
        if found is None or found.children is None:
            raise GuestImageError(f"the image has a file where {_shown(path)} belongs")
        return found

    def _add(self, parts: list[bytes], member: Member, layer: int) -> None:
        if not parts:
            if stat.S_ISDIR(member.mode):
                _describe(self.root, member)
            return
        parent = self._walk(parts[:-1], make=True)
        if parent is None or parent.children is None:
            raise GuestImageError(f"a layer puts {_shown(member.name)} below what is no directory")
        name = parts[-1]
        if member.mode == 0:
            parent.children[name] = self._linked(member)
            return
        before = parent.children.get(name)
        if stat.S_ISDIR(member.mode) and before is not None and before.children is not None:
            _describe(before, member)
            return
        node = Node(member.mode)
        _describe(node, member)
        node.size, node.offset, node.layer = member.size, member.offset, layer
        node.tail = member.tail
        node.device = member.device
        if stat.S_ISLNK(member.mode):
            if not 0 < len(member.link) < _MAX_PATH:
                raise GuestImageError(f"{_shown(member.name)} is a link to nothing, or too far")
            node.target = member.link
        parent.children[name] = node

    def _linked(self, member: Member) -> Node:
        """Return the node that a hard link is another name of; its last part is not followed."""
        parts = _parts(member.link)
        parent = self._existing(parts[:-1]) if parts else None
        found = parent.children.get(parts[-1]) if parent and parent.children is not None else None
        if found is None or found.children is not None:
            what = "a directory" if found is not None else "a file that is not there"
            raise GuestImageError(
                f"a layer has {_shown(member.name)} as a hard link to {what}: {_shown(member.link)}"
            )
        return found

    def _existing(self, parts: list[bytes]) -> Node | None:
        return self._walk(parts, make=False)

    def _walk(self, parts: list[bytes], *, make: bool) -> Node | None:
        """Return the node at `parts`, with links followed inside the tree, as chroot(2) has it."""
        path = [self.root]
        todo = list(reversed(parts))
        links = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if len(path) > 1:
                    path.pop()
                continue
            here = path[-1]
            if here.children is None:
                return None
            found = here.children.get(part)
            if found is None:
                if not make or part.startswith(_WHITEOUT):
                    return None
                found = here.children[part] = Node(stat.S_IFDIR | 0o755)
                self._count += 1
            if stat.S_ISLNK(found.mode):
                links += 1
                if links > _MAX_LINKS:
                    raise GuestImageError(f"symbolic links without an end at {_shown(part)}")
                if found.target.startswith(b"/"):
                    path = [self.root]
                todo += reversed(found.target.split(b"/"))
                continue
            path.append(found)
            if len(path) > _MAX_DEPTH:
                raise GuestImageError("directories of the image lie too deep")
        return path[-1]


def _describe(node: Node, member: Member) -> None:
    """Give a node a member's owner, mode, time and attributes."""
    node.mode, node.uid, node.gid = member.mode, member.uid, member.gid
    node.mtime = member.mtime
    node.xattrs = {
        name: value
        for name, value in (member.xattrs or {}).items()
        if not name.startswith(_OVERLAY)
    }


def _parts(name: bytes) -> list[bytes]:
    """Return the parts of a member's name, from the root. Raises GuestImageError."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise GuestImageError(f"a layer holds {_shown(name)}, which leads out of the image")
    if len(name) > _MAX_PATH or any(len(part) > _MAX_COMPONENT or b"\0" in part for part in parts):
        raise GuestImageError(f"a layer holds a name that is too long: {_shown(name)}")
    return parts


def _shown(name: bytes) -> str:
    text = name.decode("utf-8", "backslashreplace")
    return repr(text if len(text) < 200 else text[:200] + "...")
