"""One connection without I/O: what is a call, what is answered by itself, streams, events."""

import contextlib
import random

import pytest

from ringzero.doors.libvirt import session as module
from ringzero.doors.libvirt.faults import Error, ErrorCode, ErrorDomain
from ringzero.doors.libvirt.limits import FIRST_PACKET, STREAM_DATA
from ringzero.doors.libvirt.procedures import QEMU_PROGRAM, REMOTE_PROGRAM, remote
from ringzero.doors.libvirt.session import (
    MAX_CALLBACKS,
    MAX_CALLS,
    MAX_STREAMS,
    Call,
    Session,
    StreamAbort,
    StreamData,
    StreamEnd,
    StreamHole,
    unsupported,
)
from ringzero.doors.libvirt.values import DomainHandle
from ringzero.doors.libvirt.wire import (
    PING,
    PONG,
    Decoder,
    Hole,
    Packet,
    PacketStatus,
    PacketType,
    keepalive,
)
from ringzero.errors import ProtocolError
from tests.chance import FUZZ, seed
from tests.doors.libvirt.recordings import packets

OK, WEB = PacketStatus.OK, DomainHandle("web", bytes(range(16)), 3)


class Client:
    """A client of a session: says calls by name and reads packets."""

    def __init__(self, opened=True, **named):
        self.session, self.serial = Session(**named), 0
        self.decoder = Decoder(1 << 25)
        if opened:
            (call,) = self.call("CONNECT_OPEN", name=None, flags=0)
            self.session.reply(call)
            assert self.replies()[0].status is OK

    def packet(self, name, /, **arguments):
        procedure = remote().by_name[name]
        self.serial += 1
        body = procedure.arguments.encode(arguments)
        return Packet(REMOTE_PROGRAM, 1, procedure.number, PacketType.CALL, self.serial, OK, body)

    def send(self, *items):
        self.session.feed(b"".join(item.encode() for item in items))
        return list(self.session.items())

    def call(self, name, /, **arguments):
        return self.send(self.packet(name, **arguments))

    def replies(self):
        return list(self.decoder.feed(self.session.take()))

    def error(self):
        (reply,) = self.replies()
        assert (reply.type, reply.status) == (PacketType.REPLY, PacketStatus.ERROR)
        return Error.decode(reply.body)

    def stream(self, name="STORAGE_VOL_DOWNLOAD"):
        """Open a stream; return a packet of it to make others from."""
        volume = ("pool", "name", "/key")
        (call,) = self.call(name, volume=volume, offset=0, length=0, flags=0)
        self.session.reply(call)
        assert self.replies()[0].status is OK
        return call.packet.in_stream(b"")


def test_a_call_and_its_answer():
    client = Client()
    (call,) = client.call("DOMAIN_LOOKUP_BY_NAME", name="web")
    assert (call.name, call.arguments) == ("DOMAIN_LOOKUP_BY_NAME", {"name": "web"})
    client.session.reply(call, domain=WEB)
    (reply,) = client.replies()
    assert (reply.serial, reply.type, reply.status) == (client.serial, PacketType.REPLY, OK)
    assert remote().by_name[call.name].results.decode(reply.body) == {"domain": WEB}


def test_answers_may_come_in_any_order():
    client = Client()
    one, two = client.send(
        client.packet("DOMAIN_GET_INFO", domain=WEB), client.packet("CONNECT_GET_TYPE")
    )
    client.session.reply(two, type="RINGZERO")
    client.session.fail(one, Error(ErrorCode.NO_DOMAIN, ErrorDomain.QEMU, "Domain not found"))
    assert [reply.serial for reply in client.replies()] == [3, 2]


def test_an_answer_without_a_form_is_no_answer():
    client = Client()
    (call,) = client.call("DOMAIN_LOOKUP_BY_NAME", name="web")
    with pytest.raises(ProtocolError):
        client.session.reply(call, domain=DomainHandle("a\0b", bytes(16), 1))
    client.session.fail(call, unsupported("it"))
    assert client.error().code == ErrorCode.NO_SUPPORT


def test_nothing_is_done_before_the_connection_is_open():
    client = Client(opened=False)
    assert client.call("DOMAIN_DESTROY", domain=WEB) == []
    assert client.error().message == "the connection is not open"
    (call,) = client.call("AUTH_LIST")
    client.session.reply(call, types=[0])
    (call,) = client.call("CONNECT_OPEN", name="qemu:///session", flags=0)
    client.session.fail(call, Error(ErrorCode.NO_CONNECT, ErrorDomain.REMOTE, "no"))
    assert not client.session.opened
    (call,) = client.call("CONNECT_OPEN", name=None, flags=0)
    client.session.reply(call)
    assert client.session.opened


