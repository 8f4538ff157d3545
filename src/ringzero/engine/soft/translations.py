"""Translations kept on disk between runs, keyed by the content of the guest's code pages.

One file per compiled engine holds the translated code and its records as they
lie in memory, and for each page that was translated a copy of the guest page
it was made from. A page of a later guest takes over a translation only when
its 4 KiB are the same, byte for byte. The file is written beside its place
and renamed, and never changed: it is mapped, and machines share what they read
of it. One that is damaged, foreign, or of another engine is ignored.

    header; at a multiple of a page, the code; records, which end at one: both are mapped where
    they belong; then each at a multiple of ALIGNMENT: hash table of pages (indices, 32 bits),
    hashes (64), addresses of CodePages (32), contents of pages
"""

from __future__ import annotations

import binascii
import contextlib
import ctypes
import fcntl
import functools
import mmap
import os
import stat
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ringzero.core.memory import PAGE_SIZE, GuestMemory
from ringzero.digest import blake2b
from ringzero.engine.soft.linked import Objects
from ringzero.host.memory import HostMemory, map_over
from ringzero.isa.caches import LINES, CodePage
from ringzero.settings import CACHE_DIR

if TYPE_CHECKING:
    from io import FileIO

Buffer = bytes | memoryview

_MAGIC = b"rztrans4"
ALIGNMENT = 64
# CRC-32 of all behind it, magic, engine key, region start, code bytes, data bytes, pages, table
# entries.
_HEADER = struct.Struct("<I4x8s32sQQQQQ")
_CHECKED_FROM = 4
# What is known of pages with code: CRC-32 of all behind it, what the file was that it is of; then
# of each page its number and the address of its CodePage in that file, 0 for none, 32 bits each.
_KNOWN = struct.Struct("<I4x16s")
_BLOCKS = CodePage.offset_of("blocks")
# Writing costs about 0.1 s, so it must be worth it: a later run would find code in so many lines of
# pages that this one had to translate, which takes about 0.01 s. What a boot translates before its
# kernel patches itself no later one finds: the page is another by then.
WORTH_SAVING = 400
# A file that fills more of the region than this leaves new code no room.
LARGEST = 3 / 4


class CompiledEngine(Protocol):
    """What made the translations: its objects' key, and its hash of a page at a host address."""

    objects: Objects
    page_hash: Callable[[int], int]


