"""Guest-physical memory: RAM regions over one mapping."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ringzero.errors import GuestAddressError, StateError
from ringzero.host.memory import HostMemory, MemoryImage
from ringzero.records import record

PAGE_SIZE = 4096
PAGE_SHIFT = 12

# From this size on, `write` goes through the host's file descriptor, which is quicker.
BULK = 256 * 1024

WriteListener = Callable[[int, int], None]


@record
class RamRegion:
    """`size` bytes of RAM at guest-physical `base`, at `offset` of the host mapping."""

    base: int
    size: int
    offset: int

    @property
    def end(self) -> int:
        return self.base + self.size


class GuestMemory:
    """RAM as the guest's devices and loaders see it, addressed by guest-physical address.

    `layout` lists (base, size) pairs, page-aligned, ascending, not overlapping;
    `image` is what it begins as, a copy of a frozen machine's memory of that layout.
    `large_pages` as for HostMemory.

    `files` lists (base, size) of room beside RAM, above all of it, for files (`map_file`): devices
    and vCPUs reach it in the same way, but it is no part of what is saved or copied (`size`).

    Every access outside RAM raises GuestAddressError: addresses come from the
    guest and are never trusted. Whoever writes through `view` says so with
    `mark_written` once the bytes are there, so that engines drop stale code.
    """

    def __init__(
        self,
        layout: list[tuple[int, int]],
        image: MemoryImage | None = None,
        *,
        large_pages: bool = False,
        files: Sequence[tuple[int, int]] = (),
    ) -> None:
        offset = 0
        regions: list[RamRegion] = []
        for base, size in layout:
            if base % PAGE_SIZE or size % PAGE_SIZE or size <= 0:
                raise ValueError(f"RAM region {base:#x}+{size:#x} is not page-aligned")
            if regions and base < regions[-1].end:
                raise ValueError(f"RAM region {base:#x} overlaps the one before it")
            regions.append(RamRegion(base, size, offset))
            offset += size
        self.regions = tuple(regions)
        self.size = offset
        if image is not None:
            self._check_size(image)
        # `regions` is where RAM lies; this is, for engines, with the room for files.
        self.mapped = _with_files(regions, files)
        end = max(region.offset + region.size for region in self.mapped)
        # All that has an address in the host mapping.
        self.extent = end
        self.host = HostMemory(
            "guest-ram", offset, image, large_pages=large_pages, files=end - offset
        )
        # Base, end, and how far the host's offset is from the guest's address.
        self._spans = [
            (region.base, region.end, region.offset - region.base) for region in self.mapped
        ]
        self._listeners: list[WriteListener] = []

    def offset_of(self, gpa: int, count: int) -> int:
        """Return where `count` bytes at `gpa` lie in the host mapping."""
        if count >= 0:
            # A layout has two or three regions.
            for base, end, shift in self._spans:
                if base <= gpa and gpa + count <= end:
                    return gpa + shift
        raise self._stray(gpa, count)

    def _stray(self, gpa: int, count: int) -> GuestAddressError:
        return GuestAddressError(
            f"guest-physical {gpa:#x}+{count:#x} is not RAM", address=hex(gpa), count=count
        )

    def is_ram(self, gpa: int, count: int = 1) -> bool:
        """Return whether all `count` bytes at `gpa` are RAM of one region."""
        return count >= 0 and any(
            base <= gpa and gpa + count <= end for base, end, _ in self._spans
        )

    def view(self, gpa: int, count: int) -> memoryview:
        """Return the bytes themselves, writable and without a copy."""
        if count >= 0:
            for base, end, shift in self._spans:
                if base <= gpa and gpa + count <= end:
                    start = gpa + shift
                    return self.host.view[start : start + count]
        raise self._stray(gpa, count)

    def read(self, gpa: int, count: int) -> bytes:
        """Return a copy of `count` bytes at `gpa`."""
        return bytes(self.view(gpa, count))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` to `gpa` and tell the listeners."""
        count = len(data)
        if count < BULK:
            self.view(gpa, count)[:] = data
        else:
            self.host.store(self.offset_of(gpa, count), data)
        self.mark_written(gpa, count)

    def fill(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` to `gpa` before an engine has seen the memory: no listener is told."""
        self.host.store(self.offset_of(gpa, len(data)), data)

    def clear(self, gpa: int, count: int) -> None:
        """Make `count` bytes at `gpa` zero, at no cost where nothing was written yet."""
        self.host.clear(self.offset_of(gpa, count), count)
        self.mark_written(gpa, count)

    def discard(self, gpa: int, count: int) -> int:
        """Give the whole pages within `count` bytes at `gpa` back to the host; return their bytes.

        They hold something else then, zeroes most often.
        """
        start = self.offset_of(gpa, count)
        first = -(-start // PAGE_SIZE) * PAGE_SIZE
        size = (start + count) // PAGE_SIZE * PAGE_SIZE - first
        if size <= 0:
            return 0
        self.host.discard(first, size)
        self.mark_written(gpa + first - start, size)
        return size

    def read_int(self, gpa: int, width: int) -> int:
        """Return the little-endian unsigned integer of `width` bytes at `gpa`."""
        return int.from_bytes(self.view(gpa, width), "little")

    def write_int(self, gpa: int, width: int, value: int) -> None:
        """Store `value` little-endian in `width` bytes at `gpa`."""
        self.write(gpa, (value & ((1 << width * 8) - 1)).to_bytes(width, "little"))

    def mark_written(self, gpa: int, count: int) -> None:
        """Tell engines that `count` bytes at `gpa` were changed behind their back."""
        for listener in self._listeners:
            listener(gpa, count)

    def listen(self, listener: WriteListener) -> None:
        """Call `listener(gpa, count)` after every write that is not a vCPU's own."""
        self._listeners.append(listener)

    def map_file(self, gpa: int, fd: int, count: int, *, shared: bool) -> None:
        """Have the first `count` bytes of a file, in whole pages, at `gpa`, in the room for files.

        It must not be made shorter meanwhile. What is written goes to the file where it is
        `shared`. Raises GuestAddressError, HostError.
        """
        size = -(-count // PAGE_SIZE) * PAGE_SIZE
        self.host.map_file(self.offset_of(gpa, size), fd, size, shared=shared)

    def has_written_file(self, gpa: int) -> bool:
        """Whether what is mapped at `gpa` differs from its file, which is not shared."""
        return self.host.has_written_file(self.offset_of(gpa, 1))

    def become(self, image: MemoryImage) -> None:
        """Have the content of `image`, a memory of this layout, and tell the listeners.

        The machine stands still. Raises StateError, HostError.
        """
        self._check_size(image)
        self.host.become(image)
        for region in self.regions:
            self.mark_written(region.base, region.size)

    def _check_size(self, image: MemoryImage) -> None:
        if image.size != self.size:
            raise StateError(
                "the saved memory has another size", expected=self.size, seen=image.size
            )

    def close(self) -> None:
        """Give the memory back to the host."""
        self.host.close()


def _with_files(
    regions: Sequence[RamRegion], files: Sequence[tuple[int, int]]
) -> tuple[RamRegion, ...]:
    """Return the regions with those of files, as one where an engine has room for two only."""
    if not files:
        return tuple(regions)
    first, end = files[0][0], max(base + size for base, size in files)
    last = regions[-1]
    if len(regions) > 1:
        # One region, with a gap between RAM and the files.
        return (*regions[:-1], RamRegion(last.base, end - last.base, last.offset))
    return (*regions, RamRegion(first, end - first, last.offset + last.size))
