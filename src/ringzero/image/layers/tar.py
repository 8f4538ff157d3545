"""Tar archives: POSIX.1-2001 (pax), ustar, and GNU's long names and base-256 numbers; no I/O.

    for member in read(mapped): ...
    stream = Stream(pieces)
    for member in members(stream):
        for piece in stream.pieces(member.size): ...

An archive is a buffer, mostly a mapped file, or comes in pieces. Its bytes are not trusted: every
length is checked, and what makes no sense raises GuestImageError with its offset. File content is
not read, but told by where it lies. Sparse files of GNU tar are refused; builders of images make
none.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Protocol

from ringzero.errors import GuestImageError
from ringzero.records import mutable_record

_BLOCK = 512
_REGULAR, _CONTIGUOUS, _OLD_REGULAR = b"0", b"7", b"\0"
_HARD_LINK, _SYMLINK, _CHARACTER, _BLOCK_DEVICE, _DIRECTORY, _FIFO = (
    b"1", b"2", b"3", b"4", b"5", b"6",
)  # fmt: skip
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL, _SPARSE = b"L", b"K", b"x", b"g", b"S"
_SOLARIS_PAX = b"X"
_TYPES = {
    _REGULAR: stat.S_IFREG,
    _CONTIGUOUS: stat.S_IFREG,
    _OLD_REGULAR: stat.S_IFREG,
    _HARD_LINK: 0,
    _SYMLINK: stat.S_IFLNK,
    _CHARACTER: stat.S_IFCHR,
    _BLOCK_DEVICE: stat.S_IFBLK,
    _DIRECTORY: stat.S_IFDIR,
    _FIFO: stat.S_IFIFO,
}
# Extended headers hold names and attributes, of 64 KiB at most each.
_MAX_EXTENDED = 1 << 20
_MAX_ID, _MAX_DEVICE = (1 << 32) - 1, (1 << 32) - 1
_XATTR = b"SCHILY.xattr."
_PREFIX, _PREFIX_SIZE = slice(345, 500), 155
# Seconds that a file system can tell; others are cut to it.
_MAX_TIME = (1 << 63) - 1


@mutable_record
class Member:
    """One entry: `mode` with type bits (0: a hard link to `link`), content at `offset`.

    `mtime` is in nanoseconds, `device` the major and minor number. `tail` is the end of the
    content, where that is kept here.
    """

    name: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    offset: int
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] | None = None
    tail: bytes = b""


class Source(Protocol):
    """An archive, read from its beginning on; `at` is the offset of what comes next."""

    at: int

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes; fewer where the archive ends."""
        ...

    def go_to(self, at: int) -> bool:
        """Pass over all before the offset `at`; False: the archive ends before it."""
        ...


class _Whole:
    """An archive that is a buffer."""

    def __init__(self, archive: memoryview) -> None:
        self.at = 0
        self._archive = archive

    def take(self, count: int) -> bytes:
        found = bytes(self._archive[self.at : self.at + count])
        self.at += len(found)
        return found

    def go_to(self, at: int) -> bool:
        self.at = at
        return at <= len(self._archive)


class Stream:
    """An archive that comes in `pieces`."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.at = 0
        self._pieces = pieces
        self._piece = memoryview(b"")

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes; fewer where the archive ends."""
        if len(self._piece) < count:
            return b"".join(self.pieces(count))
        found = bytes(self._piece[:count])
        self._piece = self._piece[count:]
        self.at += count
        return found

    def pieces(self, count: int) -> Iterator[memoryview]:
        """Yield the next `count` bytes in pieces; fewer where the archive ends."""
        while count > 0:
            if not self._piece:
                self._piece = memoryview(next(filter(None, self._pieces), b""))
                if not self._piece:
                    return
            found = self._piece[:count]
            self._piece = self._piece[len(found) :]
            self.at += len(found)
            count -= len(found)
            yield found

    def go_to(self, at: int) -> bool:
        """Pass over all before the offset `at`; False: the archive ends before it."""
        for _ in self.pieces(at - self.at):
            pass
        return self.at >= at


def read(archive: memoryview) -> Iterator[Member]:
    """Yield the members of a whole archive in their order. Raises GuestImageError."""
    for member in members(_Whole(archive)):
        if member.offset + member.size > len(archive):
            raise _damaged("the archive is cut short", member.offset)
        yield member


def members(archive: Source) -> Iterator[Member]:
    """Yield the members of `archive` in their order. Raises GuestImageError.

    It ends with a block of zeros, or with the archive, as all readers have it. Whoever is given a
    member may read its content, which comes next, before the next one is asked for.
    """
    everywhere: dict[bytes, bytes] = {}
    extended: dict[bytes, bytes] = {}
    name = link = None
    while True:
        at = archive.at
        header = archive.take(_BLOCK)
        if not header.strip(b"\0"):
            break
        if len(header) < _BLOCK:
            raise _damaged("the archive is cut short", at)
        _check(header, at)
        kind, begin = header[156:157], archive.at
        size = _number(header[124:136], at)
        if kind in (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK, _SOLARIS_PAX):
            data = archive.take(size) if size <= _MAX_EXTENDED else b""
            if len(data) < size:
                raise _damaged("an extended header is too long or cut short", at)
            if kind == _LONG_NAME:
                name = data.partition(b"\0")[0]
            elif kind == _LONG_LINK:
                link = data.partition(b"\0")[0]
            elif kind == _PAX_GLOBAL:
                everywhere |= _records(data, at)
            else:
                extended |= _records(data, at)
            archive.go_to(begin + size + -size % _BLOCK)
            continue
        member = _member(header, begin, size, at)
        if name is not None:
            member.name = name
        if link is not None:
            member.link = link
        records = {**everywhere, **extended} if everywhere else extended
        if records:
            _extend(member, records, at)
        name = link = None
        extended = {}
        # What comes next is told before whoever is given the member may change it.
        end = begin + member.size
        yield member
        if not archive.go_to(end):
            raise _damaged("the archive is cut short", at)
        archive.go_to(end + -end % _BLOCK)
    if name is not None or link is not None or extended:
        raise _damaged("an extended header without its file", at)


