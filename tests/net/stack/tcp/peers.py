"""Whom TCP is tested against: another of its kind over a cable, and made segments."""

from scapy.layers.inet import TCP

from ringzero.core.frames import Frame, plain
from ringzero.net.stack import ip
from ringzero.net.stack.ip import Path
from ringzero.net.stack.tcp.table import Tcp
from tests.net.stack.world import HEAD, OUT

MAC_A, MAC_B = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"
A, B = b"\x0a\0\0\1", b"\x0a\0\0\2"


class End:
    """One of two hosts: its TCP, and an endpoint that sends what it is to and keeps what comes."""

    def __init__(self, pair, mac, peer_mac, address, peer, number):
        self.out = pair.cable(self)
        self.path = Path(peer_mac + mac + b"\x08\0", address, peer, 1500)
        self.tcp = Tcp(self.out.append, self.opener, lambda: number)
        self.pieces = ip.Reassembler()
        self.connection = None
        self.to_send, self.got = b"", b""
        self.over = self.is_lost = False
        # How much the endpoint takes at once; the rest waits in the connection's inbox.
        self.appetite = 1 << 30

    def opener(self, connection):
        self.connection, connection.endpoint = connection, self
        connection.accept()

    def opened(self):
        self.room()

    def room(self):
        connection = self.connection
        while self.to_send and connection.room > 0:
            count = min(connection.room, 5000)
            connection.send(self.to_send[:count])
            self.to_send = self.to_send[count:]
        if not self.to_send:
            connection.finish()

    def receive(self, buffers, size):
        data = b"".join(buffers)[: self.appetite]
        self.got += data
        return len(data)

    def eat(self):
        connection = self.connection
        if connection is not None and connection.inbox:
            data = b"".join(connection.inbox)[: self.appetite]
            self.got += data
            connection.consume(len(data))

    def ended(self):
        self.over = True

    def lost(self):
        self.is_lost = True

    def hear(self, data):
        packet = ip.parse(Frame(data), self.pieces, self.tcp.now)
        if packet is not None and packet.protocol == ip.TCP:
            self.tcp.receive(packet, self.path)


class Pair:
    """Two hosts and the cables between them; the time is the test's."""

    def __init__(self, numbers=(1000, 0xFFFFFF00)):
        self.now = 0.0
        self.cables = {}
        self.a = End(self, MAC_A, MAC_B, A, B, numbers[0])
        self.b = End(self, MAC_B, MAC_A, B, A, numbers[1])

    def cable(self, end):
        return self.cables.setdefault(end, [])

    def connect(self):
        self.a.connection = self.a.tcp.connect(self.a.path, 1, 80, self.a)

    def step(self, choose):
        """Move what is on the cables; `choose` says what becomes of each frame."""
        moved = False
        for source, target in ((self.a, self.b), (self.b, self.a)):
            source.tcp.flush()
            waiting = [data for frame in source.out for data in plain(frame)]
            source.out.clear()
            kept = []
            for data in waiting:
                moved = True
                fate = choose()
                if fate == "lose":
                    continue
                if fate == "late":
                    kept.append(data)
                    continue
                target.hear(data)
                if fate == "double":
                    target.hear(data)
            for data in kept:
                target.hear(data)
            target.eat()
        return moved

    def pass_time(self):
        """Go on to when something is due."""
        due = [t for t in (self.a.tcp.deadline(), self.b.tcp.deadline()) if t is not None]
        self.now = max(self.now, min(due, default=self.now) + 0.0001)
        for end in (self.a, self.b):
            end.tcp.now = self.now
            end.tcp.expire()

    @property
    def done(self):
        return (self.a.over and self.b.over) or self.a.is_lost or self.b.is_lost


def syn(port=80, **fields):
    return HEAD / OUT / TCP(sport=4000, dport=port, flags="S", seq=100, **fields)


def open_connection(router, options=(("MSS", 1460), ("WScale", 7), ("SAckOK", b""))):
    assert router.send(syn(options=list(options))) == []
    (connection,) = router.world.opened
    connection.accept()
    (answer,) = router.take()
    assert answer[TCP].flags == "SA" and answer[TCP].ack == 101
    segment = HEAD / OUT / TCP(sport=4000, dport=80, flags="A", seq=101, ack=answer[TCP].seq + 1)
    assert router.send(segment) == []
    return connection, answer[TCP].seq + 1


def segment(sequence, ack, flags="A", data=b"", **fields):
    head = TCP(sport=4000, dport=80, flags=flags, seq=sequence, ack=ack, **fields)
    return HEAD / OUT / head / data
