"""Finding the format of an image by its content."""

from __future__ import annotations

from ringzero.disk.contract import Sample
from ringzero.disk.registry import FORMATS
from ringzero.disk.storage import Storage

_HEAD = 4096
_TAIL = 512


def probe(storage: Storage) -> str:
    """Return the name of the format that the bytes of `storage` are in; `raw` when none.

    Raises DiskUnsupportedError for what is recognisably no disk image, or none that is read.
    """
    tail_at = max(0, storage.size - _TAIL)
    sample = Sample(
        storage.read(0, min(_HEAD, storage.size)),
        storage.read(tail_at, storage.size - tail_at),
        storage.size,
        storage.name,
    )
    score, name = max((kind.probe(sample), name) for name, kind in FORMATS)
    if name != "raw" and score > 1:
        return name
    # Loaded when nothing else is found: most images are of a format of ours.
    from ringzero.disk.foreign import refuse_foreign

    refuse_foreign(sample)
    return "raw"
