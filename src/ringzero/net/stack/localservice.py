"""An HTTP server at a link-local address, in the wire between a guest and its network.

It answers whoever asks for its address (ARP) and speaks TCP on one port; nothing else. No I/O
and no clock: whoever owns it says what time it is, and calls `expire` at `deadline`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

from ringzero.core.frames import ETHERNET_HEADER, Buffer, Frame
from ringzero.net.stack import arp, ip
from ringzero.net.stack.faults import Faults
from ringzero.net.stack.ip import ETHERTYPE_ARP, ETHERTYPE_IPV4, Path
from ringzero.net.stack.tcp.connection import Connection
from ringzero.net.stack.tcp.table import Tcp
from ringzero.records import record

if TYPE_CHECKING:
    import h11

PORT = 80
# Connections at once: a guest's programs ask a question and leave.
_MOST_CONNECTIONS = 64
# The longest head of a request, and body, in bytes.
_MOST_HEAD, _MOST_BODY = 16 << 10, 64 << 10
# Where an IPv4 packet's destination is, and an ARP request's target.
_DESTINATION = slice(ETHERNET_HEADER + 16, ETHERNET_HEADER + 20)
_TARGET = slice(ETHERNET_HEADER + 24, ETHERNET_HEADER + 28)
_PROTOCOL = ETHERNET_HEADER + 9


@record
class Reply:
    """What is answered."""

    status: int
    content: bytes
    headers: tuple[tuple[str, str], ...] = ()


# What answers a request: its method, its path, its headers by their names in lower case.
Respond = Callable[[str, str, Mapping[str, str]], Reply]


class LocalService:
    """The server at `address` (4 bytes) and `mac`. `emit` takes frames for the guest.

    `number` gives 32 bits that nobody can guess; `mtu` bounds packets, in bytes.
    """

    def __init__(
        self,
        address: bytes,
        mac: bytes,
        respond: Respond,
        emit: Callable[[Frame], None],
        number: Callable[[], int],
        mtu: int = 1500,
    ) -> None:
        self._address, self._mac, self._mtu = address, mac, mtu
        self._respond, self._emit = respond, emit
        self.faults = Faults()
        self._tcp = Tcp(emit, self._open, number, self.faults)
        self._reassembler = ip.Reassembler()

    def wants(self, head: bytes) -> bool:
        """Whether a frame of the guest's is for the server."""
        kind = head[12:14]
        if kind == ETHERTYPE_IPV4:
            return head[_DESTINATION] == self._address
        return kind == ETHERTYPE_ARP and head[_TARGET] == self._address

    def receive(self, frame: Frame, now: float) -> None:
        """Take a frame that is for it. What makes no sense is dropped, and what we fail at."""
        self._tcp.now = now
        try:
            self._take(frame, now)
        except Exception as fault:
            self.faults.note("a frame for the local service", fault)

    def _take(self, frame: Frame, now: float) -> None:
        head = frame.head
        if head[12:14] == ETHERTYPE_ARP:
            self._answer_arp(head)
            return
        packet = ip.parse(frame, self._reassembler, now)
        if packet is None or packet.protocol != ip.TCP:
            return
        ethernet = head[6:12] + self._mac + ETHERTYPE_IPV4
        self._tcp.receive(packet, Path(ethernet, packet.destination, packet.source, self._mtu))

    def _answer_arp(self, head: bytes) -> None:
        found = arp.parse(head[ETHERNET_HEADER:])
        if found is None or found[0] != arp.REQUEST:
            return
        _, mac, sender, _ = found
        # Who looks whether an address is free asks from none (RFC 5227): this one is not.
        self._emit(Frame(arp.reply(self._mac, self._address, mac, sender)))

    def _open(self, connection: Connection) -> None:
        if connection.local != PORT or len(self._tcp.connections) > _MOST_CONNECTIONS:
            connection.refuse()
            return
        connection.endpoint = _Conversation(connection, self._respond)
        connection.accept()

    def flush(self) -> None:
        """Send what was put off to the end of a batch."""
        self._tcp.flush()

    def deadline(self) -> float | None:
        """Return when `expire` is to be called next."""
        return self._tcp.deadline()

    def expire(self, now: float) -> None:
        """Do what is due."""
        self._tcp.now = now
        self._tcp.expire()
        self._reassembler.expire(now)
        self._tcp.flush()


