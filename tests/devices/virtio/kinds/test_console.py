import struct

import pytest

from ringzero.devices.virtio.kinds.console import BACKLOG_SIZE, Console, ConsolePort
from tests.devices.virtio.driver import EVENT_IDX, Driver

SIZE, MULTIPORT = 1, 2


class Guest:
    def __init__(self, features=SIZE | MULTIPORT, names=("console", "agent", "shut")):
        self.output = {name: bytearray() for name in names}
        self.ports = [
            ConsolePort(name, self.output[name].extend, connected=name != "shut") for name in names
        ]
        self.console = Console(self.ports, 100, 40)
        self.driver = Driver(self.console, features=features).start()

    def control(self, port, event, value):
        self.driver.add(3, readable=[struct.pack("<IHH", port, event, value)])
        self.driver.used(3)

    def messages(self, count=20):
        """Give the device control buffers; return what it put into them."""
        addresses = [self.driver.add(2, writable=[64], notify=False)[0] for _ in range(count)]
        self.driver.notify(2)
        lengths = self.driver.used(2)
        return [self.driver.memory.read(a, n) for a, n in zip(addresses, lengths, strict=False)]

    def bring_up(self):
        self.control(0xFFFFFFFF, 0, 1)
        for port in range(len(self.ports)):
            self.control(port, 3, 1)
            self.control(port, 6, 1)


@pytest.fixture
def guest():
    return Guest()


def test_configuration_space(guest):
    config = bytes(guest.driver.transport.read(0x100 + i, 1) for i in range(12))
    assert config == struct.pack("<HHII", 100, 40, 3, 0)
    assert guest.driver.transport.read(0x100, 2) == 100


def test_ports_are_announced_named_and_opened(guest):
    guest.control(0xFFFFFFFF, 0, 1)
    assert guest.messages(3) == [struct.pack("<IHH", n, 1, 1) for n in range(3)]
    for port in range(3):
        guest.control(port, 3, 1)
    assert guest.messages(20) == [
        struct.pack("<IHH", 0, 4, 1),
        struct.pack("<IHHHH", 0, 5, 0, 100, 40),
        struct.pack("<IHH", 0, 7, 1) + b"console",
        struct.pack("<IHH", 0, 6, 1),
        struct.pack("<IHH", 1, 7, 1) + b"agent",
        struct.pack("<IHH", 1, 6, 1),
        struct.pack("<IHH", 2, 7, 1) + b"shut",
    ]


def test_host_end_opens_and_closes(guest):
    guest.bring_up()
    guest.messages(10)
    guest.ports[2].connect_host(True)
    guest.ports[2].connect_host(True)
    guest.ports[2].connect_host(False)
    assert guest.messages(8) == [struct.pack("<IHH", 2, 6, 1), struct.pack("<IHH", 2, 6, 0)]


def test_output_goes_to_its_port(guest):
    guest.driver.add(1, readable=[b"hello ", b"world"])
    guest.driver.add(5, readable=[b"from the agent"])
    assert guest.output["console"] == b"hello world"
    assert guest.output["agent"] == b"from the agent"
    assert guest.driver.used(1) == [0]


def test_input_waits_for_open_and_for_buffers(guest):
    port = guest.ports[1]
    assert port.push(b"early") == 5
    (address,) = guest.driver.add(4, writable=[100])
    assert guest.driver.used(4) == [], "the guest has not opened the port"
    guest.bring_up()
    assert guest.driver.used(4) == [5]
    assert guest.driver.memory.read(address, 5) == b"early"
    room = []
    port.on_room = lambda: room.append(1)
    port.push(b"x" * 150)
    assert not room
    guest.driver.add(4, writable=[100])
    guest.driver.add(4, writable=[100])
    assert guest.driver.used(4) == [100, 50] and room


def test_push_is_bounded(guest):
    data = bytes(BACKLOG_SIZE + 10)
    assert guest.ports[1].push(data) == BACKLOG_SIZE
    assert guest.ports[1].push(b"x") == 0


def test_held_port_leaves_output_with_the_guest(guest):
    guest.ports[0].hold(True)
    guest.driver.add(1, readable=[b"wait"])
    assert guest.output["console"] == b"" and guest.driver.used(1) == []
    guest.ports[0].hold(False)
    assert guest.output["console"] == b"wait" and guest.driver.used(1) == [0]


