"""Cutting a layer into parts that change apart from each other.

A registry and its clients share layers, and nothing smaller. A large layer in which one package
is another one would be sent again as a whole; of one in parts only those that have changed are.
Each part is an ordinary layer, so that every registry and every client takes them.

    the first one   whiteouts, where there are some
    the next ones   the files of owners that are small, by a hash of who owns them
    others          the files of an owner each that is large
    the last one    all directories, and what every change of packages changes

Who owns a file is told by the layer alone (`owners`), and so is where it goes: equal layers make
equal parts, and those of a changed layer are the same but for what has changed in it. Applied in
their order, the parts make what the layer makes.

A directory's time changes with each file that is put into it, and would change all parts that have
files below it. It is told by the last part alone, which is above all others.
"""

from __future__ import annotations

import stat
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ringzero.build.entries import WHITEOUT, Entry
from ringzero.build.owners import SHARED, Owners
from ringzero.digest import blake2b
from ringzero.records import record, replace

_BLOCK = 512
# Bytes: a layer below twice this is one part, and an owner above it has a part of its own. Packed
# it is some 80 KiB, which is what a registry's answers to a blob of its own are worth.
_SMALL = 256 << 10
# Whiteouts, files, and what is shared.
_LEAST = 3
# Characters of an owner, for people.
_SHOWN = 200


@record
class Part:
    """Entries of a layer, the directories on the way to them included, and who owns them.

    `owner` is "" where that are several.
    """

    owner: str
    entries: tuple[Entry, ...]


def partition(entries: Sequence[Entry], most: int) -> list[Part]:
    """Return the parts of a layer, at most so many; none where it is not to be cut.

    `entries` are all of its own. Names are relative to the root, and real: what lies below the
    layer has no link on the way to one.
    """
    whole = sum(map(_size, entries))
    if most < _LEAST or whole < 2 * _SMALL or not _is_plain(entries):
        return []
    directories = {entry.name: entry for entry in entries if stat.S_ISDIR(entry.mode)}
    gone = [entry for entry in entries if _is_whiteout(entry)]
    shared, groups = _grouped(entries, Owners(entries))
    limit = _SMALL
    while True:
        large, buckets = _arranged(groups, limit)
        if bool(gone) + len(buckets) + len(large) < most:
            break
        limit *= 2
    several = [gone] if gone else []
    several += [buckets[number] for number in sorted(buckets)]
    parts = [Part("", _reached(files, directories)) for files in several]
    parts += [Part(_shown(o), _reached(large[o], directories)) for o in sorted(large)]
    parts.append(Part("", (*directories.values(), *shared)))
    return parts if len(parts) > 1 else []


def _is_plain(entries: Sequence[Entry]) -> bool:
    """Whether the order of entries does not matter, but that hard links come behind their targets.

    Not where a name is there twice or below a file, or a link leads to no file of the layer.
    """
    names = {entry.name for entry in entries}
    others = {entry.name for entry in entries if not stat.S_ISDIR(entry.mode)}
    files = {entry.name for entry in entries if entry.mode and not _is_whiteout(entry)} & others
    return (
        len(names) == len(entries)
        and not any(above in others for name in names for above in _above(name))
        and all(entry.mode or _target(entry) in files for entry in entries)
    )


def _grouped(
    entries: Iterable[Entry], owners: Owners
) -> tuple[list[Entry], dict[bytes, list[list[Entry]]]]:
    """Return what is shared, and the files of each owner.

    Files that are hard links of each other are one list.
    """
    sets: dict[bytes, list[Entry]] = {}
    groups: dict[bytes, list[list[Entry]]] = defaultdict(list)
    for entry in entries:
        if entry.mode and not stat.S_ISDIR(entry.mode) and not _is_whiteout(entry):
            sets[entry.name] = [entry]
            groups[owners.of(entry.name)].append(sets[entry.name])
    for entry in entries:
        if not entry.mode:
            sets[_target(entry)].append(entry)
    shared = groups.pop(SHARED, [])
    return [entry for one in shared for entry in one], groups


def _arranged(
    groups: Mapping[bytes, list[list[Entry]]], limit: int
) -> tuple[dict[bytes, list[Entry]], dict[int, list[Entry]]]:
    """Return the files of owners that are larger than `limit`, and those of others in buckets.

    A directory that is too large is no owner: each of its files is one.
    """
    large: dict[bytes, list[Entry]] = defaultdict(list)
    small: dict[bytes, list[Entry]] = defaultdict(list)
    for owner, files in groups.items():
        whole = [entry for one in files for entry in one]
        if sum(map(_size, whole)) <= limit:
            small[owner] += whole
        elif not owner.startswith(b"/"):
            large[owner] += whole
        else:
            for one in files:
                target = large if sum(map(_size, one)) > limit else small
                target[b"/" + one[0].name] += one
    total = sum(_size(entry) for whole in small.values() for entry in whole)
    # A power of two: a layer that grows a little has as many as before.
    count = 1 << (max(1, -(-total // limit)) - 1).bit_length()
    buckets: dict[int, list[Entry]] = defaultdict(list)
    for owner, whole in small.items():
        digest = blake2b(owner, digest_size=8).digest()
        buckets[int.from_bytes(digest) % count] += whole
    return large, buckets


def _reached(files: Iterable[Entry], directories: Mapping[bytes, Entry]) -> tuple[Entry, ...]:
    """Return files and the directories on the way to them, without their times.

    Without those a runtime that unpacks each part by itself would make up their owners and modes.
    """
    found = {entry.name: entry for entry in files}
    for name in list(found):
        for above in _above(name):
            if above in directories:
                found[above] = replace(directories[above], mtime=0)
    return tuple(found.values())


def _above(name: bytes) -> list[bytes]:
    """Return the directories on the way to a name, from the lowest."""
    found = []
    while name := name.rpartition(b"/")[0]:
        found.append(name)
    return found


def _is_whiteout(entry: Entry) -> bool:
    return entry.name.rpartition(b"/")[2].startswith(WHITEOUT)


def _target(entry: Entry) -> bytes:
    """Return the name that a hard link leads to."""
    return b"/".join(part for part in entry.link.split(b"/") if part not in (b"", b"."))


def _shown(owner: bytes) -> str:
    return owner.decode("utf-8", "replace")[:_SHOWN]


def _size(entry: Entry) -> int:
    return _BLOCK + entry.size + -entry.size % _BLOCK