class _Conversation:
    """HTTP/1.1 on one connection; the grammar is h11's."""

    def __init__(self, connection: Connection, respond: Respond) -> None:
        import h11  # not of a start's time

        self._connection, self._respond = connection, respond
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MOST_HEAD)
        self._request: h11.Request | None = None
        self._body = 0
        # What finds no room yet: until it has gone nothing more is taken from the guest.
        self._rest = b""
        # The guest has said all that it had to; nothing follows what waits.
        self._over = self._finishing = False

    def opened(self) -> None:
        """Questions follow."""

    def receive(self, buffers: list[Buffer], size: int) -> int:
        """Answer the requests that are complete, when the last answer has gone."""
        if self._rest and not self._finishing:
            return 0
        self._take(b"".join(buffers))
        return size

    def _take(self, data: bytes | None = None) -> None:
        """Answer what `data` completes, b"" at the end; None: what came before has its turn."""
        import h11

        if self._finishing:
            return
        try:
            if data is not None:
                self._http.receive_data(data)
            while not self._rest and self._step():
                pass
        except h11.ProtocolError:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                self._answer(Reply(HTTPStatus.BAD_REQUEST, b"Invalid request."), alone=True)
            self._finish()

    def _step(self) -> bool:
        """Take one event; whether more may follow. Raises h11.ProtocolError."""
        import h11

        event = self._http.next_event()
        if isinstance(event, h11.Request):
            self._request, self._body = event, 0
        elif isinstance(event, h11.Data):
            self._body += len(event.data)
            if self._body > _MOST_BODY:
                raise h11.RemoteProtocolError("a body that is too long")
        elif isinstance(event, h11.EndOfMessage) and self._request is not None:
            headers = {
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in self._request.headers
            }
            method = self._request.method.decode("latin-1")
            target = self._request.target.decode("latin-1").partition("?")[0]
            self._answer(self._respond(method, target, headers), head=method == "HEAD")
            if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
                self._http.start_next_cycle()
                return True
            self._finish()
            return False
        else:
            if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                self._finish()
            return False
        return True

    def _answer(self, reply: Reply, *, alone: bool = False, head: bool = False) -> None:
        import h11

        headers = [*reply.headers, ("content-length", str(len(reply.content)))]
        if alone:
            headers.append(("connection", "close"))
        status = HTTPStatus(reply.status)
        parts = [
            self._http.send(
                h11.Response(status_code=status.value, headers=headers, reason=status.phrase)
            )
        ]
        if reply.content and not head:
            parts.append(self._http.send(h11.Data(data=reply.content)))
        parts.append(self._http.send(h11.EndOfMessage()))
        self._rest += b"".join(part for part in parts if part)
        self._send()

    def _send(self) -> None:
        count = min(self._connection.room, len(self._rest))
        if count > 0:
            data, self._rest = self._rest[:count], self._rest[count:]
            self._connection.send(data)
        if self._finishing and not self._rest:
            self._connection.finish()

    def _finish(self) -> None:
        """Send what waits, and nothing behind it."""
        self._finishing = True
        self._send()

    def ended(self) -> None:
        """Say goodbye, too, when all is answered."""
        self._over = True
        self.room()

    def room(self) -> None:
        """Send what waits; then what came meanwhile is answered."""
        self._send()
        inbox = self._connection.inbox
        if not self._rest and self._http.trailing_data[0]:
            self._take()
        while inbox and not self._rest:
            data = inbox[0]
            self._connection.consume(len(data))
            self._take(data)
        if self._over and not self._rest:
            self._take(b"")

    def lost(self) -> None:
        """What was on its way is dropped."""
        self._rest = b""
