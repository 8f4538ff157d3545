"""How EROFS packs a piece of a file: by LZ4, LZMA, DEFLATE or zstd (fs/erofs/decompressor*.c of
Linux 6.12); no I/O.

What is packed is one block of LZ4, one stream of MicroLZMA or raw DEFLATE, or one frame of zstd.
"""

from __future__ import annotations

from collections.abc import Callable

from ringzero.image.fs.packed import MAX_PIECE

# z_erofs_compression_type: by number, for messages.
NAMES = ("LZ4", "LZMA", "DEFLATE", "zstd")
LZ4 = 0
# Of LZMA, in bytes: the smallest that liblzma takes.
_MIN_DICTIONARY = 4096
# Of LZ4: a byte of a length stands for 255 bytes (lz4_Block_format.md).
_LZ4_GROWTH = 255
# Of DEFLATE, without a header: 2^15 bytes, the largest window (RFC 1951).
_RAW_WINDOW = -15
# Of zstd, in bytes: mkfs.erofs takes 1 MiB at most, a piece has 16 MiB.
_MAX_WINDOW = 16 << 20


class BadPackError(ValueError):
    """Packed data that does not unpack."""


def unpack(algorithm: int, raw: bytes, length: int) -> bytes:
    """Return the first `length` bytes that `raw` unpacks to. Raises BadPackError.

    `raw` begins where the packed data does. For a number that is not in NAMES: IndexError.
    """
    found = _UNPACKERS[algorithm](raw, length)
    if len(found) < length:
        raise BadPackError("ends too soon")
    return found


def _lz4(raw: bytes, length: int) -> bytes:
    from lz4 import block

    try:
        return bytes(block.decompress(raw, uncompressed_size=length))
    except block.LZ4BlockError:
        # More may be packed there, for other files; the library unpacks all or nothing.
        room = min(_LZ4_GROWTH * len(raw), MAX_PIECE)
    try:
        return bytes(block.decompress(raw, uncompressed_size=max(room, length))[:length])
    except block.LZ4BlockError as fault:
        raise BadPackError(fault) from fault


def _lzma(raw: bytes, length: int) -> bytes:
    """MicroLZMA: the inverted properties stand for the first byte of a stream, which is 0."""
    import lzma

    properties, position = divmod(~raw[0] & 0xFF if raw else 0xFF, 45)
    literal_position, literal = divmod(position, 9)
    filters = [
        {
            "id": lzma.FILTER_LZMA1,
            # What lies farther back than the beginning is in no dictionary.
            "dict_size": max(_MIN_DICTIONARY, length),
            "lc": literal,
            "lp": literal_position,
            "pb": properties,
        }
    ]
    try:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
        return decoder.decompress(b"\0" + raw[1:], max_length=length)
    except (lzma.LZMAError, ValueError) as fault:
        raise BadPackError(fault) from fault


def _deflate(raw: bytes, length: int) -> bytes:
    import zlib

    try:
        return zlib.decompressobj(_RAW_WINDOW).decompress(raw, length)
    except zlib.error as fault:
        raise BadPackError(fault) from fault


def _zstd(raw: bytes, length: int) -> bytes:
    import zstandard

    try:
        with zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(raw) as reader:
            return reader.read(length)
    except zstandard.ZstdError as fault:
        raise BadPackError(fault) from fault


_UNPACKERS: tuple[Callable[[bytes, int], bytes], ...] = (_lz4, _lzma, _deflate, _zstd)