def test_packets_are_short_until_then():
    client = Client(opened=False)
    large = client.packet("CONNECT_OPEN", name="x" * FIRST_PACKET, flags=0)
    with pytest.raises(ProtocolError):
        client.send(large)
    client = Client()
    assert client.call("DOMAIN_DEFINE_XML", xml="x" * FIRST_PACKET)


def test_a_read_only_connection_changes_nothing():
    client = Client(read_only=True)
    assert client.call("DOMAIN_DESTROY", domain=WEB) == []
    error = client.error()
    assert (error.code, error.domain) == (ErrorCode.OPERATION_DENIED, ErrorDomain.REMOTE)
    assert client.call("DOMAIN_GET_XML_DESC", domain=WEB, flags=1) == []
    assert client.call("DOMAIN_GET_XML_DESC", domain=WEB, flags=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"program": 0x20008088},
        {"version": 2},
        {"procedure": 444},
        {"procedure": 0},
        {"procedure": -1},
        {"procedure": 318},
        {"body": b""},
        {"body": b"\0\0\0\x01a\0\0\0rest"},
        {"type": PacketType.CALL_WITH_FDS},
    ],
)
def test_what_cannot_be_a_call_is_answered(changes):
    client = Client()
    bad = client.packet("DOMAIN_LOOKUP_BY_NAME", name="web")._replace(**changes)
    assert client.send(bad) == []
    error = client.error()
    assert error.code in (ErrorCode.RPC, ErrorCode.NO_SUPPORT)
    # And the connection goes on.
    assert client.call("CONNECT_GET_TYPE")


def test_descriptors_are_counted():
    client = Client()
    packet = client.packet("CONNECT_GET_TYPE")
    (call,) = client.send(packet._replace(type=PacketType.CALL_WITH_FDS, body=b"\0\0\0\x02"))
    assert call.descriptors == 2


@pytest.mark.parametrize(
    "packet",
    [
        Packet(REMOTE_PROGRAM, 1, 1, PacketType.REPLY, 0, OK),
        Packet(REMOTE_PROGRAM, 1, 318, PacketType.MESSAGE, 1, OK),
        Packet(REMOTE_PROGRAM, 1, 1, PacketType.REPLY_WITH_FDS, 0, OK),
        keepalive(3),
    ],
)
def test_what_only_a_server_sends_ends_the_connection(packet):
    with pytest.raises(ProtocolError):
        Client().send(packet)


def test_a_serial_is_used_once():
    client = Client()
    packet = client.packet("CONNECT_GET_TYPE")
    client.send(packet)
    with pytest.raises(ProtocolError):
        client.send(packet)


def test_keepalive():
    client = Client()
    assert client.send(keepalive(PING), keepalive(PONG)) == []
    assert client.replies() == [keepalive(PONG)]
    client.session.ping()
    assert client.replies() == [keepalive(PING)]


def test_many_calls_wait():
    client = Client()
    asked = [client.packet("CONNECT_GET_TYPE") for _ in range(MAX_CALLS + 5)]
    calls = client.send(*asked)
    assert len(calls) == MAX_CALLS
    assert not client.session.wants_data
    client.session.reply(calls[0], type="x")
    (more,) = client.session.items()
    assert more.packet.serial == asked[MAX_CALLS].serial
    for call in [*calls[1:], more]:
        client.session.reply(call, type="x")
    assert len(list(client.session.items())) == 4
    assert client.session.wants_data


def test_a_stream_to_the_client():
    client = Client()
    stream = client.stream()
    assert client.session.streams == (stream.serial,)
    client.session.write(stream.serial, bytes(STREAM_DATA + 1))
    client.session.write_hole(stream.serial, 1 << 30)
    client.session.write_end(stream.serial)
    found = client.replies()
    assert [len(p.body) for p in found[:2]] == [STREAM_DATA, 1]
    assert (found[2].type, Hole.decode(found[2].body).length) == (PacketType.STREAM_HOLE, 1 << 30)
    assert (found[3].type, found[3].status, found[3].body) == (
        PacketType.STREAM,
        PacketStatus.CONTINUE,
        b"",
    )
    assert client.send(stream._replace(status=OK)) == [StreamEnd(stream.serial)]
    client.session.finish(stream.serial)
    (end,) = client.replies()
    assert (end.type, end.status) == (PacketType.STREAM, OK)
    assert client.session.streams == ()


