"""The HTTP server in the wire: what is its own, and frames that make no sense."""

import random
import struct

import pytest

from ringzero.core.frames import Frame
from ringzero.net.service import ServicePort
from ringzero.net.stack import arp
from ringzero.net.stack.localservice import LocalService, Reply
from tests.chance import FUZZ, seed

ADDRESS, GUEST = bytes((169, 254, 169, 254)), bytes((10, 0, 2, 15))
MAC, GUEST_MAC = bytes.fromhex("060123456701"), bytes.fromhex("020000000015")


def answer(method, path, headers):
    return Reply(200, b"hello")


@pytest.fixture
def service():
    made = LocalService(ADDRESS, MAC, answer, lambda frame: made.sent.append(frame), lambda: 7)
    made.sent = []
    return made


def asks(target):
    return Frame(arp.request(GUEST_MAC, GUEST, target))


def segment(payload=b"", port=80, flags=2, sequence=1):
    """A frame with a TCP segment whose checksums nobody computed: they are open."""
    tcp = struct.pack(">HHIIBBHHH", 1234, port, sequence, 0, 5 << 4, flags, 8192, 0, 0)
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40 + len(payload), 0, 0, 64, 6, 0, GUEST, ADDRESS)
    words = struct.unpack(">10H", ip)
    total = sum(words) % 0xFFFF
    ip = ip[:10] + struct.pack(">H", 0xFFFF - total) + ip[12:]
    return MAC + GUEST_MAC + b"\x08\x00" + ip + tcp + payload


def test_it_says_where_it_is(service):
    assert service.wants(asks(ADDRESS).head)
    assert not service.wants(asks(GUEST).head)
    service.receive(asks(ADDRESS), 0.0)
    operation, mac, sender, target = arp.parse(service.sent[0].head[14:])
    assert (operation, mac, sender, target) == (arp.REPLY, MAC, ADDRESS, GUEST)


def test_frames_for_others_go_on():
    got = []

    class Port:
        def fetch(self, handle, limit, *, coalesce=False):
            for target in (ADDRESS, GUEST):
                handle(asks(target))
            return False

        def deliver(self, frames):
            got.extend(frames)
            return len(frames)

        def settle(self):
            pass

        def set_link(self, up):
            pass

    passed = []
    port = ServicePort(Port(), lambda: None, ADDRESS, MAC, answer)
    assert port.fetch(passed.append, 64) is False
    assert [frame.head for frame in passed] == [asks(GUEST).head]
    assert len(got) == 1
    port.close()


def test_hostile_frames_end_nothing(service, recwarn):
    chance = random.Random(seed())
    whole = [segment(), segment(b"GET / HTTP/1.1\r\n\r\n", flags=0x18), asks(ADDRESS).head]
    for round_ in range(3000 * FUZZ):
        data = bytearray(chance.choice(whole))
        for _ in range(chance.randrange(4)):
            data[chance.randrange(12, len(data))] = chance.randrange(256)
        frame = Frame(bytes(data[: chance.choice((len(data), chance.randrange(len(data) + 1)))]))
        if service.wants(frame.head):
            service.receive(frame, round_ / 100)
        service.flush()
        due = service.deadline()
        if due is not None and due <= round_ / 100:
            service.expire(round_ / 100)
    # A fault of ours would have been noted.
    assert service.faults.count == 0
    service.receive(asks(ADDRESS), 1e6)
    assert arp.parse(service.sent[-1].head[14:]) is not None
