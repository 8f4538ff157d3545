"""The agent's channels over a real console device and a scripted driver."""

import struct
import threading
import time

from ringzero.devices.virtio.kinds.console import Console, ConsolePort
from ringzero.vm.guest.channels import INBOUND_LIMIT, PortChannels
from ringzero.vm.guest.line import Line
from ringzero.vm.guest.output import OutputBatch
from tests.devices.virtio.driver import Driver


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


class Guest:
    def __init__(self):
        self.received = bytearray()
        self.channels = PortChannels(["in", "out"], closed=["in"])
        self.channels.receive = lambda port, data: self.received.extend(data)
        self.channels.start()
        console = Console([ConsolePort("console", lambda data: None), *self.channels.ports])
        self.driver = Driver(console, features=3).start()
        for port in range(3):
            for event in (3, 6):
                self.driver.add(3, readable=[struct.pack("<IHH", port, event, 1)])


def test_sends_more_than_the_port_holds_in_order():
    guest = Guest()
    data = bytes(range(256)) * 2000
    guest.channels.connect("in", True)
    guest.channels.send("in", data[:100])
    guest.channels.send("in", data[100:])
    guest.channels.connect("in", False)
    assert guest.channels.backlog("in") > 0
    got = bytearray()
    while len(got) < len(data):
        (address,) = guest.driver.add(4, writable=[32768])
        guest.driver._free = address  # use the same buffer again
        until(
            lambda: (
                guest.driver.memory.read_int(guest.driver.queues[4].used + 2, 2)
                != guest.driver.queues[4].used_index
            )
        )
        (count,) = guest.driver.used(4)
        got += guest.driver.memory.read(address, count)
    assert got == data
    until(lambda: guest.channels.ports[0].connected is False)
    assert guest.channels.backlog("in") == 0
    guest.channels.close()


def test_receives_and_holds_a_flood():
    guest = Guest()
    gate = threading.Event()
    guest.channels.receive = lambda port, data: (gate.wait(10), guest.received.extend(data))
    address = guest.driver._free
    sent = 0
    while sent < 4 * INBOUND_LIMIT:
        guest.driver._free = address
        guest.driver.add(7, readable=[b"x" * 65536])
        sent += 65536
        if not guest.driver.used(7):
            break
    assert INBOUND_LIMIT <= sent <= 3 * INBOUND_LIMIT, "the port was not held"
    gate.set()
    until(lambda: len(guest.received) == sent)
    guest.channels.close()


def test_output_comes_in_batches_and_soon():
    calls = []
    batch = OutputBatch(calls.append, on_fault=calls.append)
    for byte in b"one\ntwo":
        batch.write(bytes((byte,)))
    until(lambda: b"".join(calls) == b"one\ntwo")
    assert len(calls) <= 3 and batch.tail() == "one\ntwo"
    batch.write(b"end")
    batch.close()
    assert b"".join(calls) == b"one\ntwoend"


def test_a_reader_that_does_not_read_keeps_nobody():
    gate = threading.Event()
    batch = OutputBatch(lambda data: gate.wait(30), on_fault=print)
    batch.write(b"x")
    time.sleep(0.05)
    writer = threading.Thread(target=lambda: [batch.write(bytes(65536)) for _ in range(40)])
    writer.start()
    time.sleep(0.05)
    assert writer.is_alive(), "the guest has to wait"
    begin = time.monotonic()
    batch.release()
    writer.join(5)
    assert not writer.is_alive()
    batch.close()
    assert time.monotonic() - begin < 5
    gate.set()


def test_full_and_room_are_told():
    gate, told = threading.Event(), []
    batch = OutputBatch(
        lambda data: gate.wait(30),
        lambda: told.append("full"),
        lambda: told.append("room"),
        on_fault=told.append,
    )
    for _ in range(40):
        batch.write(bytes(65536))
    assert told == ["full"]
    gate.set()
    until(lambda: told == ["full", "room"])
    batch.close()


def test_a_reader_that_raises_loses_the_rest_and_keeps_nobody():
    faults = []

    def reader(data):
        raise OSError("it does not read")

    batch = OutputBatch(reader, on_fault=faults.append)
    for _ in range(40):
        batch.write(bytes(65536))
    batch.close()
    assert [str(fault) for fault in faults] == ["it does not read"]
    assert batch.tail() == "\0" * 16384


def test_line_keeps_early_output_and_unread_input():
    line, taken = Line(), bytearray()
    room = [3]

    def push(data):
        count = min(room[0], len(data))
        taken.extend(data[:count])
        room[0] -= count
        return count

    line.emit(b"early ")
    seen = bytearray()
    line.on_output = seen.extend
    line.emit(b"late")
    assert seen == b"early late"
    line.connect(push)
    line.write(b"hello world")
    assert taken == b"hel"
    room[0] = 100
    line.room()
    assert taken == b"hello world"
