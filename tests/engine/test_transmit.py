"""The console's transmit queue, drained by native code: the guest's side is a driver as Linux's."""

import random
import threading
import time

import pytest

from ringzero.devices.virtio.kinds.console import Console, ConsolePort
from ringzero.devices.virtio.mmio import QUEUE_NOTIFY
from ringzero.engine.exits import MmioWrite
from ringzero.isa.x86.transmit import BUFFER, QUEUES
from tests.devices.virtio.driver import EVENT_IDX, Driver
from tests.isa.test_apic import DONE, Machine
from tests.oracle.assembler import assemble

pytestmark = pytest.mark.engine

# In the gigabyte that `Machine` maps as it is; rings and buffers where it has nothing.
WINDOW, ROOM, RAM = 0xD000_0000, 0x100000, 4 << 20
NOTIFY = WINDOW + QUEUE_NOTIFY
TRANSMIT, MULTIPORT = 1, 2
PIECE = 17


class Terminal(Machine):
    """A machine whose console device takes what comes out of it; `exits` has that."""

    def __init__(self, features=EVENT_IDX, lent=True, size=64):
        super().__init__(ram=RAM)
        self.output = bytearray()
        self.port = ConsolePort("console", self.output.extend, late=True)
        self.console = Console([self.port])
        self.driver = Driver(self.console, features | MULTIPORT, self.memory)
        self.driver._free = ROOM
        ((number, ready),) = self.console.drained()
        assert number == TRANSMIT
        self.drain = self.vm.drain_queue(NOTIFY, number, ready) if lent else None
        if lent:
            self.driver.transport.share_queue(number, self.drain)
        self.driver.start({TRANSMIT: size})
        # As a driver's first notification does, or `resume`.
        self.driver.notify(TRANSMIT)

    def _run(self, number):
        vcpu = self.vcpus[number]
        while not self.stopping:
            event = vcpu.run()
            self.exits.append(event)
            if isinstance(event, MmioWrite):
                self.driver.transport.write(event.address - WINDOW, event.width, event.value)
            elif not hasattr(event, "port"):
                continue
            else:
                return

    @property
    def notifications(self):
        return [event for event in self.exits if isinstance(event, MmioWrite)]

    def notify(self):
        """Have the guest notify."""
        self.run(f"mov ecx, {NOTIFY}\n mov dword ptr [rcx], {TRANSMIT}\n {DONE}")
        self.stopping = False

    def printer(self, count, size=PIECE, buffer=0x90000):
        """Return a guest that prints `count` pieces, each of which begins with its number.

        It waits for each by looking, as Linux's hvc console does.
        """
        queue = self.driver.queues[TRANSMIT]
        self.driver.describe(queue.descriptors, 0, buffer, size, 0, 0)
        for slot in range(queue.size):
            self.memory.write_int(queue.available + 4 + 2 * slot, 2, 0)
        return (
            f"mov ecx, {NOTIFY}\n mov esi, {queue.available + 2}\n mov edi, {queue.used + 2}\n"
            f"mov ebp, {buffer}\n xor ebx, ebx\n movzx edx, word ptr [rsi]\n"
            "1: mov [rbp], ebx\n inc ebx\n inc edx\n mov [rsi], dx\n"
            f"mov dword ptr [rcx], {TRANSMIT}\n"
            "2: pause\n cmp [rdi], dx\n jne 2b\n"
            f"cmp ebx, {count}\n jne 1b\n {DONE}"
        )

    def printed(self, size=PIECE):
        """Return the numbers of the pieces that were printed."""
        assert len(self.output) % size == 0
        places = range(0, len(self.output), size)
        return [int.from_bytes(self.output[at : at + 4], "little") for at in places]


@pytest.fixture
def machines():
    made = []

    def make(**options):
        made.append(Terminal(**options))
        return made[-1]

    yield make
    for machine in made:
        machine.stopping = True
        for vcpu in machine.vcpus:
            vcpu.kick()
        for thread in machine.threads:
            thread.join(10)
        machine.driver.transport.close()
        machine.close()


@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_pieces_of_lines_make_no_exits(machines, features):
    machine = machines(features=features)
    machine.run(machine.printer(5000))
    assert machine.printed() == list(range(5000))
    assert not machine.notifications
    # One a buffer's half at most, and some for the time that passes.
    assert machine.vcpus[0].cpu.count_exits < 500


