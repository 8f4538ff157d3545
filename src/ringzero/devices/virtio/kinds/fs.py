"""virtio file system device (virtio 1.2 section 5.11): it carries FUSE."""

from __future__ import annotations

import struct

from ringzero.devices.virtio.device import VIRTIO_DEVICES
from ringzero.devices.virtio.fileserver import FileServer, FileServerDevice

# Section 5.11.4: the tag in UTF-8, and the number of request queues.
CONFIG = struct.Struct("<36sI")
MAX_TAG = 36
# Linux takes requests of 1 MiB (256 pages, and what stands before them) where this fits.
QUEUE_SIZES = (128, 1024)
HIPRIO, REQUESTS = 0, 1


@VIRTIO_DEVICES.register("fs")
class Fs(FileServerDevice):
    """A file system that the guest mounts by `tag`."""

    device_id = 26
    requests = REQUESTS

    def __init__(self, tag: str, server: FileServer) -> None:
        name = tag.encode()
        if not 0 < len(name) <= MAX_TAG:
            raise ValueError(f"a tag of {len(name)} bytes")
        super().__init__(QUEUE_SIZES, CONFIG.pack(name, 1), server)