class Translations:
    """The saved translations of one compiled engine, loaded into one machine's code space."""

    def __init__(self, engine: CompiledEngine, code: Any, size: int) -> None:
        """Serve a region of `size` bytes that nobody has used yet; `code` views its CodeSpace."""
        self._start: int = code.region_start
        self._end: int = code.region_start + size
        self._engine = engine
        self._code = code
        self._key = engine.objects.key.encode().ljust(32, b"\0")
        self._mapping: mmap.mmap | None = None
        # What the file that is mapped was then.
        self._version = b""
        # Where the mapping has the addresses of CodePages, and the guest pages they are of.
        self._addresses, self._contents = memoryview(b"").cast("I"), memoryview(b"")
        # Where in the region the records begin that were loaded.
        self._loaded_from = self._end
        # Its table of pages, and their hashes.
        self._table, self._hashes = memoryview(b"").cast("I"), memoryview(b"").cast("Q")

    @property
    def loaded(self) -> Iterable[int]:
        """Addresses of the CodePages that were loaded."""
        return self._addresses

    @property
    def path(self) -> Path:
        return CACHE_DIR.get() / "translations" / self._engine.objects.key

    # --- loading ---

    def load(self) -> bool:
        """Put saved translations into the empty region; False when there are none to trust."""
        found = self._open()
        if found is None:
            return False
        data, descriptor = found
        space = self._code
        code, records, pages, slots = _HEADER.unpack_from(data)[4:]
        places = _places(code, records, pages, slots)
        start = ctypes.addressof(ctypes.c_char.from_buffer(data))
        try:
            for target, place, size in (
                (self._start, places[0], code),
                (self._end - records, places[1], records),
            ):
                # Whole pages: what is beside the one and the other is nobody's yet.
                before = target % PAGE_SIZE
                if not map_over(target - before, before + size, descriptor, place - before):
                    ctypes.memmove(target, start + place, size)
            self._version = blake2b(_stamp(os.fstat(descriptor)), digest_size=16).digest()
        finally:
            os.close(descriptor)
        space.out = self._start + code
        space.data = self._loaded_from = self._end - records
        for member, place in zip(
            ("saved_table", "saved_hashes", "saved_pages", "saved_contents"),
            places[2:6],
            strict=True,
        ):
            setattr(space, member, start + place)
        space.saved_mask = slots - 1
        view = memoryview(data)
        self._mapping = data
        self._addresses = view[places[4] :][: pages * 4].cast("I")
        self._contents = view[places[5] : places[6]]
        self._table = view[places[2] :][: slots * 4].cast("I")
        self._hashes = view[places[3] :][: pages * 8].cast("Q")
        return True

    def _open(self) -> tuple[mmap.mmap, int] | None:
        """Map the file when it is ours, whole, and of this engine and region; return it, open."""
        # Not to wait for the other end, should the file be a FIFO.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = os.open(self.path, flags)
        except OSError:
            return None
        data = None
        try:
            data = self._read(descriptor)
        finally:
            if data is None:
                os.close(descriptor)
        return None if data is None else (data, descriptor)

    def _read(self, descriptor: int) -> mmap.mmap | None:
        try:
            status = os.fstat(descriptor)
            ours = status.st_uid == os.geteuid() and not status.st_mode & 0o022
            if not (ours and stat.S_ISREG(status.st_mode)):
                return None
            if status.st_size < _HEADER.size:
                return None
            data = mmap.mmap(descriptor, status.st_size, mmap.MAP_PRIVATE)
            known = self._is_checked(status)
            if not known:
                # What is noted as right is on the disk as such.
                os.fsync(descriptor)
        except OSError:
            return None
        crc, magic, key, start, code, records, pages, slots = _HEADER.unpack_from(data)
        room = self._end - self._start
        fits = code + records < room and slots & (slots - 1) == 0 and slots > pages
        if (magic, key, start) != (_MAGIC, self._key, self._start) or not fits:
            return None
        places = _places(code, records, pages, slots)
        if len(data) != places[6]:
            return None
        if not known:
            if binascii.crc32(memoryview(data)[_CHECKED_FROM:]) != crc:
                return None
            self._note_checked(status)
        # Not cut out of the file itself, of which that would copy megabytes.
        with memoryview(data) as whole, whole[places[4] :][: pages * 4].cast("I") as addresses:
            if pages and not self._end - records <= min(addresses) <= max(addresses) < self._end:
                return None
        return data

    @property
    def _check(self) -> Path:
        return self.path.with_name(f"{self.path.name}.checked")

    def _is_checked(self, status: os.stat_result) -> bool:
        """Whether the checksum of this very file was right: to compute it takes 10 ms."""
        with contextlib.suppress(OSError):
            return self._check.read_bytes() == _stamp(status)
        return False

    def _note_checked(self, status: os.stat_result) -> None:
        temporary = self._check.with_name(f"writing-{os.urandom(4).hex()}")
        with contextlib.suppress(OSError):
            temporary.touch(0o600)
            temporary.write_bytes(_stamp(status))
            temporary.replace(self._check)

    def known(self, words: memoryview) -> bytes:
        """Return what is to be told to `expect` of the pages that have code now."""
        return _pack(bytes(16), ((page, 0) for page, address in enumerate(words) if address))

    def expect(
        self, known: bytes, memory: HostMemory, words: memoryview, sought: memoryview
    ) -> bytes | None:
        """Take over what is saved for pages of RAM before they run; `known` tells of which.

        One by one, at their first instructions, each costs a search of all TLBs for a right to
        write to it: here the vCPUs have not run. `words` and `sought` as of `CodeArenas`.
        To compare the pages is a fiftieth of a start that resumes. So what came of it is returned:
        of the same content and the same file, it is known then where each page's code is.
        """
        version, pairs = _unpack(known)
        if self._mapping is None or not pairs:
            return None
        found = {
            page: address
            for page, address in zip(pairs[::2], pairs[1::2], strict=True)
            if page < len(words)
        }
        same = version == self._version
        if not same:
            self._adopt(found, memory, words, sought)
        # To what was written already, the note does not apply.
        for start, end in memory.changed():
            for page in range(start // PAGE_SIZE, end // PAGE_SIZE):
                found.pop(page, None)
        if not same:
            return _pack(self._version, ((page, words[page]) for page in found))
        for page, address in found.items():
            sought[page] = 1
            words[page] = address
        self._code.count_adopted += len(found) - list(found.values()).count(0)
        return None

    def _adopt(
        self, pages: Iterable[int], memory: HostMemory, words: memoryview, sought: memoryview
    ) -> None:
        """Take over what is saved for pages of the same content."""
        for page in pages:
            sought[page] = 1
            index = self._find(memory.address + page * PAGE_SIZE)
            if index is not None:
                words[page] = self._addresses[index]
                self._code.count_adopted += 1

    def _find(self, where: int) -> int | None:
        """Return the number of the saved page that is like the one at a host address."""
        table, hashes, mask = self._table, self._hashes, len(self._table) - 1
        contents = ctypes.addressof(ctypes.c_char.from_buffer(self._contents))
        wanted = self._engine.page_hash(where)
        slot = wanted & mask
        while index := table[slot]:
            content = contents + (index - 1) * PAGE_SIZE
            if hashes[index - 1] == wanted and not _memcmp()(where, content, PAGE_SIZE):
                return index - 1
            slot = slot + 1 & mask
        return None

    # --- saving ---

    def save(self, code_pages: memoryview, memory: GuestMemory) -> None:
        """Write what the region holds, when enough of it is new; a failure to write is no fault.

        When it holds too much, what was written early stays, or what earlier runs left as
        long as half of this run's pages came from it.
        """
        space = self._code
        if space.count_blocks < WORTH_SAVING or not self._gains(code_pages, memory):
            return
        used = space.out - self._start + self._end - space.data
        path = self.path
        if used > LARGEST * (self._end - self._start):
            if len(self._addresses) and space.count_adopted < code_pages_in(code_pages) / 2:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            return
        import tempfile

        with contextlib.suppress(OSError), _sole_writer(path.parent):
            parts = self._parts(code_pages, memory)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix="writing-")
            try:
                with os.fdopen(descriptor, "wb", buffering=0) as file:
                    for part in parts:
                        _write_all(file, part)
                Path(temporary).rename(path)
            except OSError:
                Path(temporary).unlink(missing_ok=True)
                raise
            self._forget_others(path)

    def _forget_others(self, path: Path) -> None:
        """Remove files of engines that no longer are, and unfinished ones.

        The engine of other CPU models keeps its own.
        """
        engines = CACHE_DIR.get() / "engine"
        for other in path.parent.iterdir():
            kept = other in (path, self._check) or (engines / other.stem).is_dir()
            if not kept:
                other.unlink(missing_ok=True)

    def _gains(self, code_pages: memoryview, memory: GuestMemory) -> bool:
        """Whether later runs would find enough that is not in the file."""
        if self._mapping is None or self._code.count_flushes:
            return True
        # Records grow down, so those below are new. The latest block is the first of its line.
        loaded = self._loaded_from
        found = 0
        for number, address in enumerate(code_pages):
            if not address:
                continue
            where = memory.host.address + number * PAGE_SIZE
            if address < loaded and self._find(where) is not None:
                continue
            blocks = (ctypes.c_uint32 * LINES).from_address(address + _BLOCKS)
            found += sum(0 < block < loaded for block in blocks)
            if found >= WORTH_SAVING:
                return True
        return False

    def _parts(self, code_pages: memoryview, memory: GuestMemory) -> list[Buffer]:
        """Return what the file is to hold, one after the other."""
        space = self._code
        pages: dict[int, bytes] = {}
        for number, address in enumerate(self._addresses if space.count_flushes == 0 else ()):
            pages[address] = bytes(self._contents[number * PAGE_SIZE :][:PAGE_SIZE])
        ram = memory.host.view
        for number, address in enumerate(code_pages):
            if address:
                pages[address] = bytes(ram[number * PAGE_SIZE : (number + 1) * PAGE_SIZE])
        hashes = array("Q")
        for page in pages.values():
            buffer = ctypes.create_string_buffer(page, PAGE_SIZE)
            hashes.append(self._engine.page_hash(ctypes.addressof(buffer)))
        slots = 1 << (2 * len(pages)).bit_length()
        table = array("I", bytes(4 * slots))
        for index, value in enumerate(hashes):
            slot = value & (slots - 1)
            while table[slot]:
                slot = (slot + 1) & (slots - 1)
            table[slot] = index + 1
        # Where they lie: to copy them costs more than to write them.
        code = _bytes_at(self._start, space.out - self._start)
        records = _bytes_at(space.data, self._end - space.data)
        header = _HEADER.pack(
            0, _MAGIC, self._key, self._start, len(code), len(records), len(pages), slots
        )
        contents = [code, records, memoryview(table), memoryview(hashes)]
        contents += [memoryview(array("I", pages)), memoryview(b"".join(pages.values()))]
        parts: list[Buffer] = [header]
        at = len(header)
        places = _places(len(code), len(records), len(pages), slots)
        for place, content in zip(places, [*contents, memoryview(b"")], strict=True):
            parts += (bytes(place - at), content.cast("B"))
            at = place + content.nbytes
        crc = binascii.crc32(header[_CHECKED_FROM:])
        for part in parts[1:]:
            crc = binascii.crc32(part, crc)
        parts[0] = crc.to_bytes(_CHECKED_FROM, "little") + header[_CHECKED_FROM:]
        return parts


