"""A router with a world of tests behind it, and what scapy sends to it."""

from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from ringzero.core.frames import Frame, plain
from ringzero.net.networks.user import GATEWAY_MAC, subnet
from ringzero.net.stack.gateway import Gateway

GUEST_MAC = "02:00:00:00:00:15"
GUEST4, ROUTER4, RESOLVER4 = "10.0.2.15", "10.0.2.2", "10.0.2.3"
ROUTER_MAC = GATEWAY_MAC.hex(":")
HEAD = Ether(src=GUEST_MAC, dst=ROUTER_MAC)
OUT = IP(src=GUEST4, dst="192.0.2.1")


class Refusing:
    """A world that notes what it is asked for."""

    def __init__(self):
        self.opened, self.datagrams, self.echoes, self.queries = [], [], [], []

    def open(self, connection):
        self.opened.append(connection)
        connection.endpoint = Silent()

    def datagram(self, packet, datagram, back):
        self.datagrams.append(datagram.data())

    def echo(self, packet, back):
        self.echoes.append(packet.data())

    def resolve(self, query, stream, answer):
        self.queries.append((query, answer))


class Silent:
    """An endpoint that takes everything."""

    def __init__(self):
        self.data = b""
        self.over = self.is_lost = False

    def opened(self):
        pass

    def receive(self, buffers, size):
        self.data += b"".join(buffers)
        return size

    def ended(self):
        self.over = True

    def room(self):
        pass

    def lost(self):
        self.is_lost = True


class Router:
    """`send` gives a packet to a router, and returns what it answers, as scapy reads it."""

    def __init__(self, **options):
        self.world = Refusing()
        self.frames = []
        self.gateway = Gateway(
            subnet(), self.world, self.frames.append, lambda: 0x1000_0000, **options
        )
        self.gateway.now = 100.0

    def send(self, packet):
        self.gateway.receive(Frame(bytes(packet)))
        self.gateway.flush()
        return self.take()

    def take(self):
        answers = [Ether(data) for frame in self.frames for data in plain(frame)]
        self.frames.clear()
        return answers

    def wait(self, seconds):
        self.gateway.now += seconds
        self.gateway.expire()
        return self.take()
