"""What real clients and libvirtd 9.0 (Debian 12) said to one another.

`data/packets.jsonl` has one or two packets of each procedure, direction and status. They were
recorded between unmodified virsh, virt-install, virt-manager, virt-viewer, vagrant-libvirt,
libvirt-python and Ansible, and libvirtd with QEMU, by a proxy on its socket. A line has the client,
the side that sent the packet (C or S), and all of its bytes. RINGZERO_LIBVIRT_RECORDINGS names a
folder with whole conversations (*.jsonl, a header and a body in each line).
"""

import functools
import json
import os
from pathlib import Path

from ringzero.doors.libvirt.limits import PACKET
from ringzero.doors.libvirt.procedures import QEMU_PROGRAM, REMOTE_PROGRAM
from ringzero.doors.libvirt.wire import (
    KEEPALIVE_PROGRAM,
    Decoder,
    Packet,
    PacketStatus,
    PacketType,
)

DATA = Path(__file__).parent / "data"
PROGRAMS = {"remote": REMOTE_PROGRAM, "qemu": QEMU_PROGRAM, "keepalive": KEEPALIVE_PROGRAM}


@functools.cache
def packets():
    """Return the packets of the small set, with who sent them."""
    found = []
    for line in (DATA / "packets.jsonl").read_text().splitlines():
        item = json.loads(line)
        (packet,) = Decoder(PACKET).feed(bytes.fromhex(item["hex"]))
        found.append((f"{item['client']} ({item['side']})", packet))
    return found


def conversations():
    """Yield the whole recordings, where they are at hand: names and packets."""
    folder = os.environ.get("RINGZERO_LIBVIRT_RECORDINGS")
    for path in sorted(Path(folder).glob("*.jsonl")) if folder else ():
        found = []
        for line in path.read_text().splitlines():
            item = json.loads(line)
            body = bytes.fromhex(item.get("hex", ""))
            # Of long ones only the beginning was kept.
            if "proc" not in item or item["len"] != len(body) + 28:
                continue
            kind, status = PacketType(item["type"]), PacketStatus(item["status"])
            packet = Packet(
                PROGRAMS[item["prog"]], 1, item["proc"], kind, item["serial"], status, body
            )
            found.append((f"{path.stem} ({item['d']})", packet))
        yield path.stem, found
