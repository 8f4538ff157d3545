"""The contract of a disk image: what every format gives and every user may rely on.

`Disk` is what machines and tools see. The public methods check ranges and
rights once, for all formats, and then call the `_…` hooks that a format
implements. Offsets and lengths are bytes of the guest's disk throughout;
`host` offsets are bytes of the image file.

Threads: every public method may be called from any thread, several at a time.
What two overlapping requests in flight leave behind is one or the other,
sector by sector; a request that begins after another has returned sees it.

Durability: what was written is on stable storage once a later `flush` has
returned, and not necessarily before. At any other moment a crash leaves an
image that opens and whose `check` finds leaked clusters at most.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

from ringzero.disk import batch
from ringzero.disk.filenames import name_to_write
from ringzero.disk.formatnames import format_name
from ringzero.disk.storage import Storage
from ringzero.disk.vectors import Buffer, Buffers, Views, as_views, cut, fill_zeroes, total
from ringzero.errors import DiskReadOnlyError, DiskUnsupportedError, InvalidValueError
from ringzero.records import field, mutable_record, record
from ringzero.units import parse_size

SECTOR = 512


class Kind(Enum):
    """What one layer says about a range."""

    DATA = "data"  # bytes are stored, as they are
    COMPRESSED = "compressed"  # bytes are stored, compressed
    ZERO = "zero"  # this layer says: zeroes
    ABSENT = "absent"  # this layer says nothing; ask the backing file


class Run(NamedTuple):
    """A range of equal standing in one layer, as long as the format can say cheaply.

    `host` is the offset in `storage` where the bytes are (None: nowhere).
    `writable` is true where a write may go straight to `host`.
    """

    length: int
    kind: Kind
    host: int | None = None
    storage: Storage | None = None
    writable: bool = False


class Extent(NamedTuple):
    """A range of the disk as the whole chain sees it (what `disk map` prints).

    `kind` is DATA, COMPRESSED, ZERO, or ABSENT where no layer holds anything
    (it reads as zeroes). `depth` counts layers: 0 is the image itself. `host`
    is the byte offset in the file `path`, where the bytes are stored plain.
    """

    offset: int
    length: int
    kind: Kind
    depth: int
    host: int | None = None
    path: str | None = None

    @property
    def reads_zero(self) -> bool:
        """Whether the range is known, without reading it, to hold only zeroes."""
        return self.kind in (Kind.ZERO, Kind.ABSENT)


@record
class Snapshot:
    """One internal snapshot. `date` is Unix seconds, `vm_clock` nanoseconds, `vm_state` bytes."""

    id: str
    name: str
    date: int
    vm_clock: int = 0
    vm_state: int = 0
    disk_size: int | None = None
    # Of the moment it was made, behind `date`; instructions counted by then, where they were.
    date_ns: int = 0
    icount: int | None = None


@mutable_record
class CheckReport:
    """What `check` found. `errors` hold wrong data; `leaks` only waste space (clusters)."""

    errors: int = 0
    leaks: int = 0
    errors_fixed: int = 0
    leaks_fixed: int = 0
    allocated_clusters: int = 0
    total_clusters: int = 0
    compressed_clusters: int = 0
    # Those that do not lie behind the one before; a compressed one never does.
    fragmented_clusters: int = 0
    image_end: int = 0
    messages: list[str] = field(default_factory=list)

    # Enough to see what is wrong; a hostile image could produce millions.
    MESSAGE_LIMIT: ClassVar[int] = 100

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong any more."""
        return self.errors == self.errors_fixed and self.leaks == self.leaks_fixed

    def error(self, message: str, *, fixed: bool = False) -> None:
        self.errors += 1
        self.errors_fixed += fixed
        self._note(message)

    def leak(self, message: str, count: int = 1, *, fixed: bool = False) -> None:
        self.leaks += count
        self.leaks_fixed += count if fixed else 0
        self._note(message)

    def _note(self, message: str) -> None:
        if len(self.messages) < self.MESSAGE_LIMIT:
            self.messages.append(message)


class Repair(Enum):
    """How much `check` may change."""

    NOTHING = "nothing"
    LEAKS = "leaks"
    ALL = "all"


@mutable_record
class DiskInfo:
    """What `disk info` tells of one layer."""

    filename: str
    format: str
    virtual_size: int
    actual_size: int
    cluster_size: int | None = None
    backing_filename: str | None = None
    backing_format: str | None = None
    dirty: bool = False
    corrupt: bool = False
    compressed: bool = False
    snapshots: list[Snapshot] = field(default_factory=list)
    specific: dict[str, Any] = field(default_factory=dict)


