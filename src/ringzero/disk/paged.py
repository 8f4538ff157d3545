"""A long table of integers in an image, of which only the pages in use are in memory.

For maps whose length an image chooses (a block map of 64 TiB has 64 million
entries): a page is read when it is first asked for, and clean pages are
dropped when there are many.
"""

from __future__ import annotations

from collections.abc import Iterator

from ringzero.disk.storage import Storage
from ringzero.disk.tables import Table

# What is written back at once: 4 KiB of 8-byte entries.
_GROUP = 512
# 64 KiB of 8-byte entries in a page: one cheap host read.
PAGE_ENTRIES = 8192
# Pages kept: 16 MiB of 8-byte entries.
_LIMIT = 256


class PagedTable:
    """`count` integers at the byte `offset` of `storage`; see `Table` for the other arguments.

    Reading needs no lock; changing needs the disk's `_alloc`.
    """

    def __init__(
        self, storage: Storage, offset: int, count: int, typecode: str, *, big_endian: bool
    ) -> None:
        self.storage = storage
        self.offset = offset
        self.count = count
        self.typecode = typecode
        self.big_endian = big_endian
        self.width = {"B": 1, "H": 2, "I": 4, "Q": 8}[typecode]
        self._pages: dict[int, Table] = {}
        # Numbers of groups of entries.
        self._dirty: set[int] = set()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        page = self._pages.get(index // PAGE_ENTRIES) or self._load(index // PAGE_ENTRIES)
        return page.items[index % PAGE_ENTRIES]

    def __setitem__(self, index: int, value: int) -> None:
        number = index // PAGE_ENTRIES
        # Marked first, so that the page is not dropped.
        self._dirty.add(index // _GROUP)
        page = self._pages.get(number) or self._load(number)
        page.items[index % PAGE_ENTRIES] = value

    def _load(self, number: int) -> Table:
        page = self._read(number)
        if len(self._pages) >= _LIMIT:
            each = PAGE_ENTRIES // _GROUP
            dirty = {group // each for group in list(self._dirty)}
            clean = [n for n in list(self._pages) if n not in dirty]
            for old in clean[: len(clean) // 2]:
                self._pages.pop(old, None)
        # Another thread may have been faster, and its page changed since.
        return self._pages.setdefault(number, page)

    def _read(self, number: int) -> Table:
        first = number * PAGE_ENTRIES
        if not 0 <= first < self.count:
            raise IndexError(number)
        return Table.load(
            self.storage,
            self.offset + first * self.width,
            min(PAGE_ENTRIES, self.count - first),
            self.typecode,
            big_endian=self.big_endian,
        )

    def __iter__(self) -> Iterator[int]:
        """Yield all entries without keeping their pages."""
        for number in range(-(-self.count // PAGE_ENTRIES)):
            yield from (self._pages.get(number) or self._read(number)).items

    @property
    def dirty(self) -> bool:
        """Whether there are changes to write back."""
        return bool(self._dirty)

    def changed(self) -> Iterator[tuple[int, bytes]]:
        """Yield (byte offset in the storage, bytes) for the groups of entries that have changed."""
        each = PAGE_ENTRIES // _GROUP
        for group in sorted(self._dirty):
            page = self._pages[group // each]
            low = group % each * _GROUP
            yield page.offset + low * self.width, page.to_bytes(low, low + _GROUP)

    def clean(self) -> None:
        """Take note that the changes are in the storage."""
        self._dirty.clear()

    def write_back(self) -> None:
        """Write the changed groups. Not flushed."""
        rows = list(self.changed())
        start = 0
        for stop in range(1, len(rows) + 1):
            last, data = rows[stop - 1]
            if stop == len(rows) or last + len(data) != rows[stop][0]:
                self.storage.write(rows[start][0], [data for _, data in rows[start:stop]])
                start = stop
        self.clean()
