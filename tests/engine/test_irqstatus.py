"""Interrupt status registers that native code serves, and the interrupts that it sends for them."""

import random
import threading
import time

import pytest

from ringzero.core.irq import InterruptStatus
from ringzero.devices.interrupts.ioapic import LEVEL, MASKED, Ioapic
from ringzero.engine.exits import Kicked, MmioRead, MmioWrite
from ringzero.isa.x86.irqstatus import REGISTERS
from tests.isa.test_apic import COUNTS, DONE, PAGE, X2APIC, Machine
from tests.oracle.assembler import assemble

pytestmark = pytest.mark.engine

# In the gigabyte that `Machine` maps as it is.
WINDOW = 0xD000_0000
STATUS, ACKNOWLEDGE = WINDOW + 0x60, WINDOW + 0x64
VECTOR, PIN = 0x51, 5
PRODUCED, CONSUMED, SPURIOUS = COUNTS + 0x900, COUNTS + 0x908, COUNTS + 0x910
# As drivers do: read, acknowledge what was read, then look what there is.
HANDLER = (
    f"push rax\n push rcx\n push rdx\n mov ecx, {STATUS}\n mov eax, [rcx]\n"
    f"mov [rcx + 4], eax\n mov rax, [{PRODUCED}]\n mov [{CONSUMED}], rax\n"
)


class Wired(Machine):
    """A machine with an I/O APIC whose pin `PIN` a device drives; `exits` has what came out."""

    def __init__(self, count=1, shared=True):
        super().__init__(count)
        self.ioapic = Ioapic(self.bus)
        self.line = self.ioapic.line(PIN)
        self.status = InterruptStatus(self.line)
        self.shared = None
        if shared:
            self.shared = self.vm.share_status(STATUS, ACKNOWLEDGE)
            self.status.share(self.shared)
        self.lock = threading.Lock()

    def redirect(self, entry, destination=0):
        for half, value in ((1, destination << 24), (0, entry)):
            self.ioapic.write(0, 4, 0x10 + 2 * PIN + half)
            self.ioapic.write(0x10, 4, value)

    def raise_reason(self, reason=1):
        with self.lock:
            self.status.set(reason)

    def _run(self, number):
        vcpu, lapic = self.vcpus[number], self.lapics[number]
        while not self.stopping:
            event = vcpu.run()
            self.exits.append(event)
            if isinstance(event, MmioRead) and event.address == STATUS:
                vcpu.complete(self.status.value)
            elif isinstance(event, MmioWrite) and event.address == ACKNOWLEDGE:
                with self.lock:
                    self.status.clear(event.value)
            elif isinstance(event, (MmioRead, MmioWrite)):
                if isinstance(event, MmioRead):
                    vcpu.complete(lapic.read(event.address - PAGE, event.width))
                else:
                    lapic.write(event.address - PAGE, event.width, event.value)
            elif hasattr(event, "index"):
                if not hasattr(event, "value"):
                    vcpu.complete(lapic.read_msr(event.index))
                elif not lapic.write_msr(event.index, event.value):
                    vcpu.complete(None)
            elif not isinstance(event, Kicked):
                return

    def accesses(self):
        return [event for event in self.exits if isinstance(event, (MmioRead, MmioWrite))]


@pytest.fixture
def machines():
    made = []

    def make(*arguments, **options):
        made.append(Wired(*arguments, **options))
        return made[-1]

    yield make
    for machine in made:
        machine.stopping = True
        for vcpu in machine.vcpus:
            vcpu.kick()
        for thread in machine.threads:
            thread.join(10)
        machine.close()


def read_write(value):
    return f"{X2APIC} mov ecx, {STATUS}\n mov ebx, [rcx]\n mov dword ptr [rcx + 4], {value}\n{DONE}"


def test_reads_and_acknowledgements_stay_in_the_guest(machines):
    machine = machines()
    machine.status.set(3)
    machine.run(read_write(3))
    assert not machine.accesses()
    assert machine.vcpus[0].get_state().gpr[3] == 3 and machine.status.value == 0


