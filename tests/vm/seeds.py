"""Seeds of machines that never ran: small memory, a disk, a state that is as good as any."""

from __future__ import annotations

import os
from pathlib import Path

from ringzero.config.machine import MachineConfig
from ringzero.disk import open_disk
from ringzero.disk.instant import LiveDisk
from ringzero.host.memory import MemoryBase, MemoryImage
from ringzero.vm.seed import Seed
from ringzero.vm.state import MachineState

MEMORY = 32 << 20
DISK = 1 << 20


def image(pages: dict[int, bytes], changed=(), size=MEMORY) -> MemoryImage:
    """Return a memory with `pages` (offset to bytes)."""
    fd = os.memfd_create("seed", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    for offset, data in pages.items():
        os.pwrite(fd, data, offset)
    return MemoryImage(MemoryBase(fd, size, owned=True), tuple(changed))


def content(memory: MemoryImage) -> bytes:
    """Return the whole of a memory."""
    data = bytearray(os.pread(memory.base.fd, memory.size, 0))
    for offset, patch in memory.changed:
        data[offset : offset + len(patch)] = patch
    return bytes(data)


def seed(place: Path, text: bytes = b"one", changed=()) -> Seed:
    """Return a seed whose memory, disk and state hold `text`; the disk's file is in `place`."""
    path = place / "disk.img"
    path.write_bytes(text.ljust(DISK, b"\0"))
    live = LiveDisk(open_disk(path, format="raw"))
    instant = live.instant()
    live.close()
    config = MachineConfig.create(memory=MEMORY, disks=[f"{path},format=raw"])
    pages = {0x1000: b"same in all", 0x100000: b"same too" * 9999, 0x1F00000: text}
    state = MachineState({"version": 2, "devices": {"serial": {"text": text.decode()}}})
    return Seed(config, state, image(pages, changed), [instant])


def save(store, place: Path, name: str, text: bytes = b"one", lineage=(), **how):
    """Save such a seed in `store`."""
    with seed(place, text) as value:
        return store.save_seed(value, name, lineage=tuple(lineage), engine="soft", **how)


def ancestors(snapshot) -> tuple[str, ...]:
    """Return the lineage of what is saved after `snapshot`."""
    return (snapshot.identifier, *snapshot.manifest.lineage)
