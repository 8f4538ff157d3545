"""Finding the format of an image by its content."""

from __future__ import annotations

from collections.abc import Iterator

from ringzero.disk.contract import Disk, Sample
from ringzero.disk.registry import FORMATS
from ringzero.disk.storage import Storage

_HEAD = 4096
_TAIL = 512

# What an image of a format has at its start, or so many bytes in: formats without it need not be
# loaded to be asked. A format that is not listed always is.
_SIGNS: dict[str, tuple[int, tuple[bytes, ...]]] = {
    "luks": (0, (b"LUKS",)),
    "parallels": (0, (b"Withou",)),
    "qcow2": (0, (b"QFI",)),
    "qed": (0, (b"QED",)),
    "vdi": (0x40, (b"\x7f\x10\xda\xbe",)),
    "vhdx": (0, (b"vhdxfile",)),
}
_VHD = b"conectix"
# Of sparse VMDKs; and words, one of which a descriptor has.
_VMDK = (b"KDMV", b"COWD", b"\xbe\xba\xfe\xca")
_VMDK_WORDS = (b"version", b"descriptor")


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
    score, name = max((kind.probe(sample), name) for name, kind in _candidates(sample))
    if name != "raw" and score > 1:
        return name
    # Loaded when nothing else is found: most images are of a format of ours.
    from ringzero.disk.foreign import refuse_foreign

    refuse_foreign(sample)
    return "raw"


def _candidates(sample: Sample) -> Iterator[tuple[str, type[Disk]]]:
    """Yield the formats that `sample` may be of, by name."""
    for name in FORMATS.names():
        if _is_possible(name, sample):
            yield name, FORMATS.get(name)


def _is_possible(name: str, sample: Sample) -> bool:
    head = sample.head
    if name == "vhd":
        return head.startswith(_VHD) or sample.tail.startswith(_VHD)
    if name == "vmdk":
        text = head.lower()
        return head.startswith(_VMDK) or any(word in text for word in _VMDK_WORDS)
    at, signs = _SIGNS.get(name, (0, (b"",)))
    return head[at:].startswith(signs)