def test_an_acknowledgement_that_leaves_reasons_comes_out(machines):
    machine = machines()
    machine.redirect(VECTOR)
    machine.status.set(3)
    # The first edge is no concern here: interrupts are disabled.
    machine.run(read_write(1))
    assert machine.accesses() == [MmioWrite(ACKNOWLEDGE, 4, 1)]
    assert machine.status.value == 2 and machine.line.level


@pytest.mark.parametrize("width", ["word", "byte", "qword"])
def test_accesses_of_other_widths_come_out(machines, width):
    machine = machines()
    machine.status.set(1)
    register = {"byte": "al", "word": "ax", "qword": "rax"}[width]
    machine.run(f"{X2APIC} mov ecx, {STATUS}\n mov {register}, [rcx]\n{DONE}")
    assert [type(event) for event in machine.accesses()] == [MmioRead]


def test_there_is_room_for_one_on_each_pin(machines):
    machine = machines()
    more = [machine.vm.share_status(0xE000_0000 + n * 8, 4) for n in range(REGISTERS)]
    assert more.count(None) == 1 and more[-1] is None


def listening(machine, entry=VECTOR, handler=HANDLER, count=1, destination=0):
    """Start a guest that waits for interrupts in HLT."""
    body = f"lock inc qword ptr [{COUNTS + 8 * VECTOR}]\n" + handler
    # Longer than a vector's own room.
    at = 0x38000
    machine.memory.write(
        at,
        assemble(
            body + "mov ecx, 0x80b\n xor eax, eax\n xor edx, edx\n wrmsr\n"
            "pop rdx\n pop rcx\n pop rax\n iretq",
            64,
        ),
    )
    machine.on_vector(VECTOR, f"mov r15d, {at}\n jmp r15\n")
    machine.redirect(entry, destination)
    machine.start(*[X2APIC + "sti\n 1: hlt\n jmp 1b\n"] * count)
    time.sleep(0.05)


def test_every_edge_is_an_interrupt(machines):
    machine = machines()
    listening(machine)
    for number in range(1, 200):
        machine.raise_reason()
        machine.await_count(VECTOR, number)
        while machine.status.value:
            time.sleep(0)
    assert machine.count(VECTOR) == 199
    assert not machine.accesses(), "none of it comes out"


def test_a_masked_pin_keeps_the_edge(machines):
    machine = machines()
    listening(machine)
    machine.raise_reason()
    machine.await_count(VECTOR, 1)
    machine.redirect(VECTOR | MASKED)
    machine.raise_reason()
    time.sleep(0.05)
    assert machine.count(VECTOR) == 1
    machine.redirect(VECTOR)
    machine.await_count(VECTOR, 2)


def test_another_vector_or_vcpu_is_used_from_the_write_on(machines):
    machine = machines(2)
    listening(machine, count=2)
    other = VECTOR + 1
    machine.raise_reason()
    machine.await_count(VECTOR, 1)
    machine.redirect(other, destination=1)
    while machine.status.value:
        time.sleep(0)
    machine.raise_reason()
    machine.await_count(other, 1)
    assert machine.count(VECTOR) == 1


def test_a_new_logical_address_is_followed():
    """Routes of native code end when a local APIC changes what it is called by."""
    machine = Wired(2)
    for lapic, name in zip(machine.lapics, (1, 2), strict=True):
        lapic.write(0xF0, 4, 0x1FF)
        lapic.write(0xD0, 4, name << 24)
    machine.redirect(VECTOR | 1 << 11, destination=1)
    machine.raise_reason()
    machine.status.clear(1)
    for lapic, name in zip(machine.lapics, (2, 1), strict=True):
        lapic.write(0xD0, 4, name << 24)
        lapic.registers.irr = 0
    for _ in range(2):
        machine.raise_reason()
        assert [lapic.registers.irr for lapic in machine.lapics] == [0, 1 << VECTOR]
        machine.status.clear(1)
        machine.lapics[1].registers.irr = 0
    machine.lapics[1].init()
    machine.raise_reason()
    assert [lapic.registers.irr for lapic in machine.lapics] == [0, 0], "nobody is called so"
    machine.close()