def _member(header: bytes, begin: int, size: int, at: int) -> Member:
    kind = header[156:157]
    if kind == _SPARSE:
        raise GuestImageError(
            "a layer holds a sparse file as GNU tar writes it, which is not read", offset=at
        )
    # POSIX: a type that is not known is a regular file.
    mode = _TYPES.get(kind, stat.S_IFREG)
    name = _text(header[0:100])
    if header[257:263] == b"ustar\0" and (prefix := _text(header[_PREFIX])):
        name = prefix + b"/" + name
    if mode == stat.S_IFREG and kind == _OLD_REGULAR and name.endswith(b"/"):
        mode = stat.S_IFDIR
    device = (0, 0)
    if mode in (stat.S_IFCHR, stat.S_IFBLK):
        device = _number(header[329:337], at), _number(header[337:345], at)
        if max(device) > _MAX_DEVICE:
            raise _damaged("a device number that is none", at)
    permissions = _number(header[100:108], at) & 0o7777
    return Member(
        name,
        mode | permissions if mode else 0,
        _identity(_number(header[108:116], at), at),
        _identity(_number(header[116:124], at), at),
        _time(_number(header[136:148], at, signed=True)) * 1_000_000_000,
        size if mode == stat.S_IFREG else 0,
        begin,
        _text(header[157:257]),
        device,
    )


def _extend(member: Member, records: dict[bytes, bytes], at: int) -> None:
    """Put what extended headers say into a member (pax, "Extended Header")."""
    for key, value in records.items():
        if key == b"path":
            member.name = value
        elif key == b"linkpath":
            member.link = value
        elif key == b"size":
            if stat.S_ISREG(member.mode):
                member.size = _decimal(value, at)
        elif key == b"uid":
            member.uid = _identity(_decimal(value, at), at)
        elif key == b"gid":
            member.gid = _identity(_decimal(value, at), at)
        elif key == b"mtime":
            member.mtime = _moment(value, at)
        elif key.startswith(_XATTR):
            if member.xattrs is None:
                member.xattrs = {}
            member.xattrs[key.removeprefix(_XATTR)] = value
        elif key.startswith(b"GNU.sparse."):
            raise GuestImageError(
                "a layer holds a sparse file as GNU tar writes it, which is not read", offset=at
            )


def _records(data: bytes, at: int) -> dict[bytes, bytes]:
    """Return the "LENGTH KEY=VALUE" records of an extended header."""
    found: dict[bytes, bytes] = {}
    place = 0
    while place < len(data):
        space = data.find(b" ", place, place + 12)
        digits = data[place:space]
        if space < 0 or not digits.isdigit():
            # Some writers pad with zeros.
            if not data[place:].strip(b"\0"):
                break
            raise _damaged("a bad record in an extended header", at)
        stop = place + int(digits)
        key, equals, value = data[space + 1 : stop - 1].partition(b"=")
        if stop > len(data) or stop <= space or data[stop - 1 : stop] != b"\n" or not equals:
            raise _damaged("a bad record in an extended header", at)
        found[key] = value
        place = stop
    return found


def _check(header: bytes, at: int) -> None:
    """Compare the checksum: of the bytes, without sign or, as some old writers had it, with."""
    told = _number(header[148:156], at)
    blank = header[:148] + b" " * 8 + header[156:]
    total = sum(blank)
    if told != total and told != total - 256 * sum(byte > 127 for byte in blank):
        raise _damaged("a header's checksum is wrong; this is no tar archive, or damaged", at)


def _number(text: bytes, at: int, *, signed: bool = False) -> int:
    """Return an octal number, or GNU's base-256 one."""
    if text[0] & 0x80:
        value = int.from_bytes(bytes([text[0] & 0x7F]) + text[1:], "big")
        if text[0] & 0x40:
            if not signed:
                raise _damaged("a negative number", at)
            value -= 1 << 8 * len(text) - 1
        return value
    digits = text.partition(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    try:
        value = int(digits, 8)
    except ValueError:
        raise _damaged("a number that is none", at) from None
    if value < 0 and not signed:
        raise _damaged("a negative number", at)
    return value


def _decimal(text: bytes, at: int) -> int:
    # A size of 2**63 has 19 digits.
    if not text.isdigit() or len(text) > 19:
        raise _damaged("a number in an extended header that is none", at)
    return int(text)


def _moment(text: bytes, at: int) -> int:
    """Return decimal seconds, with a fraction perhaps, in nanoseconds."""
    whole, _, fraction = text.partition(b".")
    digits = whole.removeprefix(b"-")
    if not digits.isdigit() or (fraction and not fraction.isdigit()) or len(digits) > 19:
        raise _damaged("a time in an extended header that is none", at)
    rest = int(fraction[:9].ljust(9, b"0"))
    return _time(int(whole)) * 1_000_000_000 + (-rest if whole.startswith(b"-") else rest)


def _time(seconds: int) -> int:
    return max(-_MAX_TIME, min(seconds, _MAX_TIME))


def _identity(value: int, at: int) -> int:
    if value > _MAX_ID:
        raise _damaged("an owner's number of more than 32 bits", at)
    return value


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _damaged(reason: str, at: int) -> GuestImageError:
    return GuestImageError(f"a layer of the image is damaged: {reason} (at {at})", offset=at)