@record
class Option:
    """One creation option of a format (`-o name=value`), named as in `qemu-img`.

    `parse` turns the text into a value and raises ValueError.
    """

    name: str
    parse: Callable[[str], Any]
    default: Any
    help: str

    @classmethod
    def size(cls, name: str, default: int, text: str) -> Option:
        return cls(name, parse_size, default, text)

    @classmethod
    def flag(cls, name: str, default: bool, text: str) -> Option:
        return cls(name, parse_flag, default, text)

    @classmethod
    def choice(cls, name: str, choices: Sequence[str], default: str, text: str) -> Option:
        def parse(value: str) -> str:
            if value not in choices:
                raise ValueError(f"choose one of: {', '.join(choices)}")
            return value

        return cls(name, parse, default, f"{text} ({', '.join(choices)})")


# For formats that know their parent by a number, and whose name for it may be another host's.
PARENT_OPTION = Option(
    "parent", str, None, "the file below a differencing image, from the image or from here"
)


def parse_flag(text: str) -> bool:
    """Return the truth of "on" or "off"; raises ValueError."""
    if text.lower() in ("on", "yes", "true", "1"):
        return True
    if text.lower() in ("off", "no", "false", "0"):
        return False
    raise ValueError("write on or off")


class Options(dict[str, Any]):
    """Values for a format's options: every option has one, unknown names are refused."""

    def __init__(self, table: Sequence[Option], given: Mapping[str, Any], noun: str) -> None:
        super().__init__({option.name: option.default for option in table})
        for name, value in given.items():
            option = next((option for option in table if option.name == name), None)
            if option is None:
                known = ", ".join(self) or "none"
                raise InvalidValueError(
                    f"{noun} has no option {name!r}", hint=f"its options: {known}", option=name
                )
            if not isinstance(value, str):
                self[name] = value
                continue
            try:
                self[name] = option.parse(value)
            except (ValueError, InvalidValueError) as fault:
                raise InvalidValueError(
                    f"option {name}={value!r} makes no sense: {fault}", hint=option.help
                ) from fault


@record
class Sample:
    """What `probe` may look at: the first 4 KiB, the last 512 bytes, the length, the name."""

    head: bytes
    tail: bytes
    size: int
    name: str


class Surroundings(ABC):
    """How a format reaches other files: by the names written in the image, under policy.

    Those names are hostile input. The implementation in `opening` resolves
    them against the image's directory and refuses devices, loops, and other
    people's files.
    """

    path: Path | None
    read_only: bool
    options: Options
    # False: the user asked for this layer alone.
    with_backing: bool = True

    @abstractmethod
    def open_backing(self, name: str, format: str | None) -> Disk | None:
        """Open the backing file read-only (None when the user asked for this layer alone)."""

    def open_parent(
        self,
        names: Sequence[str],
        format: str,
        is_it: Callable[[Disk], bool],
        *,
        given: str | None = None,
    ) -> Disk | None:
        """Open the first of `names` that is a disk of which `is_it` holds, or `given` alone.

        For formats that know their parent by a number: `names` are what it may be called on
        this host, the likeliest first, and `given` is what the user said. None when the user
        asked for this layer alone. Raises NotFoundError, DiskFormatError.
        """
        raise DiskUnsupportedError(f"{self.path} has no parent that can be opened here")

    def look_at(self, name: str, format: str | None) -> Disk:
        """Open a file that is to become the backing file, to see what it is."""
        raise DiskUnsupportedError(f"{name} cannot be looked at here")

    def open_inside(self, part: Storage) -> Disk:
        """Open the image that a part of this file is, which names no other files.

        Owns `part` from then on, unless it raises.
        """
        raise DiskUnsupportedError(f"{part.name} cannot be opened here")

    @abstractmethod
    def open_storage(self, *names: str) -> Storage:
        """Open a further file of the image itself, with the image's own rights.

        It is the first of `names`, which are all that it may be called, that is there.
        """

    def is_own(self, name: str) -> bool:
        """Whether a name in the image leads to the image's own file."""
        return False

    @abstractmethod
    def create_storage(self, name: str) -> Storage:
        """Make a further file of the image itself, empty; it may exist only when overwriting."""

    def remove_storage(self, name: str) -> None:
        """Remove a file of the image itself that it no longer names."""
        raise DiskUnsupportedError(f"{name} cannot be removed here")


