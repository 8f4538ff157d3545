"""Packets: as real ones are, whole and in pieces, and no others."""

import random

import pytest

from ringzero.doors.libvirt.faults import Error
from ringzero.doors.libvirt.limits import FIRST_PACKET, PACKET, STREAM_DATA
from ringzero.doors.libvirt.wire import (
    PING,
    SMALLEST,
    Decoder,
    Hole,
    Packet,
    PacketStatus,
    PacketType,
    keepalive,
    split_descriptors,
    stream_packets,
)
from ringzero.errors import ProtocolError
from tests.chance import FUZZ, seed
from tests.doors.libvirt.recordings import packets

CALL = Packet(0x20008086, 1, 201, PacketType.CALL, 7, PacketStatus.OK)


def test_real_packets_come_back():
    for name, packet in packets():
        data = packet.encode()
        assert list(Decoder(PACKET).feed(data)) == [packet], name


@pytest.mark.parametrize("size", [1, 3, 4, 27, 28, 29, 4096])
def test_pieces_make_packets(size):
    some = [packet for _, packet in packets()][::5]
    data = b"".join(packet.encode() for packet in some)
    decoder, found = Decoder(PACKET), []
    for at in range(0, len(data), size):
        found += decoder.feed(data[at : at + size])
    assert found == some
    assert decoder.pending == 0


def test_a_half_packet_is_kept():
    decoder = Decoder()
    assert list(decoder.feed(CALL.encode()[:-1])) == []
    assert decoder.pending == SMALLEST - 1


def header(length=28, kind=0, status=0):
    numbers = (length, 0x20008086, 1, 1, kind, 0, status)
    return b"".join((n & 0xFFFFFFFF).to_bytes(4, "big") for n in numbers)


@pytest.mark.parametrize(
    "data",
    [
        header(0),
        header(27),
        header(FIRST_PACKET + 4)[:4],
        header(0xFFFFFFFF)[:4],
        header(kind=7),
        header(kind=-1),
        header(status=3),
        b"GET / HTTP/1.1\r\n\r\n" * 2,
    ],
)
def test_what_is_no_packet_is_refused(data):
    decoder = Decoder()
    with pytest.raises(ProtocolError):
        list(decoder.feed(data))


def test_packets_before_what_is_refused_are_given():
    found = []
    with pytest.raises(ProtocolError):
        for packet in Decoder().feed(CALL.encode() + header(0)):
            found.append(packet)
    assert found == [CALL]


def test_the_limit_grows_when_it_is_known_who_speaks():
    decoder = Decoder()
    large = CALL._replace(body=bytes(FIRST_PACKET))
    decoder.limit = PACKET
    assert list(decoder.feed(large.encode())) == [large]


def test_no_packet_is_longer_than_clients_take():
    with pytest.raises(ProtocolError):
        CALL._replace(body=bytes(PACKET - SMALLEST + 1)).encode()
    assert len(CALL._replace(body=bytes(PACKET - SMALLEST)).encode()) == PACKET


def test_replies_are_those_of_their_call():
    reply = CALL.answer(b"1234")
    assert (reply.type, reply.serial, reply.procedure) == (PacketType.REPLY, 7, 201)
    assert CALL.answer(b"", error=True).status is PacketStatus.ERROR


def test_stream_packets_are_as_long_as_clients_take():
    data = bytes(range(256)) * 2048
    found = list(stream_packets(CALL, data))
    assert [len(packet.body) for packet in found] == [STREAM_DATA, STREAM_DATA, 48]
    assert b"".join(packet.body for packet in found) == data
    assert {(p.type, p.serial, p.status) for p in found} == {
        (PacketType.STREAM, 7, PacketStatus.CONTINUE)
    }


def test_keepalive_is_what_libvirt_sends():
    recorded = [packet for name, packet in packets() if packet.program == keepalive(PING).program]
    assert recorded
    assert all(packet == keepalive(packet.procedure) for packet in recorded)


def test_holes():
    assert Hole.decode(Hole(1 << 40, 0).encode()) == Hole(1 << 40, 0)
    for bad in (b"", bytes(11), bytes(13), b"\xff" * 12):
        with pytest.raises(ProtocolError):
            Hole.decode(bad)


def test_descriptors_stand_before_the_body():
    assert split_descriptors(b"\0\0\0\x02rest") == (2, b"rest")
    for bad in (b"", b"\0\0\0\x21", b"\xff\xff\xff\xff"):
        with pytest.raises(ProtocolError):
            split_descriptors(bad)


def test_fuzz_of_the_decoder():
    """Random damage to real packets: packets or a ProtocolError, and never more than came."""
    chance = random.Random(seed())
    real = [packet.encode() for _, packet in packets()]
    for _ in range(3000 * FUZZ):
        data = bytearray(b"".join(chance.choices(real, k=2)))
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
        decoder, size = Decoder(PACKET), chance.randrange(1, len(data) + 1)
        try:
            for at in range(0, len(data), size):
                for packet in decoder.feed(bytes(data[at : at + size])):
                    assert len(packet.body) <= len(data)
                    if packet.status is PacketStatus.ERROR:
                        Error.decode(packet.body)
        except ProtocolError:
            pass
        assert decoder.pending <= len(data)
