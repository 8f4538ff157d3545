"""virtio 9P transport device: it carries 9P2000.L.

The standard leaves it out but for its number (virtio 1.2 section 5); Linux says what it is
(include/uapi/linux/virtio_9p.h): one queue of requests, and a tag in the configuration space.
"""

from __future__ import annotations

import struct

from ringzero.devices.virtio.device import VIRTIO_DEVICES
from ringzero.devices.virtio.fileserver import FileServer, FileServerDevice

# VIRTIO_9P_MOUNT_TAG: there is a tag.
MOUNT_TAG = 1 << 0
_LENGTH = struct.Struct("<H")
MAX_TAG = 0xFFFF
# Linux puts a message into 128 buffers at most (trans_virtio.c: VIRTQUEUE_NUM).
QUEUE_SIZES = (128,)
REQUESTS = 0


@VIRTIO_DEVICES.register("ninep")
class Ninep(FileServerDevice):
    """A file system that the guest mounts by `tag`."""

    device_id = 9
    requests = REQUESTS

    def __init__(self, tag: str, server: FileServer) -> None:
        name = tag.encode()
        if not 0 < len(name) <= MAX_TAG:
            raise ValueError(f"a tag of {len(name)} bytes")
        super().__init__(QUEUE_SIZES, _LENGTH.pack(len(name)) + name, server, MOUNT_TAG)