class Compression(ABC):
    """Writing compressed clusters, for formats that have them.

    `pack` is pure and may run in many threads; `store` keeps the order it is
    called in. `unit` is the number of guest bytes that are packed together.
    """

    unit: int
    # Whether the image takes nothing but packed units, each once.
    only: ClassVar[bool] = False

    @abstractmethod
    def pack(self, data: Buffer) -> bytes | None:
        """Return `data` (one unit) compressed, or None when that would not make it smaller."""

    @abstractmethod
    def store(self, offset: int, packed: bytes) -> None:
        """Enter a packed unit at the guest offset `offset`, a multiple of `unit`."""


class Snapshots(ABC):
    """Internal snapshots. What is read is chosen as `snapshotnames` says, what goes by name.

    NotFoundError when there is none.
    """

    @abstractmethod
    def list(self) -> Sequence[Snapshot]: ...

    @abstractmethod
    def create(self, name: str) -> Snapshot: ...

    @abstractmethod
    def apply(self, which: str) -> None: ...

    @abstractmethod
    def delete(self, which: str) -> None: ...


class Disk(ABC):
    """A disk image that is open. Made by `open_disk`, never directly.

    `size` is the guest-visible size in bytes. `backing` is the layer below,
    or None. A `Disk` is a context manager that flushes and closes.
    """

    format: ClassVar[str]
    # What `create` takes, and what `open` takes.
    create_options: ClassVar[tuple[Option, ...]] = ()
    open_options: ClassVar[tuple[Option, ...]] = ()
    # Whether an image may have a backing file (parent).
    can_have_backing: ClassVar[bool] = False

    path: Path | None
    read_only: bool
    # Whether what is read from the backing file is kept in this layer.
    copy_on_read: bool = False
    backing: Disk | None = None
    backing_name: str | None = None
    backing_format: str | None = None

    # ---- what a format is -------------------------------------------------

    @classmethod
    @abstractmethod
    def probe(cls, sample: Sample) -> int:
        """Return how sure it is that `sample` is of this format: 0 not at all, 100 certain."""

    @classmethod
    @abstractmethod
    def open(cls, storage: Storage, around: Surroundings) -> Self:
        """Open the image in `storage`.

        Raises DiskFormatError for bytes that the format does not allow and
        DiskUnsupportedError for a feature that is not implemented. Owns
        `storage` from then on, unless it raises. Writes nothing when
        `around.read_only`.
        """

    @classmethod
    def create(
        cls,
        storage: Storage,
        size: int,
        options: Options,
        around: Surroundings,
        backing: tuple[str, str] | None = None,
    ) -> None:
        """Lay an empty image of `size` bytes into `storage`, which is empty.

        `backing` is the name and the format of the backing file, to be
        written into the image as they are.
        """
        raise DiskUnsupportedError(f"ringzero does not create {cls.format} images")

    # ---- what a machine uses ----------------------------------------------

    @property
    @abstractmethod
    def size(self) -> int:
        """The guest-visible size in bytes."""

    def read_into(self, offset: int, buffers: Buffers) -> None:
        """Fill `buffers`, one after the other, with the bytes from `offset` on.

        Raises InvalidValueError outside the disk, DiskError when the host fails.
        """
        views = as_views(buffers)
        length = total(views)
        self._check_range(offset, length)
        if length:
            self._read(offset, views)

    def announce(self, offset: int, length: int) -> None:
        """Tell the host that a range will be read soon. Costs little, promises nothing."""
        self._check_range(offset, length)
        if length:
            self._announce(offset, length)

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`."""
        self._check_range(offset, length)
        data = bytearray(length)
        if length:
            self._read(offset, [memoryview(data)])
        return bytes(data)

    def write(self, offset: int, buffers: Buffers) -> None:
        """Write `buffers`, one after the other, from `offset` on.

        Raises DiskReadOnlyError, and what `read_into` raises.
        """
        views = as_views(buffers)
        length = total(views)
        self._check_write(offset, length)
        if length:
            self._write(offset, views)

    def read_batch(self, requests: Sequence[batch.Request]) -> None:
        """Do several reads, (offset, buffers) each, as if all were in flight together.

        Raises what `read_into` raises; nothing is read when one is outside the disk.
        """
        size = self.size
        checked: list[batch.Checked] = []
        sum_of_lengths = 0
        for offset, buffers in requests:
            views = as_views(buffers)
            length = total(views)
            if not 0 <= offset <= offset + length <= size:
                self._check_range(offset, length)
            if length:
                checked.append((offset, views))
                sum_of_lengths += length
        batch.read(
            checked,
            sum_of_lengths,
            ready=self._read_ready,
            announce=self._announce,
            fill=self._read,
        )

    def read_ready(self, requests: Sequence[tuple[int, memoryview]]) -> list[batch.Checked]:
        """Do those of the reads that need not wait for the host's disk; return the others.

        Raises what `read_into` raises; nothing is read when one is outside the disk.
        """
        size = self.size
        checked: list[batch.Checked] = []
        for offset, view in requests:
            if not 0 <= offset <= offset + len(view) <= size:
                self._check_range(offset, len(view))
            checked.append((offset, [view]))
        return self._read_ready(checked)

    def write_batch(self, requests: Sequence[batch.Request]) -> None:
        """Do several writes, (offset, buffers) each, in no order; raises what `write` raises."""
        if self.read_only and requests:
            raise self._read_only_error()
        size = self.size
        checked: list[batch.Checked] = []
        for offset, buffers in requests:
            views = as_views(buffers)
            length = total(views)
            if not 0 <= offset <= offset + length <= size:
                self._check_range(offset, length)
            if length:
                checked.append((offset, views))
        self._write_batch(checked)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make a range read as zeroes; with `unmap`, its space may be given back."""
        self._check_write(offset, length)
        if length:
            self._write_zeroes(offset, length, unmap)

    def discard(self, offset: int, length: int) -> None:
        """Say that a range is no longer needed. It then reads as zeroes or as before.

        On a raw block device it reads as whatever the device makes of it.
        """
        self._check_write(offset, length)
        if length:
            self._discard(offset, length)

    def flush(self) -> None:
        """Return when everything that was written before the call survives a loss of power."""
        if not self.read_only:
            self._flush()

    # ---- what tools use ---------------------------------------------------

    def block_status(
        self, offset: int = 0, length: int | None = None, *, layers: int | None = None
    ) -> Iterator[Extent]:
        """Yield the extents of a range, in order, neighbours of equal standing joined.

        `layers` is how many layers to ask (1: this one alone, where ABSENT
        then means "ask the backing file"); default: the whole chain.
        """
        if length is None:
            length = self.size - offset
        self._check_range(offset, length)
        return _joined(self._status(offset, length, 0, layers))

    def resize(self, size: int) -> None:
        """Make the disk `size` bytes long, a multiple of 512. New bytes are zero."""
        if self.read_only:
            raise self._read_only_error()
        if size < 0 or size % SECTOR:
            raise InvalidValueError(
                f"a disk of {size} bytes is not possible", hint="use a multiple of 512", size=size
            )
        if size != self.size:
            self._resize(size)

    @property
    def snapshots(self) -> Snapshots | None:
        """The internal snapshots, or None when the format has none."""
        return None

    @property
    def compression(self) -> Compression | None:
        """The way to write compressed clusters, or None when the format has none."""
        return None

    @property
    def cluster_size(self) -> int | None:
        """The unit in which the format maps the disk, in bytes."""
        return None

    def room_for(self, ranges: Sequence[tuple[int, int]]) -> int:
        """Return by how many bytes the image's files grow, at most, when `ranges` are written.

        They are (offset, length) each, in order and apart. An image that has all its space
        does not grow.
        """
        return 0

    def sparse_files(self) -> Sequence[Storage]:
        """Return the files that may have holes where `block_status` tells of data."""
        return ()

    @abstractmethod
    def info(self) -> DiskInfo:
        """Describe this layer."""

    def chain(self) -> list[Disk]:
        """Return this layer and all below it, from the top."""
        layers: list[Disk] = []
        layer: Disk | None = self
        while layer is not None:
            layers.append(layer)
            layer = layer.backing
        return layers

    def check(self, repair: Repair = Repair.NOTHING) -> CheckReport:
        """Verify the image's structures and, when asked, mend them."""
        raise DiskUnsupportedError(f"{self.format} images have nothing to check")

    def change_backing(self, name: str | None, format: str | None) -> None:
        """Write another backing file into the image; the data is not touched (see rebase)."""
        if self.read_only:
            raise self._read_only_error()
        self._change_backing(
            None if name is None else name_to_write(name),
            None if format is None else format_name(format),
        )

    def make_empty(self) -> None:
        """Forget all data of this layer, so that the backing file shows through everywhere."""
        raise DiskUnsupportedError(f"a {self.format} image cannot be emptied")

    def close(self) -> None:
        """Write what is pending, without waiting for stable storage, and let go of everything."""
        try:
            self._close()
        finally:
            if self.backing is not None:
                self.backing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()

    # ---- what a format implements -----------------------------------------
    # Ranges are inside the disk and not empty; rights have been checked.

    @abstractmethod
    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        """Yield what this layer says about a range, in order."""

    @abstractmethod
    def _read(self, offset: int, views: Views) -> None: ...

    def _read_ready(self, requests: Sequence[batch.Checked]) -> list[batch.Checked]:
        """Do the reads that need not wait for the host's disk; return the others."""
        return list(requests)

    def _announce(self, offset: int, length: int) -> None:
        """Do what `announce` says, for a range inside the disk."""
        return

    @abstractmethod
    def _write(self, offset: int, views: Views) -> None: ...

    def _write_batch(self, requests: Sequence[batch.Checked]) -> None:
        """Do several writes, in any order."""
        for offset, views in requests:
            self._write(offset, views)

    @abstractmethod
    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None: ...

    @abstractmethod
    def _discard(self, offset: int, length: int) -> None: ...

    @abstractmethod
    def _flush(self) -> None: ...

    def _change_backing(self, name: str | None, format: str | None) -> None:
        raise DiskUnsupportedError(f"{self.format} images have no backing file")

    def _resize(self, size: int) -> None:
        raise DiskUnsupportedError(
            f"a {self.format} image cannot be resized", hint="convert it to another size or format"
        )

    @abstractmethod
    def _close(self) -> None: ...

    # ---- shared by formats ------------------------------------------------

    def _read_backing(self, offset: int, views: Views) -> None:
        """Fill `views` from the backing file; zeroes where it has none or has ended."""
        backing = self.backing
        there = max(0, backing.size - offset) if backing is not None else 0
        length = total(views)
        if backing is not None and there:
            backing._read(offset, views if there >= length else cut(views, 0, there))
        if there < length:
            fill_zeroes(cut(views, there, length - there) if there else views)

    def _status(self, offset: int, length: int, depth: int, layers: int | None) -> Iterator[Extent]:
        below = self.backing if layers is None or depth + 1 < layers else None
        for run in self._runs(offset, length):
            if below is None and run.kind is not Kind.COMPRESSED:
                path = run.storage.name if run.storage is not None else None
                yield Extent(offset, run.length, run.kind, depth, run.host, path)
                offset += run.length
                continue
            covered = 0
            if run.kind is Kind.ABSENT and below is not None:
                covered = min(run.length, max(0, below.size - offset))
                if covered:
                    yield from below._status(offset, covered, depth + 1, layers)
            if covered < run.length:
                path = run.storage.name if run.storage is not None else None
                host = run.host if run.kind is not Kind.COMPRESSED else None
                yield Extent(offset + covered, run.length - covered, run.kind, depth, host, path)
            offset += run.length

    def _check_range(self, offset: int, length: int) -> None:
        if not 0 <= offset <= offset + length <= self.size:
            raise InvalidValueError(
                f"bytes {offset} to {offset + length} are not on a disk of {self.size} bytes",
                offset=offset,
                length=length,
                size=self.size,
            )

    def _check_write(self, offset: int, length: int) -> None:
        if self.read_only:
            raise self._read_only_error()
        self._check_range(offset, length)

    def _read_only_error(self) -> DiskReadOnlyError:
        return DiskReadOnlyError(
            f"{self.path or self.format} is open read-only",
            hint="open it for writing, or put an overlay on it",
            path=self.path,
        )


def _joined(extents: Iterator[Extent]) -> Iterator[Extent]:
    """Join neighbours that differ only in where they begin."""
    held: Extent | None = None
    for extent in extents:
        if held is None:
            held = extent
            continue
        follows = (
            held.kind is extent.kind
            and held.depth == extent.depth
            and held.path == extent.path
            and (
                held.host is extent.host is None
                or (held.host is not None and held.host + held.length == extent.host)
            )
        )
        if follows:
            held = held._replace(length=held.length + extent.length)
        else:
            yield held
            held = extent
    if held is not None:
        yield held
