"""A socket device (virtio 1.2 section 5.10): connections between host and guest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from ringzero.config.device import DEVICE_CONFIGS, MAXIMUM_SOCKET_PATH, Addresses, DeviceConfig
from ringzero.errors import InvalidValueError
from ringzero.records import record, replace

# What a context identifier of a guest may be (virtio 1.2 section 5.10.4).
FIRST_CID, LAST_CID = 3, 0xFFFF_FFFE


@DEVICE_CONFIGS.register("vsock")
@record
class VsockConfig(DeviceConfig):
    """A socket device: `path` is the Unix socket by which the host connects to the guest.

    `cid` None means a random one. `base` is what a clone's path was made from. An empty `path`
    is none: nobody on the host answers the guest.
    """

    kind = "vsock"
    spelling = "PATH[,cid=N]"
    help = (
        "a socket device; write 'CONNECT PORT' into the Unix socket PATH to reach the "
        "guest, listen on PATH_PORT to be reached by it"
    )
    # There was only one, which snapshots know by this name.
    first_has_number = False

    path: Path
    cid: int | None = None
    base: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        path, comma, number = text.rpartition(",cid=")
        if not comma:
            path, number = text, ""
        if not path or (comma and not number.isdecimal()):
            raise InvalidValueError(f"no socket device in {text!r}", hint="write PATH[,cid=N]")
        return cls(Path(path), int(number) if number else None)

    def faults(self) -> list[str]:
        found = []
        if len(os.fsencode(self.path)) > MAXIMUM_SOCKET_PATH:
            found.append(f"vsock {self.path}: a socket's path has at most 107 bytes")
        if self.cid is not None and not FIRST_CID <= self.cid <= LAST_CID:
            found.append(f"a vsock CID of {self.cid} is outside {FIRST_CID} to {LAST_CID}")
        return found

    def stand_in(self, number: int) -> Self | str:
        # The guest reads its CID anew, and has no connections by then.
        return type(self)(Path())

    def complete(self, number: int, addresses: Addresses) -> Self:
        return self if self.cid is not None else replace(self, cid=addresses.cid)

    def renew(self, number: int, addresses: Addresses) -> Self:
        base = self.base or self.path
        path = addresses.vsock or Path(f"{base}.{addresses.name or addresses.cid}")
        return replace(self, path=path, cid=addresses.cid, base=base)