def test_output_does_not_wait_for_more(machines):
    """A guest that goes on without another exit is heard soon; so is one that halts."""
    for end in ("3: jmp 3b\n", "3: hlt\n jmp 3b\n"):
        machine = machines()
        machine.start(machine.printer(3).replace(DONE, end))
        limit = time.monotonic() + 20
        while len(machine.output) < 3 * PIECE:
            assert time.monotonic() < limit
            time.sleep(0.001)
        assert machine.printed() == [0, 1, 2]


def test_a_guest_that_does_not_wait_loses_nothing(machines):
    """More than the buffer holds, in one notification."""
    machine = machines(size=64)
    pieces = [bytes([65 + number]) * 3000 for number in range(40)]
    for piece in pieces:
        machine.driver.add(TRANSMIT, [piece], notify=False)
    machine.notify()
    assert machine.output == b"".join(pieces)
    assert machine.driver.used(TRANSMIT) == [0] * 40
    assert len(machine.notifications) == 1, "the buffer was full"
    machine.driver.add(TRANSMIT, [b"more"], notify=False)
    machine.notify()
    assert machine.output.endswith(b"more") and len(machine.notifications) == 1, "lent again"


def test_the_buffer_wraps(machines):
    machine = machines()
    size = BUFFER // 4 - 1000
    machine.run(machine.printer(50, size=size, buffer=0x200000))
    assert machine.printed(size) == list(range(50))


def test_a_held_port_leaves_output_with_the_guest(machines):
    machine = machines()
    machine.port.hold(True)
    machine.driver.add(TRANSMIT, [b"wait"], notify=False)
    machine.notify()
    assert machine.output == b"" and machine.driver.used(TRANSMIT) == []
    machine.port.hold(False)
    assert machine.output == b"wait" and machine.driver.used(TRANSMIT) == [0]
    machine.driver.add(TRANSMIT, [b", go"], notify=False)
    machine.notify()
    assert machine.output == b"wait, go" and len(machine.notifications) == 1


@pytest.mark.parametrize("width, value", [(2, TRANSMIT), (4, 3), (4, 1 << 16 | TRANSMIT)])
def test_other_writes_come_out(machines, width, value):
    machine = machines()
    kind = {2: "word", 4: "dword"}[width]
    machine.run(f"mov ecx, {NOTIFY}\n mov {kind} ptr [rcx], {value}\n {DONE}")
    assert machine.notifications == [MmioWrite(NOTIFY, width, value)]


def test_a_driver_that_starts_anew_starts_at_nothing(machines):
    machine = machines()
    machine.run(machine.printer(100))
    driver = machine.driver
    driver.write(0x70, 0)
    driver.queues.clear()
    machine.notify()
    assert machine.printed() == list(range(100)), "a device that was reset has no queue"
    driver.start()
    driver.notify(TRANSMIT)
    driver.add(TRANSMIT, [b"again"], notify=False)
    machine.notify()
    assert machine.output.endswith(b"again") and driver.used(TRANSMIT) == [0]


def test_a_queue_that_is_disabled_is_drained_no_more(machines):
    machine = machines()
    machine.driver.write(0x30, TRANSMIT)
    machine.driver.write(0x44, 0)
    machine.driver.add(TRANSMIT, [b"nobody"], notify=False)
    machine.notify()
    assert machine.output == b"" and machine.driver.used(TRANSMIT) == []


def test_a_device_that_needs_a_reset_drains_no_more(machines):
    machine = machines()
    machine.driver.transport.fail("for this test")
    machine.driver.add(TRANSMIT, [b"nobody"], notify=False)
    machine.notify()
    assert machine.output == b"" and machine.driver.used(TRANSMIT) == []


def test_the_used_area_beside_code(machines):
    """What native code writes there would change the code unseen."""
    machine = machines()
    queue = machine.driver.queues[TRANSMIT]
    at = (queue.used & ~0xFFF) + 0xF00
    assert at > queue.used + 6 + 8 * queue.size
    machine.memory.write(at, assemble("mov eax, 5\n ret", 64))
    # Called often enough to be translated.
    calls = f"mov ebx, 50\n 7: mov eax, {at}\n call rax\n dec ebx\n jnz 7b\n"
    machine.run(calls + machine.printer(20))
    assert machine.printed() == list(range(20))
    assert machine.notifications


