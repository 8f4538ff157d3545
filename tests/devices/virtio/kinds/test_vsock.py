"""The socket device, as section 5.10 has it: a guest that follows the rules, and one that lies."""

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.devices.virtio.kinds import vsock
from ringzero.devices.virtio.kinds.vsock import (
    BACKLOG_SIZE,
    BUFFER_SIZE,
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    DATA,
    EVENT,
    HOST_CID,
    MAX_CONNECTIONS,
    MAX_RESETS,
    NO_RECEIVE,
    NO_SEND,
    RECEIVE,
    REQUEST,
    RESET,
    RESPONSE,
    SHUTDOWN,
    TRANSMIT,
    Vsock,
    VsockState,
)
from tests.devices.virtio.driver import EVENT_IDX
from tests.devices.virtio.vsock_guest import CID, ROOM, Guest, Heard


def operations(packets):
    return [packet.operation for packet, _ in packets]


@pytest.fixture
def guest():
    return Guest()


def open_stream(guest, guest_port=5, host_port=6):
    """A stream that the guest asked for."""
    assert guest.send(REQUEST, guest_port, host_port) == []
    end = guest.host.ends[-1]
    end.connection.accept()
    assert guest.operations() == [RESPONSE]
    return end


def test_the_address_is_in_the_configuration(guest):
    config = [guest.driver.transport.read(0x100 + 4 * half, 4) for half in (0, 1)]
    assert config == [CID, 0] and guest.device.device_id == 19


def test_a_stream_that_the_guest_asks_for(guest):
    end = open_stream(guest)
    assert guest.send(DATA, data=b"to the host") == []
    assert end.data == b"to the host"
    assert end.connection.push(b"to the guest") == 12
    (packet, data) = guest.packets()[0]
    assert data == b"to the guest"
    assert (packet.source, packet.destination) == (HOST_CID, CID)
    assert (packet.host_port, packet.guest_port) == (5, 6), "source and destination change places"
    assert packet.buffer == BUFFER_SIZE and packet.taken == 0


def test_a_port_where_nobody_listens(guest):
    assert operations(guest.send(REQUEST, host_port=2000)) == [RESET]
    guest.send(REQUEST, host_port=7)
    guest.host.ends[-1].connection.close()
    assert guest.operations() == [RESET] and guest.host.ends[-1].over
    assert guest.device.connections == 0


def test_a_stream_that_the_host_asks_for(guest):
    end = Heard()
    connection = guest.device.connect(22, end)
    ((packet, _),) = guest.packets()
    assert (packet.operation, packet.host_port) == (REQUEST, 22)
    assert guest.send(RESPONSE, 22, packet.guest_port) == [] and end.open
    connection.push(b"x" * 10)
    assert guest.packets()[0][1] == b"x" * 10


def test_the_guest_refuses(guest):
    end = Heard()
    guest.device.connect(22, end)
    ((packet, _),) = guest.packets()
    assert guest.send(RESET, 22, packet.guest_port) == []
    assert end.over and not end.open and guest.device.connections == 0


def test_no_driver_no_connection():
    assert Vsock(CID).connect(1, Heard()) is None


def test_the_guest_shuts_one_side_then_the_other(guest):
    end = open_stream(guest)
    assert guest.send(SHUTDOWN, flags=NO_SEND) == [] and end.flags == NO_SEND
    assert operations(guest.send(SHUTDOWN, flags=NO_RECEIVE)) == [RESET]
    assert end.over


def test_the_host_shuts_after_all_is_sent(guest):
    end = open_stream(guest)
    end.connection.push(b"last")
    end.connection.shut(NO_SEND)
    end.connection.shut(NO_RECEIVE)
    packets = guest.packets()
    assert operations(packets)[0] == DATA and packets[0][1] == b"last"
    assert packets[-1][0].flags == NO_SEND | NO_RECEIVE
    assert guest.send(RESET) == [] and end.over


def test_the_host_sends_no_more_than_the_guest_has_room_for(guest):
    guest.send(REQUEST, buffer=1000)
    end = guest.host.ends[-1]
    end.connection.accept()
    guest.packets()
    end.connection.push(b"a" * 3000)
    assert sum(len(data) for _, data in guest.packets()) == 1000
    assert guest.packets() == []
    assert sum(len(d) for _, d in guest.send(CREDIT_UPDATE, buffer=1000, taken=600)) == 600
    assert sum(len(d) for _, d in guest.send(CREDIT_UPDATE, buffer=9000, taken=1600)) == 1400


