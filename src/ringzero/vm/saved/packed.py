"""Memory compressed by Zstandard, as a blob: smaller, and read as a whole at a restore.

HEADER, then one Zstandard frame that holds, for each block that is not all zeroes,
BLOCK (its offset and length) and its bytes, ascending.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import zstandard

from ringzero.errors import StateError
from ringzero.host.files import host_error
from ringzero.host.memory import MemoryBase
from ringzero.vm.saved import blobs

# Magic, size of the memory.
HEADER = struct.Struct("<8sQ")
MAGIC = b"RZPACK01"
BLOCK = struct.Struct("<QI")
# As quick as a disk on one core, and a quarter of a guest's memory is left.
_LEVEL = 3
# The most memory that a frame may ask of whoever reads it: 128 MiB, as `zstd -d` allows.
_WINDOW = 1 << 27


def write(directory: Path, size: int, blocks: blobs.Blocks) -> str:
    """Write the blocks of a memory of `size` bytes as a new blob; return its digest. HostError."""
    temporary = directory / f"packed-{os.urandom(8).hex()}"

    def fill(fd: int) -> None:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(HEADER.pack(MAGIC, size))
            compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
            with compressor.stream_writer(file, closefd=False) as out:
                for offset, data in blocks:
                    out.write(BLOCK.pack(offset, len(data)) + data)

    blobs.write_file(temporary, fill)
    path = directory / blobs.digest_file(temporary)
    temporary.replace(path)
    return path.name


def read(path: Path, size: int) -> MemoryBase:
    """Return the memory of `size` bytes in a blob, unpacked. Raises StateError, HostError."""
    memory = MemoryBase(os.memfd_create("guest-ram", os.MFD_CLOEXEC), size, owned=True)
    try:
        unpack(path, size, memory.fd)
    except BaseException:
        memory.release()
        raise
    return memory


def unpack(path: Path, size: int, fd: int) -> None:
    """Unpack the memory of `size` bytes in a blob into an empty file, with its holes.

    Every number in it is checked. Raises StateError, HostError.
    """
    broken = StateError("the snapshot's memory is damaged", path=path)
    try:
        os.ftruncate(fd, size)
        with path.open("rb") as file:
            if file.read(HEADER.size) != HEADER.pack(MAGIC, size):
                raise broken
            unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
            with unpacker.stream_reader(file, read_across_frames=False) as stream:
                end = 0
                while head := stream.read(BLOCK.size):
                    if len(head) != BLOCK.size:
                        raise broken
                    offset, length = BLOCK.unpack(head)
                    if offset < end or not 0 < length <= blobs.BLOCK or offset + length > size:
                        raise broken
                    data = stream.read(length)
                    if len(data) != length:
                        raise broken
                    blobs.write_all(fd, data, offset)
                    end = offset + length
    except zstandard.ZstdError as fault:
        raise broken from fault
    except OSError as fault:
        raise host_error(fault, "read", path) from fault