def test_a_stream_from_the_client():
    client = Client()
    stream = client.stream("STORAGE_VOL_UPLOAD")
    hole = stream._replace(type=PacketType.STREAM_HOLE, body=Hole(99).encode())
    assert client.send(stream._replace(body=b"abc"), hole, stream._replace(status=OK)) == [
        StreamData(stream.serial, b"abc"),
        StreamHole(stream.serial, 99),
        StreamEnd(stream.serial),
    ]
    client.session.abort(
        stream.serial, Error(ErrorCode.OPERATION_FAILED, ErrorDomain.STORAGE, "full")
    )
    (end,) = client.replies()
    assert (end.type, end.status) == (PacketType.STREAM, PacketStatus.ERROR)
    assert Error.decode(end.body).message == "full"
    # The client may have sent more before it knew.
    assert client.send(stream._replace(body=b"more"), stream._replace(status=OK)) == []
    assert client.replies() == []


def test_a_client_that_wants_no_more_of_a_stream():
    client = Client()
    stream = client.stream()
    assert client.send(stream._replace(status=PacketStatus.ERROR)) == [StreamAbort(stream.serial)]
    (end,) = client.replies()
    assert (end.type, end.status) == (PacketType.STREAM, OK)
    client.session.write(stream.serial, b"late")
    client.session.write_hole(stream.serial, 1)
    client.session.write_end(stream.serial)
    client.session.finish(stream.serial)
    client.session.abort(stream.serial, unsupported("it"))
    assert client.session.waiting == 0


def test_a_call_that_fails_opens_no_stream():
    client = Client()
    (call,) = client.call("DOMAIN_OPEN_CONSOLE", domain=WEB, dev_name=None, flags=0)
    client.session.fail(call, unsupported(call.name))
    assert client.session.streams == ()


def test_streams_are_few():
    client = Client()
    for _ in range(MAX_STREAMS):
        client.stream()
    console = {"domain": WEB, "dev_name": None, "flags": 0}
    assert client.call("DOMAIN_OPEN_CONSOLE", **console) == []
    assert client.error().code == ErrorCode.RESOURCE_BUSY


def test_events_go_to_who_asked():
    client = Client()
    session, other = client.session, DomainHandle("other", bytes(16), 4)
    every = session.register("domain", 0)
    one = session.register("domain", 0, WEB)
    session.register("domain", 1)
    session.register("network", 0)
    assert list(session.interested("domain", 0, WEB._replace(id=-1))) == [every, one]
    assert list(session.interested("domain", 0, other)) == [every]
    assert session.deregister(every).event == 0
    assert session.deregister(every) is None
    assert list(session.interested("domain", 0, other)) == []
    session.event("DOMAIN_EVENT_CALLBACK_LIFECYCLE", callback_id=one, domain=WEB, event=2, detail=0)
    (packet,) = client.replies()
    assert (packet.type, packet.serial, packet.procedure) == (PacketType.MESSAGE, 1, 318)


def test_an_event_is_as_libvirtd_sends_it():
    client = Client()
    for _, packet in packets():
        if packet.type is PacketType.MESSAGE and packet.program == REMOTE_PROGRAM:
            procedure = remote().procedures[packet.procedure]
            client.session.event(procedure.name, **procedure.arguments.decode(packet.body))
            assert client.replies() == [packet]


def test_registrations_are_few():
    session = Session()
    for _ in range(MAX_CALLBACKS):
        session.register("domain", 0)
    with pytest.raises(ProtocolError):
        session.register("domain", 0)


def test_real_clients_are_understood():
    """Every call in the recordings is one here, too."""
    for name, packet in packets():
        if packet.type is PacketType.CALL and packet.program in (REMOTE_PROGRAM, QEMU_PROGRAM):
            (call,) = Client().send(packet._replace(serial=1000))
            assert isinstance(call, Call), name


def test_fuzz_of_sessions():
    """Anything a client may send: items, answers, or the end of the connection."""
    chance = random.Random(seed())
    real = [packet for _, packet in packets()]
    for _ in range(150 * FUZZ):
        client = Client(read_only=chance.random() < 0.2)
        stream = client.stream() if not client.session.read_only else None
        with contextlib.suppress(ProtocolError):
            for _ in range(20):
                packet = chance.choice(real)
                if stream is not None and chance.random() < 0.3:
                    packet = stream
                packet = packet._replace(
                    type=chance.choice(list(PacketType)) if chance.random() < 0.2 else packet.type,
                    status=chance.choice(list(PacketStatus)),
                    serial=chance.randrange(1, 40),
                    procedure=packet.procedure + (chance.random() < 0.1),
                )
                for item in client.send(packet):
                    if isinstance(item, Call):
                        client.session.fail(item, unsupported(item.name))
                    elif isinstance(item, StreamEnd):
                        client.session.finish(item.serial)
                client.replies()


def test_limits_are_within_reason():
    assert module.MAX_CALLS < module.MAX_STREAMS < module.MAX_CALLBACKS