def test_saved_in_the_middle(machines):
    """A state that is saved while native code has the queue is whole, and goes on elsewhere."""
    machine = machines()
    machine.run(machine.printer(1000))
    transport = machine.driver.transport
    machine.vm.settle()
    transport.pause()
    states = transport.save(), machine.console.save()
    assert states[0].queues[TRANSMIT].next_used == 1000
    other = machines()
    other.memory.write(ROOM, machine.memory.read(ROOM, RAM - ROOM))
    other.driver.transport.pause()
    other.driver.transport.restore(states[0])
    other.console.restore(states[1])
    for one in (machine, other):
        one.driver.transport.resume()
        one.stopping = False
        one.run(one.printer(500))
        assert one.printed()[-500:] == list(range(500))
        assert not one.notifications
    assert other.driver.transport.save().queues[TRANSMIT].next_used == 1500


def test_there_is_room_for_some(machines):
    machine = machines()
    more = [machine.vm.drain_queue(0xE000_0000, n, lambda: None) for n in range(QUEUES)]
    assert more.count(None) == 1 and more[-1] is None


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_whoever_looks_meanwhile(machines, seed):
    machine = machines()
    count = 30_000
    draw = random.Random(seed)
    transport, port = machine.driver.transport, machine.port
    over = threading.Event()

    def meddle():
        while not over.is_set():
            step = draw.randrange(5)
            if step == 0:
                port.taken()
            elif step == 1:
                port.hold(True)
                time.sleep(draw.random() / 1000)
                port.hold(False)
            elif step == 2:
                transport.serve(TRANSMIT)
            elif step == 3:
                machine.console.collect()
            else:
                transport.save()
                transport.serve(TRANSMIT)
            time.sleep(draw.random() / 3000)

    meddler = threading.Thread(target=meddle)
    meddler.start()
    try:
        machine.run(machine.printer(count), seconds=60)
    finally:
        over.set()
        meddler.join(10)
    machine.console.collect()
    assert machine.printed() == list(range(count))


def request(draw, driver):
    """Offer a request at random, of the kinds that drivers make and must not make."""
    queue = driver.queues[TRANSMIT]
    kind = draw.randrange(12)
    pieces = [draw.randbytes(draw.choice([1, 17, 300, 5000])) for _ in range(3)]
    if kind < 6:
        driver.add(TRANSMIT, pieces[:1], notify=False)
    elif kind < 8:
        driver.add(TRANSMIT, pieces[: draw.randrange(1, 4)], notify=False, indirect=kind == 7)
    elif kind == 8:
        driver.add(TRANSMIT, [b""], notify=False)
    elif kind == 9:
        driver.add(TRANSMIT, pieces[:1], [8], notify=False)
    elif draw.random() < 0.3:
        number = queue.free.pop()
        address = draw.choice([RAM - 8, 1 << 40, (1 << 64) - 4, 0xB8000])
        driver.describe(queue.descriptors, number, address, 16, draw.choice([0, 0, 0x80]), 0)
        queue.chains[number] = [number]
        driver.offer(queue, draw.choice([number, number, queue.size, 0xFFFF]))
        if draw.random() < 0.2:
            driver.memory.write_int(queue.available + 2, 2, draw.randrange(1 << 16))


@pytest.mark.parametrize("seed", range(30))
def test_as_without_an_engine(machines, seed):
    """Output, used area and what the device says of the driver are the same, step by step."""
    pair = [machines(lent=lent, features=seed % 2 * EVENT_IDX) for lent in (True, False)]
    for step in range(12):
        for machine in pair:
            draw = random.Random(f"{seed} {step}")
            machine.driver._free = ROOM + 0x40000
            for _ in range(draw.randrange(1, 8)):
                request(draw, machine.driver)
            machine.notify()
        seen = []
        for machine in pair:
            queue = machine.driver.queues[TRANSMIT]
            used = machine.memory.read(queue.used, 6 + 8 * queue.size)
            seen.append((bytes(machine.output), used, machine.driver.transport.failure))
            if machine.driver.transport.failure is None:
                machine.driver.used(TRANSMIT)
        assert seen[0] == seen[1]
        if seen[0][2] is not None:
            return