def test_the_guest_hears_of_room_before_it_runs_out(guest):
    end = open_stream(guest)
    for _ in range(4):
        assert guest.send(DATA, data=bytes(32768)) == []
    end.connection.took(100_000)
    assert guest.packets() == []
    end.connection.took(31_072)
    ((packet, _),) = guest.packets()
    assert (packet.operation, packet.taken) == (CREDIT_UPDATE, 131_072)


def test_credit_on_request(guest):
    end = open_stream(guest)
    guest.send(DATA, data=b"abc")
    end.connection.took(3)
    ((packet, _),) = guest.send(CREDIT_REQUEST)
    assert (packet.operation, packet.taken, packet.buffer) == (CREDIT_UPDATE, 3, BUFFER_SIZE)


def test_more_than_the_host_has_room_for_ends_the_stream(guest):
    end = open_stream(guest)
    for _ in range(BUFFER_SIZE // 32768):
        assert guest.send(DATA, data=bytes(32768)) == []
    assert operations(guest.send(DATA, data=b"1")) == [RESET]
    assert end.over and len(end.data) == BUFFER_SIZE


def test_push_takes_so_much_and_tells_of_room(guest):
    guest.send(REQUEST, buffer=10)
    end = guest.host.ends[-1]
    end.connection.accept()
    guest.packets()
    assert end.connection.push(bytes(BACKLOG_SIZE + 10)) == BACKLOG_SIZE
    # The device sent what the guest had room for, at once or as soon as it was asked.
    guest.packets()
    assert end.rooms == 1
    assert end.connection.push(bytes(100)) == 10


@pytest.mark.parametrize(
    ("operation", "change"),
    [
        (DATA, {"length": 100}),
        (DATA, {"length": 0xFFFFFFFF}),
        (DATA, {"type": 2}),
        (DATA, {"type": 0}),
        (0, {}),
        (8, {}),
        (REQUEST, {}),
        (RESPONSE, {}),
        (SHUTDOWN, {"flags": 4}),
        (CREDIT_UPDATE, {"data": b"x"}),
        (CREDIT_UPDATE, {"taken": 1}),
        (CREDIT_UPDATE, {"taken": 0x7FFFFFFF}),
    ],
)
def test_what_makes_no_sense_ends_the_stream(guest, operation, change):
    end = open_stream(guest)
    assert operations(guest.send(operation, **change)) == [RESET]
    assert end.over and guest.device.connections == 0


@pytest.mark.parametrize(
    "change",
    [{"source": CID + 1}, {"source": 2}, {"source": CID | 1 << 40}, {"destination": 3},
     {"destination": CID}],
)  # fmt: skip
def test_packets_of_strangers_touch_no_stream(guest, change):
    end = open_stream(guest)
    packets = guest.send(DATA, data=b"x", **change)
    assert operations(packets) == [RESET]
    assert packets[0][0].destination == change.get("source", CID)
    assert not end.over and not end.data


def test_a_reset_is_never_answered(guest):
    for change in ({}, {"source": 9}, {"destination": 9}, {"type": 9}, {"host_port": 2000}):
        assert guest.send(RESET, **change) == []


def test_the_guest_cannot_answer_its_own_request(guest):
    guest.send(REQUEST)
    assert operations(guest.send(RESPONSE)) == [RESET]
    assert guest.host.ends[-1].over


def test_data_before_the_host_has_taken_the_connection(guest):
    guest.send(REQUEST)
    assert operations(guest.send(DATA, data=b"early")) == [RESET]


def test_packets_that_hold_no_header(guest):
    guest.driver.add(TRANSMIT, readable=[b"short"])
    guest.driver.add(TRANSMIT, writable=[100])
    assert len(guest.driver.used(TRANSMIT)) == 2 and guest.packets() == []


def test_buffers_that_hold_no_header(guest):
    guest = Guest(buffers=0)
    guest.driver.add(RECEIVE, writable=[43])
    guest.send(DATA)
    assert "no header" in guest.driver.transport.failure


def test_so_many_streams_and_no_more(guest):
    for port in range(MAX_CONNECTIONS):
        assert guest.send(REQUEST, guest_port=port) == []
    assert operations(guest.send(REQUEST, guest_port=5000)) == [RESET]
    assert guest.device.connect(1, Heard()) is None
    # One that the host has done with makes place.
    end = guest.host.ends[3]
    end.connection.accept()
    end.connection.shut(NO_RECEIVE | NO_SEND)
    guest.packets()
    assert operations(guest.send(REQUEST, guest_port=5000)) == [RESET], "the old one's"
    assert end.over and guest.device.connections == MAX_CONNECTIONS


def test_resets_without_buffers_are_bounded():
    guest = Guest(buffers=0)
    for port in range(MAX_RESETS + 20):
        guest.send(DATA, guest_port=port)
    assert len(guest.device._resets) == MAX_RESETS
    assert len(guest.driver.queues[TRANSMIT].chains) == 20, "the others wait in the queue"
    for _ in range(31):
        guest.offer()
    assert guest.operations()[:31] == [RESET] * 31
    assert len(guest.driver.used(TRANSMIT)) == 20


def test_streams_take_turns(guest):
    ends = [open_stream(guest, guest_port=port) for port in (1, 2, 3)]
    guest.driver.transport.pause()
    for end in ends:
        end.connection.push(bytes(3 * ROOM))
    guest.driver.transport.resume()
    assert [p.host_port for p, _ in guest.packets()] == [1, 2, 3] * 3


@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_a_restored_guest_is_told_that_all_streams_are_gone(features):
    guest = Guest(features)
    end = open_stream(guest)
    transport, device = guest.driver.transport, guest.device
    transport.pause()
    saved = transport.save(), device.save()
    assert not end.over, "saving ends nothing"
    transport.restore(saved[0])
    device.restore(saved[1])
    assert end.over and device.connections == 0
    device.renew(99)
    transport.resume()
    late = Heard()
    assert device.connect(22, late) is not None
    assert guest.packets() == [], "not before the guest has dealt with the event"
    assert guest.take_event() == struct.pack("<I", 0)
    assert guest.driver.transport.read(0x100, 4) == 99
    ((packet, _),) = guest.packets()
    assert (packet.operation, packet.destination) == (REQUEST, 99)
    assert operations(guest.send(DATA, data=b"left over")) == [RESET]


def test_two_restores_need_two_answers(guest):
    device, transport = guest.device, guest.driver.transport
    for _ in range(2):
        transport.pause()
        saved = transport.save(), device.save()
        transport.restore(saved[0])
        device.restore(saved[1])
        transport.resume()
    device.connect(22, Heard())
    assert guest.driver.used(EVENT) == [4, 4]
    guest.driver.add(EVENT, writable=[4])
    assert guest.packets() == []
    guest.driver.add(EVENT, writable=[4])
    assert guest.operations() == [REQUEST]


def test_the_event_waits_for_a_buffer():
    guest = Guest()
    device, transport = guest.device, guest.driver.transport
    saved = transport.save(), device.save()
    guest.start()
    guest.driver.queues[EVENT].available_index = 0
    guest.driver.memory.write_int(guest.driver.queues[EVENT].available + 2, 2, 0)
    transport.pause()
    device.restore(saved[1])
    transport.resume()
    assert guest.driver.used(EVENT) == []
    guest.driver.add(EVENT, writable=[4])
    assert guest.driver.used(EVENT) == [4]


def test_addresses_that_no_guest_has(guest):
    for cid in (0, 1, 2, 1 << 32, 0xFFFFFFFF):
        with pytest.raises(vsock.StateError):
            guest.device.restore(VsockState(cid, None))


def test_a_reset_of_the_device_ends_all(guest):
    end = open_stream(guest)
    guest.driver.write(0x70, 0)
    assert end.over and guest.device.connections == 0
    guest.start()
    assert not open_stream(guest).over


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_any_packets_in_any_order(seed):
    """Bounded, never an exception, and every stream that ended was heard of once."""
    generator = random.Random(seed)
    guest = Guest()
    ends = guest.host.ends
    for _ in range(120):
        change = {}
        if generator.random() < 0.15:
            name = generator.choice(
                ("source", "destination", "length", "type", "flags", "taken", "buffer")
            )
            top = 64 if name in ("source", "destination") else 16 if name == "type" else 32
            change[name] = generator.getrandbits(generator.choice((2, 8, top)) if top > 16 else 2)
        data = bytes(generator.choice((0, 0, 1, 900)))
        operation = generator.choice((1, 1, 1, 2, 3, 4, 5, 5, 5, 6, 7, 8))
        if operation != DATA:
            data = b""
        if operation == SHUTDOWN:
            change.setdefault("flags", generator.randrange(4))
        guest.send(operation, generator.randrange(4), 6, data, **change)
        if ends and generator.random() < 0.5:
            end = generator.choice(ends)
            generator.choice(
                (
                    end.connection.accept,
                    lambda end=end: end.connection.push(bytes(generator.randrange(3000))),
                    lambda end=end: end.connection.took(generator.randrange(1000)),
                    lambda end=end: end.connection.shut(generator.randrange(4)),
                    end.connection.close,
                )
            )()
            guest.packets()
        assert guest.driver.transport.failure is None
        assert guest.device.connections == sum(not end.over for end in ends)
        assert set(guest.device._senders) <= set(guest.device._connections.values())