def _write_all(file: FileIO, data: Buffer) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


@contextlib.contextmanager
def _sole_writer(directory: Path) -> Iterator[None]:
    """Be the only one who writes there. Raises OSError where another process does just now.

    Of a hundred guests that end at once, one is enough: they hold much the same.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@functools.cache
def _memcmp() -> Callable[[int, int, int], int]:
    """Return the C library's, which keeps the interpreter's lock."""
    compare = ctypes.PyDLL(None).memcmp
    compare.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    return compare


def _pack(version: bytes, pairs: Iterable[tuple[int, int]]) -> bytes:
    """Return a note for `Translations.expect`."""
    words = array("I", [word for pair in pairs for word in pair])
    data = _KNOWN.pack(0, version) + words.tobytes()
    return binascii.crc32(data[_CHECKED_FROM:]).to_bytes(_CHECKED_FROM, "little") + data[4:]


def _unpack(known: bytes) -> tuple[bytes, array[int]]:
    """Return what file a note is of, and its words; none where it is damaged."""
    words = array("I")
    if len(known) < _KNOWN.size or (len(known) - _KNOWN.size) % (2 * words.itemsize):
        return b"", words
    crc, version = _KNOWN.unpack_from(known)
    if binascii.crc32(known[_CHECKED_FROM:]) == crc:
        words.frombytes(known[_KNOWN.size :])
    return version, words


def _bytes_at(address: int, size: int) -> memoryview:
    """Return this process's memory at an address, not copied."""
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


def _stamp(status: os.stat_result) -> bytes:
    """Return what no write, and no other file in its place, leaves as it is."""
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}".encode()


def code_pages_in(code_pages: memoryview) -> int:
    """Return how many pages have translations."""
    return sum(1 for address in code_pages if address)


def _places(code: int, records: int, pages: int, slots: int) -> list[int]:
    """Return where the parts of a file begin, and its end, from what its header says."""
    places = [PAGE_SIZE]
    at = -(-(PAGE_SIZE + code) // PAGE_SIZE) * PAGE_SIZE
    places.append(at + -records % PAGE_SIZE)
    at = places[1] + records
    for size in (slots * 4, pages * 8, pages * 4, pages * PAGE_SIZE):
        places.append(at)
        at += -(-size // ALIGNMENT) * ALIGNMENT
    return [*places, at]