def test_a_level_triggered_pin_follows_the_register(machines):
    """An end of interrupt sends another one only while reasons are left."""
    machine = machines()
    listening(machine, entry=VECTOR | LEVEL)
    for number in range(1, 20):
        machine.raise_reason()
        machine.await_count(VECTOR, number)
        while machine.status.value:
            time.sleep(0)
    time.sleep(0.05)
    assert machine.count(VECTOR) == 19
    assert not machine.ioapic.save().levels & 1 << PIN


def test_saved_levels_are_the_registers():
    machine = Wired()
    machine.raise_reason(2)
    assert machine.ioapic.save().levels == 1 << PIN
    machine.shared.value = 0
    assert machine.ioapic.save().levels == 0
    machine.close()


def test_an_edge_after_the_levels_were_saved_is_one(machines):
    """Though the I/O APIC saw the level at that time, and nobody told it of its end."""
    machine = machines()
    listening(machine)
    machine.raise_reason()
    machine.await_count(VECTOR, 1)
    while machine.status.value:
        time.sleep(0)  # the handler has counted, and not acknowledged yet
    machine.shared.set(2)  # as by native code, which tells nobody
    machine.ioapic.save()
    machine.shared.value = 0
    machine.await_count(VECTOR, 2)  # else the next one may be the same request
    machine.redirect(VECTOR | MASKED)
    machine.raise_reason()
    machine.redirect(VECTOR)
    machine.await_count(VECTOR, 3)


@pytest.mark.parametrize("vcpus", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_no_interrupt_is_lost(machines, seed, vcpus):
    """Whatever is produced before a reason is set is seen, however the two interleave."""
    draw = random.Random(seed)
    machine = machines(vcpus)
    listening(machine, count=vcpus)
    produced, rounds = 0, 3000
    producing = threading.Lock()

    def device():
        nonlocal produced
        own = random.Random(draw.random())
        for _ in range(rounds):
            with producing:
                produced += 1
                machine.memory.write_int(PRODUCED, 8, produced)
            machine.raise_reason(own.choice([1, 1, 1, 2, 3]))
            for _ in range(own.choice([0, 0, 0, 1, 10, 100])):
                pass
            if own.random() < 0.01:
                time.sleep(own.random() / 1000)

    def meddler():
        """Someone who writes the redirection entry meanwhile."""
        for number in range(50):
            machine.redirect(VECTOR | MASKED * (number & 1), destination=number // 2 % vcpus)
            time.sleep(0.001)
        machine.redirect(VECTOR)

    threads = [threading.Thread(target=work) for work in (device, device, meddler)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    end = time.monotonic() + 10
    while machine.memory.read_int(CONSUMED, 8) != produced or machine.status.value:
        assert time.monotonic() < end, (machine.memory.read_int(CONSUMED, 8), machine.status.value)
        time.sleep(0.001)
    assert produced == 2 * rounds


@pytest.mark.parametrize("seed", range(6))
def test_as_without_an_engine(seed):
    """The same vectors are requested, step by step, as of a register that Python holds."""
    draw = random.Random(seed)
    machines = [Wired(2, shared=shared) for shared in (True, False)]
    for machine in machines:
        for lapic in machine.lapics:
            lapic.write(0xF0, 4, 0x1FF)
    for _ in range(300):
        step = draw.randrange(6)
        reasons, half = draw.randrange(1, 4), draw.randrange(2)
        entry = draw.choice([0x30, 0x41]) | draw.choice([0, 0, 0, MASKED, LEVEL, 1 << 8, 1 << 11])
        name = draw.randrange(4) << 24
        for machine in machines:
            if step < 2:
                machine.status.set(reasons)
            elif step == 2:
                machine.status.clear(reasons)
            elif step == 3:
                machine.redirect(entry, destination=half)
            elif step == 4:
                machine.lapics[half].write(0xD0, 4, name)
            else:
                for lapic in machine.lapics:
                    lapic.registers.irr = 0
                machine.ioapic.end_of_interrupt(entry & 0xFF)
        found = [
            (machine.status.value, *(lapic.registers.irr for lapic in machine.lapics))
            for machine in machines
        ]
        assert found[0] == found[1]
    assert machines[0].ioapic.save() == machines[1].ioapic.save()
    for machine in machines:
        machine.close()
