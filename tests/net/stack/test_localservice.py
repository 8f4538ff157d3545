"""The HTTP server in the wire: what is its own, and frames that make no sense."""

import random
import re
import struct
from collections import deque

import pytest

from ringzero.core.frames import Frame
from ringzero.net.service import ServicePort
from ringzero.net.stack import arp
from ringzero.net.stack.localservice import LocalService, Reply, _Conversation
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


class Wire:
    """A guest's connection that takes as much as it has room for."""

    def __init__(self, answer, room=1 << 16):
        self.room, self.said, self.ends, self.inbox = room, b"", 0, deque()
        self.talk = _Conversation(self, answer)

    def send(self, data):
        assert not self.ends and len(data) <= self.room
        self.said += data
        self.room -= len(data)

    def finish(self):
        self.ends += 1

    def consume(self, count):
        assert count == len(self.inbox.popleft())

    def give(self, data):
        taken = self.talk.receive([data], len(data)) if not self.inbox else 0
        if taken < len(data):
            self.inbox.append(data[taken:])

    def drain(self, times=400):
        for _ in range(times):
            self.room = 1 << 16
            if not self.ends:
                self.talk.room()


def test_a_guest_that_reads_nothing_is_answered_no_further():
    asked = []

    def answer(method, path, headers):
        asked.append(path)
        return Reply(200, path.encode() * 9000)

    wire = Wire(answer)
    requests = [b"GET /%04d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(200)]
    for at in range(0, 200, 50):
        wire.give(b"".join(requests[at : at + 50]))
    assert len(asked) < 5 and len(wire.inbox) == 3
    wire.talk.ended()
    wire.drain()
    # All are answered, in their order, and then it is over.
    assert re.findall(rb"\r\n\r\n/(\d{4})", wire.said) == [b"%04d" % n for n in range(200)]
    assert wire.ends == 1


def test_a_long_answer_is_whole_before_the_end():
    wire = Wire(lambda method, path, headers: Reply(200, b"z" * 3_000_000))
    wire.give(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert wire.ends == 0
    wire.drain()
    assert wire.ends == 1 and wire.said.count(b"z") == 3_000_000


def test_what_follows_nonsense_is_not_kept():
    wire = Wire(answer)
    wire.give(b"\0\0\r\n\r\n")
    assert wire.said.startswith(b"HTTP/1.1 400") and wire.ends == 1
    for _ in range(64):
        wire.give(b"a" * 65536)
    assert not wire.talk._http.trailing_data[0] and not wire.inbox
