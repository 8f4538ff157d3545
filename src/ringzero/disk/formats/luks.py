"""LUKS containers, recognised so that they are refused by name ("LUKS1/LUKS2 On-Disk Format")."""

from __future__ import annotations

from typing import NoReturn

from ringzero.disk.contract import Options, Sample, Surroundings
from ringzero.disk.formats.raw import RawDisk
from ringzero.disk.registry import FORMATS
from ringzero.disk.storage import Storage
from ringzero.errors import DiskUnsupportedError

_MAGIC = b"LUKS\xba\xbe"


@FORMATS.register("luks")
class LuksDisk(RawDisk):
    """What cannot be opened."""

    format = "luks"
    create_options = ()
    open_options = ()

    @classmethod
    def probe(cls, sample: Sample) -> int:
        return 100 if sample.head.startswith(_MAGIC) else 0

    @classmethod
    def create(
        cls,
        storage: Storage,
        size: int,
        options: Options,
        around: Surroundings,
        backing: tuple[str, str] | None = None,
    ) -> NoReturn:
        raise DiskUnsupportedError("ringzero does not create encrypted images")

    @classmethod
    def open(cls, storage: Storage, around: Surroundings) -> NoReturn:
        raise DiskUnsupportedError(
            f"{storage.name} is encrypted with LUKS, which ringzero does not read",
            hint="open it with cryptsetup, or pass format=raw to hand it to the guest as it is",
            path=storage.name,
        )
