"""What a copy of a machine gets of its own before it goes on: its identity.

Two parts of the guest hear of it. Any system with a driver for the VM
generation identifier does from the device (`ringzero.devices.chips.vmgenid`).
ringzero's own guests have a small resident program besides
(`ringzero/image/guest/identity.py`), which reads records
(`ringzero.image.guest.identity_record`) from a port of its own and answers on the agent's
control port.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from ringzero.config.devices.net import NetConfig
from ringzero.config.devices.vsock import FIRST_CID, LAST_CID
from ringzero.config.machine import MachineConfig
from ringzero.errors import InvalidValueError
from ringzero.image.guest import identity_record
from ringzero.image.guest.identity_record import ENTROPY_SIZE, NAME_SIZE
from ringzero.records import field, record, replace

GENERATION_SIZE = 16


def random_mac() -> str:
    """Return a MAC address of the locally administered ones, 02:xx:xx:xx:xx:xx."""
    return ":".join(f"{byte:02x}" for byte in b"\2" + os.urandom(5))


def random_cid() -> int:
    """Return an address for a guest's socket device; of four thousand million, any."""
    return FIRST_CID + int.from_bytes(os.urandom(8), "little") % (LAST_CID - FIRST_CID + 1)


@record
class Identity:
    """What a clone is given before its first instruction.

    `name` is that of the machine and of its guest; None keeps the one that
    there is. `generation` is its VM generation identifier, `entropy` new seed
    for its random numbers. `now` is UTC in nanoseconds, when the identity was `made`: to this,
    and what has passed since, its wall clock is set, never back; None lets it go on from where
    the original's stood.
    `mac` and `cid` are its addresses where it has a network or a socket device; `vsock` is
    the path of the latter on the host, None means the original's with ".NAME" or ".CID" behind
    it. `net` is another network than the original's for the first interface; a clone connects to
    its networks but never listens for one. `mac` is the first interface's, those of the others
    follow it. Raises InvalidValueError.
    """

    name: str | None = None
    generation: bytes = field(default_factory=lambda: os.urandom(GENERATION_SIZE))
    entropy: bytes = field(default_factory=lambda: os.urandom(ENTROPY_SIZE), repr=False)
    now: int | None = field(default_factory=time.time_ns)
    mac: str = field(default_factory=random_mac)
    cid: int = field(default_factory=random_cid)
    vsock: Path | None = None
    net: NetConfig | None = None
    made: int = field(default_factory=time.time_ns, repr=False)

    def __post_init__(self) -> None:
        if len(self.generation) != GENERATION_SIZE or len(self.entropy) != ENTROPY_SIZE:
            raise InvalidValueError("an identity has 16 bytes of generation and 64 of entropy")
        if self.name is not None and not 0 < len(self.name.encode()) <= NAME_SIZE:
            raise InvalidValueError(
                f"a host name has 1 to {NAME_SIZE} bytes, not {self.name!r}",
                hint="give the copy a shorter name",
            )

    def mac_of(self, number: int) -> str:
        """Return the address of an interface: `mac` of the first, the following ones after it."""
        value = int(self.mac.replace(":", ""), 16)
        # The upper half, in which groups and vendors show, stays.
        value = value & ~0xFF_FFFF | value + number & 0xFF_FFFF
        return ":".join(f"{byte:02x}" for byte in value.to_bytes(6, "big"))

    def complete(self, config: MachineConfig) -> MachineConfig:
        """Return the description of a new machine, with addresses for those that were left open."""
        return config.map_devices(lambda number, device: device.complete(number, self))

    def adopt(self, config: MachineConfig) -> MachineConfig:
        """Return the description of the clone with this identity of a machine with `config`."""
        if self.name is not None and self.name != config.name:
            config = replace(config, name=self.name)
        return config.map_devices(lambda number, device: device.renew(number, self))

    def record(
        self,
        clock: int | None = None,
        macs: Sequence[str] = (),
        counter: tuple[int, int] = (0, 0),
    ) -> bytes:
        """Return the record for the guest, which sets its wall clock to `clock` nanoseconds.

        That is when its time-stamp counter showed the first of `counter`; the other is its hertz.
        `macs` become the addresses of its network interfaces, in the order in which it has found
        them.
        """
        return identity_record.pack(self.entropy, clock, self.name, macs, counter)
