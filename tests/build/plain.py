"""Layers of images, a build's and those of its base, as plain tars, by other readers than ours."""

import gzip

import zstandard


def plain(blobs, digest):
    """Return the plain tar of a layer that lies in `blobs`, packed or not."""
    data = blobs.read(digest)
    if data.startswith(b"\x1f\x8b"):
        return gzip.decompress(data)
    if not data.startswith(b"\x28\xb5\x2f\xfd"):
        return data
    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as stream:
        return stream.read()