def test_resize(guest):
    guest.bring_up()
    guest.messages(30)
    guest.console.resize(132, 50)
    assert guest.driver.transport.read(0x100, 4) == 50 << 16 | 132
    before = guest.driver.used(2)
    assert len(before) == 1


def test_resize_without_multiport_is_a_config_interrupt():
    guest = Guest(features=SIZE)
    generation = guest.driver.read(0xFC)
    guest.console.resize(80, 24)
    assert guest.driver.acknowledge() == 2
    assert guest.driver.read(0xFC) != generation


def test_without_multiport_port_0_works():
    guest = Guest(features=EVENT_IDX)
    guest.ports[0].push(b"key")
    guest.driver.add(0, writable=[16])
    assert guest.driver.used(0) == [3]


def test_emergency_write(guest):
    guest.driver.transport.write(0x108, 4, ord("!"))
    assert guest.output["console"] == b"!"


def test_open_is_told_and_forgotten_on_reset(guest):
    seen = []
    guest.ports[1].on_open = seen.append
    guest.control(1, 6, 1)
    guest.control(1, 6, 1)
    guest.driver.write(0x70, 0)
    assert seen == [True, False]


def test_garbage_control_messages(guest):
    for data in (b"", b"\xff", b"\xff" * 8, b"\xff" * 100, struct.pack("<IHH", 99, 6, 1)):
        guest.driver.add(3, readable=[data])
    guest.driver.add(3, writable=[8])
    for _ in range(700):
        guest.control(0, 0, 1)
    assert guest.driver.read(0x70) == 15


def test_a_driver_with_many_buffers_notifies_of_half_of_them():
    guest = Guest(SIZE | MULTIPORT | EVENT_IDX)
    guest.bring_up()
    queue = guest.driver.queues[4]
    for _ in range(8):
        guest.driver.add(4, writable=[16])
    guest.ports[1].push(bytes(16 * 20))
    assert guest.driver.used(4) == [16] * 8
    event = guest.driver.memory.read(queue.used + 4 + 8 * queue.size, 2)
    # The buffer behind the eighth, and three more, are to be there.
    assert int.from_bytes(event, "little") == 8 + 3


def test_a_driver_with_one_buffer_notifies_of_it():
    guest = Guest(SIZE | MULTIPORT | EVENT_IDX)
    guest.bring_up()
    guest.ports[1].push(bytes(16 * 3))
    for _ in range(3):
        guest.driver.add(4, writable=[16])
        assert guest.driver.used(4) == [16]


def test_a_driver_that_looks_for_its_buffers_gets_no_interrupt():
    guest = Guest(SIZE | MULTIPORT | EVENT_IDX)
    port = guest.ports[0]
    port.late = True
    guest.driver.add(1, readable=[b"first"])
    assert guest.output["console"] == b"first" and guest.driver.edges == 0
    # It does not look: it is interrupted once the output is taken.
    port.taken()
    assert guest.driver.edges == 1
    port.taken()
    assert guest.driver.edges == 1


def test_a_restored_console_tells_who_waited():
    guest = Guest(SIZE | MULTIPORT | EVENT_IDX)
    guest.ports[0].late = True
    guest.driver.add(1, readable=[b"first"])
    guest.console.restore(guest.console.save())
    guest.console.notify(1)
    assert guest.driver.edges == 1


def test_a_copy_looks_at_those_ports_only_that_have_something_to_do(monkeypatch):
    guest = Guest(SIZE | MULTIPORT | EVENT_IDX)
    guest.bring_up()
    guest.driver.add(4, writable=[16])
    guest.driver.transport.pause()
    guest.ports[1].push(b"input")
    guest.driver.add(7, readable=[b"output"], notify=False)
    state, console = guest.driver.transport.save(), guest.console.save()
    guest.driver.transport.restore(state)
    guest.console.restore(console)
    looked = []
    notify = guest.console.notify
    monkeypatch.setattr(guest.console, "notify", lambda n: (looked.append(n), notify(n)))
    guest.driver.transport.resume()
    assert guest.output["shut"] == b"output"
    assert guest.driver.used(4) == [5]
    assert 4 in looked and 7 in looked
    assert not {0, 1, 5, 6} & {*looked}
