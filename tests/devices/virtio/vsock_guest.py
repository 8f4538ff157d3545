"""The guest's side of a socket device, for tests: packets by hand, and a host that notes them."""

from __future__ import annotations

from dataclasses import dataclass, field

from ringzero.devices.virtio.kinds.vsock import (
    EVENT,
    HEADER,
    HOST_CID,
    RECEIVE,
    TRANSMIT,
    Packet,
    Vsock,
)
from tests.devices.virtio.driver import Driver

CID = 77
ROOM = 4096


@dataclass
class Heard:
    """An endpoint that notes what it hears."""

    data: bytearray = field(default_factory=bytearray)
    open: bool = False
    over: bool = False
    flags: int = 0
    rooms: int = 0
    connection: object = None

    def opened(self):
        self.open = True

    def receive(self, data):
        self.data += data

    def shut(self, flags):
        self.flags |= flags

    def room(self):
        self.rooms += 1

    def closed(self):
        assert not self.over
        self.over = True


class Host:
    """Takes what is asked for on ports below 1000."""

    def __init__(self):
        self.ends = []

    def requested(self, connection):
        if connection.host_port >= 1000:
            return None
        self.ends.append(Heard(connection=connection))
        return self.ends[-1]


class Guest:
    """A driver with its buffers out, that speaks the protocol's packets."""

    def __init__(self, features=0, buffers=32, host=None):
        self.host = host or Host()
        self.device = Vsock(CID, self.host)
        self.driver = Driver(self.device, features)
        self.start(buffers)

    def start(self, buffers=32):
        driver = self.driver
        driver._free = 0x10000
        driver.queues.clear()
        driver.memory.write(0x10000, bytes(0x10000))
        driver.start()
        self.places = []
        for _ in range(buffers):
            self.offer()
        self.events = [driver.add(EVENT, writable=[4])[0] for _ in range(8)]

    def offer(self, size=ROOM):
        self.places += self.driver.add(RECEIVE, writable=[44, size])[:1]

    def send(self, operation, guest_port=5, host_port=6, data=b"", **other):
        values = {
            "source": CID, "destination": HOST_CID, "guest_port": guest_port,
            "host_port": host_port, "length": len(data), "type": 1, "operation": operation,
            "flags": 0, "buffer": 1 << 18, "taken": 0,
        } | other  # fmt: skip
        used = self.driver._free
        self.driver.add(TRANSMIT, readable=[HEADER.pack(*values.values()), data])
        self.driver._free = used
        self.driver.used(TRANSMIT)
        return self.packets()

    def packets(self):
        """What the device sent: (packet, data); the buffers are given back."""
        found = []
        for length in self.driver.used(RECEIVE):
            place = self.places.pop(0)
            packet = Packet(*HEADER.unpack(self.driver.memory.read(place, 44)))
            data = self.driver.memory.read(place + 64, length - 44)
            assert packet.length == len(data) and packet.type == 1
            found.append((packet, data))
        for _ in found:
            self.offer()
        return found

    def operations(self):
        return [packet.operation for packet, _ in self.packets()]

    def take_event(self):
        """Deal with one event as Linux does: look, then give the buffer back."""
        assert self.driver.used(EVENT) == [4]
        event = self.driver.memory.read(self.events.pop(0), 4)
        self.driver.add(EVENT, writable=[4])
        return event
