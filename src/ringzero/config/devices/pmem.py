"""Persistent memory: a file of the host's in the guest's memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from ringzero.config.device import DEVICE_CONFIGS, DeviceConfig, file_faults
from ringzero.errors import InvalidValueError
from ringzero.records import record

_READ_ONLY = ",ro"


@DEVICE_CONFIGS.register("pmem")
@record
class PmemConfig(DeviceConfig):
    """A file, or a block device, that the guest reads and writes as memory (virtio-pmem).

    Machines that have the same file share what the host holds of it. Of one that is `read_only`,
    what the guest writes is its own, and gone with it.
    """

    kind = "pmem"
    spelling = "FILE[,ro]"
    help = (
        "file to have as persistent memory (/dev/pmem0, DAX), read-only with ',ro', for a guest "
        "that has virtio_pmem (repeatable)"
    )

    path: Path
    read_only: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        path = text.removesuffix(_READ_ONLY)
        if not path:
            raise InvalidValueError(
                f"no file in the persistent memory {text!r}", hint="write FILE or FILE,ro"
            )
        return cls(Path(path), path != text)

    @classmethod
    def faults_together(cls, devices: Sequence[Self]) -> list[str]:
        paths = Counter(device.path for device in devices)
        written = dict.fromkeys(device.path for device in devices if not device.read_only)
        return [
            f"persistent memory {path} is attached twice and written to"
            for path in written
            if paths[path] > 1
        ]

    def file_faults(self) -> list[str]:
        found = file_faults(
            "persistent memory", self.path, writable=not self.read_only, device=True
        )
        if not found and self.path.is_file() and not self.path.stat().st_size:
            return [f"persistent memory {self.path} is empty; give it a size, as truncate -s 64M"]
        return found
