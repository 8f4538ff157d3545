"""The local APIC in native code: against the device in Python, and what guests see of it."""

import random
import struct
import threading
import time
from dataclasses import replace

import pytest

from ringzero.core.memory import GuestMemory
from ringzero.devices.interrupts.ioapic import Ioapic
from ringzero.devices.interrupts.lapic import MSR_EOI_FLAG, ApicBus, Lapic
from ringzero.engine.contract import ENGINES
from ringzero.engine.exits import DebugStop, Halt, Kicked, MmioRead, MmioWrite
from ringzero.engine.x86 import MsrRead, MsrWrite, PortWrite
from tests.engine import guest as toolkit
from tests.oracle.assembler import assemble

pytestmark = pytest.mark.engine

CODE, HANDLER, STACK, STEP = 0x20000, 0x30000, 0x80000, 0x1000
COUNTS, FLAG = 0xA0000, 0xA0800
# A routine that ends an interrupt, and how often it did so by the guest's flag and by a write.
ROUTINE, ENDED, WRITTEN = 0x38000, 0xA0900, 0xA0908
# Flags by which vCPUs end interrupts, at each one's R14; what handlers have seen in them.
EOI_FLAG, EOI_FLAG_STEP, SEEN = 0xA0A00, 64, 0xA0B00
X2APIC = "mov ecx, 0x1b\n rdmsr\n or eax, 0x400\n wrmsr\n"
PAGE = 0xFEE00000


def wrmsr(index, value):
    return f"mov ecx, {index}\n mov eax, {value & 0xFFFFFFFF}\n mov edx, {value >> 32}\n wrmsr\n"


def deadline(ticks):
    """Arm the timer in TSC-deadline mode, vector 0x40, `ticks` from now."""
    return wrmsr(0x832, 0x40040) + (
        f"rdtsc\n shl rdx, 32\n or rax, rdx\n movabs rdx, {ticks}\n add rax, rdx\n"
        "mov rdx, rax\n shr rdx, 32\n mov ecx, 0x6e0\n wrmsr\n"
    )


class Machine:
    """Some vCPUs with local APICs, of which handlers count interrupts at COUNTS."""

    def __init__(self, count=1, ram=1 << 20):
        engine = ENGINES.get("soft")()
        self.memory = GuestMemory([(0, ram)])
        self.memory.write(toolkit.GDT, toolkit._GDT)
        toolkit.write_long_tables(self.memory)
        # The gigabyte in which local APICs lie, as it is.
        self.memory.write_int(toolkit.TABLES + 0x1000 + 8 * 3, 8, 3 << 30 | 0x83)
        self.vm = engine.create_vm(self.memory, toolkit.processors(engine, cpus=count))
        self.bus = ApicBus()
        hz = self.vm.counter_hz
        self.lapics = [Lapic(n, self.bus, self.vm.read_counter, hz) for n in range(count)]
        self.vcpus = [self.vm.create_vcpu(n, self.lapics[n]) for n in range(count)]
        self.exits = []
        self.threads = []
        self.stopping = False
        for vector in range(256):
            self.on_vector(vector, f"lock inc qword ptr [{COUNTS + 8 * vector}]\n" + self.eoi())

    def eoi(self):
        return (
            "push rax\n push rcx\n push rdx\n" + wrmsr(0x80B, 0) + "pop rdx\n pop rcx\n pop rax\n"
        )

    def on_vector(self, vector, body):
        at = HANDLER + 0x40 * vector
        code = assemble(body + "iretq", 64)
        assert len(code) <= 0x40
        self.memory.write(at, code)
        low = at & 0xFFFF | toolkit.CODE64 << 16 | 0x8E << 40 | (at >> 16 & 0xFFFF) << 48
        self.memory.write(toolkit.IDT + 16 * vector, struct.pack("<QQ", low, at >> 32))

    def load(self, number, text):
        at = CODE + STEP * number
        code = assemble(text, 64)
        assert len(code) <= STEP
        self.memory.write(at, code)
        state = toolkit.long_mode().with_gpr(rsp=STACK + STEP * (number + 1))
        self.vcpus[number].set_state(replace(state, rip=at))

    def start(self, *texts):
        for number, text in enumerate(texts):
            self.lapics[number].write(0xF0, 4, 0x1FF)
            self.load(number, text)
        self.threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(len(texts))
        ]
        for thread in self.threads:
            thread.start()

    def _run(self, number):
        vcpu, lapic = self.vcpus[number], self.lapics[number]
        while not self.stopping:
            event = vcpu.run()
            self.exits.append(event)
            if isinstance(event, MsrRead):
                vcpu.complete(lapic.read_msr(event.index))
            elif isinstance(event, MsrWrite):
                if not lapic.write_msr(event.index, event.value):
                    vcpu.complete(None)
            elif isinstance(event, MmioRead):
                vcpu.complete(lapic.read(event.address - PAGE, event.width))
            elif isinstance(event, MmioWrite):
                lapic.write(event.address - PAGE, event.width, event.value)
            elif isinstance(event, PortWrite):
                return
            else:
                assert isinstance(event, Kicked), event

    def run(self, *texts, seconds=30):
        """Run to a write to DONE on each vCPU."""
        self.start(*texts)
        self.join(seconds)

    def join(self, seconds=30):
        for thread in self.threads:
            thread.join(seconds)
        alive = [thread for thread in self.threads if thread.is_alive()]
        self.stopping = True
        for vcpu in self.vcpus:
            vcpu.kick()
        for thread in self.threads:
            thread.join(10)
        assert not alive

    def count(self, vector):
        return self.memory.read_int(COUNTS + 8 * vector, 8)

    def await_count(self, vector, wanted=1, seconds=20):
        end = time.monotonic() + seconds
        while self.count(vector) < wanted:
            assert time.monotonic() < end, f"vector {vector:#x} did not come"
            time.sleep(0.001)

    def close(self):
        self.vm.close()
        self.memory.close()


DONE = f"out {toolkit.DONE}, al\n"


@pytest.fixture
def machines():
    made = []

    def make(count=1):
        made.append(Machine(count))
        return made[-1]

    yield make
    for machine in made:
        machine.close()


class TestRegisters:
    """What a guest writes leaves the same behind as in a device that no engine works on."""

    def writes(self, seed):
        """MSRs and values: mostly what is served natively, but also what is refused."""
        draw = random.Random(seed)
        far = 1 << 62
        for _ in range(60):
            yield draw.choice(
                [
                    (0x80B, 0),
                    (0x808, draw.randrange(256)),
                    (0x83F, draw.choice([0x20, 0x41, 0x7F, 0x80, 0xFF, 3])),
                    (0x830, draw.randrange(16, 256) | draw.choice([1, 2]) << 18),
                    (0x830, draw.randrange(256) | draw.choice([0, 1, 2]) << 32),
                    (0x830, draw.randrange(16, 256) | 1 << 11 | draw.randrange(4) << 32),
                    (0x830, draw.randrange(16, 256) | 0xFFFFFFFF << 32),
                    (0x830, 0x100 | draw.randrange(16, 256)),
                    (0x832, draw.choice([0x20040, 0x40040, 0x10040, 0x41])),
                    (0x80F, draw.choice([0x1FF, 0x1FF, 0xFF])),
                    (0x6E0, draw.choice([0, far + draw.randrange(1 << 20)])),
                    (0x838, 0),
                    (0x83E, draw.randrange(16)),
                    (0x828, 0),
                    (0x837, draw.choice([0xFE, 0x100FE])),
                ]
            )

    @pytest.mark.parametrize("seed", range(8))
    def test_as_the_device_alone(self, machines, seed):
        bus = ApicBus()
        models = [Lapic(n, bus, lambda: 0, 10**9) for n in range(3)]
        for model in models:
            model.write(0xF0, 4, 0x1FF)
            assert model.write_msr(0x1B, model.read_msr(0x1B) | 0x400)
        text, accepted = X2APIC, []
        for index, value in self.writes(seed):
            # The processor takes nothing meanwhile: its interrupts are disabled.
            if models[0].write_msr(index, value):
                accepted.append((index, value))
                text += wrmsr(index, value)
        machine = machines(3)
        for lapic in machine.lapics[1:]:
            lapic.write(0xF0, 4, 0x1FF)
            assert lapic.write_msr(0x1B, lapic.read_msr(0x1B) | 0x400)
        machine.run(text + DONE)
        assert len(accepted) > 40
        for lapic, model in zip(machine.lapics, models, strict=True):
            assert lapic.save() == model.save()

    @pytest.mark.parametrize(
        ("index", "value"),
        [
            pytest.param(0x80B, 1, id="an EOI that is not 0"),
            pytest.param(0x83F, 0x100, id="a self-IPI of nine bits"),
            pytest.param(0x808, 1 << 32, id="a priority of more than 32 bits"),
            pytest.param(0x838, 1 << 32, id="a count of more than 32 bits"),
            pytest.param(0x832, 1 << 32, id="a timer's entry of more than 32 bits"),
            pytest.param(0x80A, 0, id="a register that is only read"),
            pytest.param(MSR_EOI_FLAG, EOI_FLAG | 3, id="a flag at no multiple of 4"),
        ],
    )
    def test_what_is_refused_raises_gp(self, machines, index, value):
        machine = machines()
        machine.on_vector(13, f"lock inc qword ptr [{COUNTS + 8 * 13}]\n" + DONE)
        machine.run(X2APIC + wrmsr(index, value) + "hlt")
        assert machine.count(13) == 1

    def test_without_x2apic_its_registers_are_no_msrs(self, machines):
        machine = machines()
        machine.on_vector(13, f"lock inc qword ptr [{COUNTS + 8 * 13}]\n" + DONE)
        machine.run(wrmsr(0x80B, 0) + "hlt")
        assert machine.count(13) == 1

    def test_a_state_moves_with_its_registers(self, machines):
        machine = machines()
        lapic = machine.lapics[0]
        lapic.write(0xF0, 4, 0x1FF)
        lapic.write(0x320, 4, 0x20055)
        lapic.receive(0, 0x77, True)
        lapic.acknowledge()
        lapic.receive(0, 0x31, False)
        assert lapic.write_msr(MSR_EOI_FLAG, EOI_FLAG | 1)
        saved = lapic.save()
        other = Lapic(0, ApicBus(), lambda: 0, machine.vm.counter_hz)
        other.restore(saved)
        assert other.save() == saved
        assert (saved.isr, saved.irr, saved.tmr) == (1 << 0x77, 1 << 0x31, 1 << 0x77)
        assert other.read_msr(MSR_EOI_FLAG) == EOI_FLAG | 1
        other.init()
        assert other.read_msr(MSR_EOI_FLAG) == 0


class TestInterrupts:
    def test_a_timer_wakes_a_halted_processor(self, machines):
        machine = machines()
        machine.run(X2APIC + deadline(100_000) + "sti\n hlt\n" + DONE)
        assert machine.count(0x40) == 1
        # Nothing of it came out of the guest but the switch of the APIC's mode.
        assert not any(isinstance(event, Halt) for event in machine.exits)
        assert all(getattr(event, "index", 0) in (0, 0x1B) for event in machine.exits)

    def test_a_timer_that_is_seconds_away(self, machines):
        """It is slept for in steps, and comes when it is due."""
        machine = machines()
        began = time.monotonic()
        machine.run(X2APIC + deadline(machine.vm.counter_hz * 5 // 4) + "sti\n hlt\n" + DONE)
        assert machine.count(0x40) == 1 and time.monotonic() - began > 1.24
        assert machine.vcpus[0].statistics()["halts"] == 1

    def test_another_mode_of_the_timer_disarms_it(self, machines):
        machine = machines()
        to_one_shot = deadline(machine.vm.counter_hz // 100) + wrmsr(0x832, 0x41)
        wait = wrmsr(0x832, 0x41) + wrmsr(0x838, 30_000_000) + "sti\n hlt\n"
        machine.run(X2APIC + to_one_shot + wait + DONE)
        assert (machine.count(0x40), machine.count(0x41)) == (0, 1)
        assert machine.lapics[0].save().timer_initial == 30_000_000

    def test_a_timer_comes_to_a_busy_processor(self, machines):
        machine = machines()
        busy = f"again: cmp qword ptr [{COUNTS + 8 * 0x40}], 0\n je again\n"
        machine.run(X2APIC + deadline(1000) + "sti\n" + busy + DONE)
        assert machine.count(0x40) == 1

    def test_a_periodic_timer(self, machines):
        machine = machines()
        start = wrmsr(0x83E, 0xB) + wrmsr(0x832, 0x20041) + wrmsr(0x838, 200_000)
        loop = f"again: hlt\n cmp qword ptr [{COUNTS + 8 * 0x41}], 5\n jb again\n"
        began = time.monotonic()
        machine.run(X2APIC + start + "sti\n" + loop + DONE)
        assert machine.count(0x41) >= 5
        assert time.monotonic() - began >= 5 * 0.0002

    def test_a_self_ipi_comes_when_interrupts_are_enabled(self, machines):
        machine = machines()
        text = wrmsr(0x83F, 0x51) + f"mov rax, [{COUNTS + 8 * 0x51}]\n mov [{FLAG}], rax\n"
        machine.run(X2APIC + text + "sti\n nop\n nop\n" + DONE)
        assert machine.memory.read_int(FLAG, 8) == 0 and machine.count(0x51) == 1

    def test_priorities(self, machines):
        """Of three the highest comes first; one of a class that the TPR masks waits for it."""
        machine = machines()
        for vector in (0x31, 0x52, 0x61):
            body = f"movzx r8, byte ptr [{FLAG}]\n inc byte ptr [{FLAG}]\n"
            machine.on_vector(vector, body + f"mov byte ptr [r8+{FLAG + 1}], {vector}\n call r15\n")
        eoi = machine.eoi()
        text = (
            f"lea r15, [rip+eoi]\n jmp on\n eoi: {eoi} ret\n on:\n"
            + wrmsr(0x808, 0x30) + wrmsr(0x83F, 0x31) + wrmsr(0x83F, 0x52) + wrmsr(0x83F, 0x61)
            + "sti\n nop\n" + f"mov r9b, [{FLAG}]\n" + wrmsr(0x808, 0) + "nop\n" + DONE
        )  # fmt: skip
        machine.run(X2APIC + text)
        assert machine.memory.read(FLAG, 4) == bytes((3, 0x61, 0x52, 0x31))
        assert machine.vcpus[0].get_state().gpr[9] & 0xFF == 2

    def test_cr8_is_the_task_priority(self, machines):
        machine = machines()
        text = "mov eax, 5\n mov cr8, rax\n" + wrmsr(0x83F, 0x51) + "sti\n nop\n"
        text += (
            f"mov rbx, [{COUNTS + 8 * 0x51}]\n mov rsi, cr8\n xor eax, eax\n mov cr8, rax\n nop\n"
        )
        machine.run(X2APIC + text + DONE)
        state = machine.vcpus[0].get_state()
        assert state.gpr[3] == 0 and state.gpr[6] == 5 and machine.count(0x51) == 1

    def test_other_processors(self, machines):
        """IPIs to a halted vCPU and to a busy one, back and forth."""
        machine = machines(2)
        rounds = 2000
        machine.on_vector(0x60, f"inc qword ptr [{FLAG}]\n" + machine.eoi())
        machine.on_vector(0x61, f"inc qword ptr [{FLAG + 64}]\n" + machine.eoi())
        ping = f"""
            {X2APIC} sti
            mov r15d, 1
        again1:
            {wrmsr(0x830, 0x60 | 1 << 32)}
        wait1:
            cmp [{FLAG + 64}], r15
            jb wait1
            inc r15
            cmp r15d, {rounds}
            jbe again1
            {DONE}"""
        pong = f"""
            {X2APIC} mov r15d, 1
        again2:
            cli
            cmp [{FLAG}], r15
            jae on
            sti
            hlt
            jmp again2
        on:
            sti
            {wrmsr(0x830, 0x61)}
            inc r15
            cmp r15d, {rounds}
            jbe again2
            {DONE}"""
        machine.run(ping, pong, seconds=60)
        assert machine.memory.read_int(FLAG, 8) == rounds
        assert machine.vcpus[0].statistics()["ipis"] == rounds
        assert machine.vcpus[1].statistics()["halts"] > 0

    def test_by_the_page_of_registers(self, machines):
        """xAPIC mode: a command, an EOI and the timer by addresses."""
        machine = machines(2)
        machine.on_vector(
            0x60, f"inc qword ptr [{COUNTS + 8 * 0x60}]\n mov dword ptr [r14+0xb0], 0\n"
        )
        machine.on_vector(
            0x41, f"inc qword ptr [{COUNTS + 8 * 0x41}]\n mov dword ptr [r14+0xb0], 0\n"
        )
        base = f"mov r14d, {PAGE}\n"
        send = "mov dword ptr [r14+0x310], 0x1000000\n mov dword ptr [r14+0x300], 0x60\n"
        timer = "mov dword ptr [r14+0x320], 0x41\n mov dword ptr [r14+0x380], 10000\n"
        halt = "sti\n hlt\n"
        read = "mov esi, [r14+0x300]\n mov edi, [r14+0x20]\n"
        machine.run(base + send + timer + halt + read + DONE, base + halt + DONE)
        assert machine.count(0x60) == 1 and machine.count(0x41) == 1
        assert not any(isinstance(event, MmioWrite) for event in machine.exits)
        state = machine.vcpus[0].get_state()
        assert (state.gpr[6], state.gpr[7]) == (0x60, 0)
        assert machine.lapics[1].save().isr == 0

    def test_a_device_wakes_a_halted_processor(self, machines):
        machine = machines()
        ioapic = Ioapic(machine.bus)
        ioapic.write(0, 4, 0x10 + 2 * 5)
        ioapic.write(0x10, 4, 0x70)
        machine.start(X2APIC + "sti\n hlt\n" + DONE)
        while not machine.vcpus[0].statistics()["halts"]:
            time.sleep(0.001)
        ioapic.line(5).pulse()
        machine.join()
        assert machine.count(0x70) == 1

    def test_a_level_triggered_interrupt_comes_again_after_its_end(self, machines):
        machine = machines()
        ioapic = Ioapic(machine.bus)
        ioapic.write(0, 4, 0x10 + 2 * 5)
        ioapic.write(0x10, 4, 0x8070)
        line = ioapic.line(5)
        loop = f"again: hlt\n cmp qword ptr [{COUNTS + 8 * 0x70}], 3\n jb again\n"
        machine.start(X2APIC + "sti\n" + loop + DONE)
        line.set(True)
        machine.await_count(0x70, 3)
        line.set(False)
        machine.join()

    def test_an_nmi_comes_through_disabled_interrupts(self, machines):
        machine = machines()
        machine.on_vector(2, f"inc qword ptr [{COUNTS + 16}]\n")
        machine.start(X2APIC + "cli\n hlt\n" + DONE)
        while not machine.vcpus[0].statistics()["halts"]:
            time.sleep(0.001)
        for mode, vector in ((0, 0x60), (4, 0)):
            machine.bus.send(machine.lapics, mode, vector)
        machine.join()
        assert machine.count(2) == 1 and machine.count(0x60) == 0
        assert machine.lapics[0].save().irr == 1 << 0x60

    def test_disabled_interrupts_let_a_halted_processor_sleep(self, machines):
        """It neither wakes nor keeps a host CPU busy."""
        machine = machines()
        machine.start(X2APIC + wrmsr(0x83F, 0x51) + "cli\n hlt\n" + DONE)
        while not machine.vcpus[0].statistics()["halts"]:
            time.sleep(0.001)
        began = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - began < 0.15
        assert machine.threads[0].is_alive() and machine.vcpus[0].statistics()["halts"] == 1
        machine.stopping = True
        machine.vcpus[0].kick()
        machine.threads[0].join(10)
        assert not machine.threads[0].is_alive()
        assert machine.vcpus[0].get_state().mp_state == "halted"

    def test_a_halted_processor_that_a_debugger_steps_takes_interrupts(self, machines):
        machine = machines()
        machine.start(X2APIC + "sti\n hlt\n" + DONE)
        while not machine.vcpus[0].statistics()["halts"]:
            time.sleep(0.001)
        machine.stopping = True
        machine.vcpus[0].kick()
        machine.threads[0].join(10)
        vcpu = machine.vcpus[0]
        assert vcpu.get_state().mp_state == "halted"
        vcpu.debug(True)
        machine.lapics[0].receive(0, 0x60, False)
        assert vcpu.run() == DebugStop(HANDLER + 0x40 * 0x60)


class TestEndsByFlag:
    """KVM's paravirtual end of interrupt: a bit in memory, as its own unit tests look at it."""

    def machine(self, machines, count=1):
        machine = machines(count)
        end = f"""
            btr dword ptr [r14], 0
            jnc write
            lock inc qword ptr [{ENDED}]
            ret
            write: lock inc qword ptr [{WRITTEN}]
            {machine.eoi()} ret"""
        machine.memory.write(ROUTINE, assemble(end, 64))
        return machine

    def on(self, machine, vector, body=""):
        """Count an interrupt, run `body`, end it by the routine; RAX, RCX, RDX are lost."""
        count = f"lock inc qword ptr [{COUNTS + 8 * vector}]\n"
        machine.on_vector(vector, f"{count}{body}mov eax, {ROUTINE}\n call rax\n")

    def see(self, number=0):
        """Keep what the flag is."""
        return f"mov al, [r14]\n mov [{SEEN + number}], al\n"

    def begin(self, number=0, flag=None):
        where = EOI_FLAG + EOI_FLAG_STEP * number if flag is None else flag
        return (
            X2APIC
            + f"mov r14d, {EOI_FLAG + EOI_FLAG_STEP * number}\n"
            + wrmsr(MSR_EOI_FLAG, where | 1)
        )

    def ends(self, machine):
        """How many were ended by the flag, and by a write; nothing is left."""
        for lapic in machine.lapics:
            saved = lapic.save()
            assert (saved.isr, saved.irr) == (0, 0)
        assert machine.memory.read_int(EOI_FLAG, 4) == 0
        return machine.memory.read_int(ENDED, 8), machine.memory.read_int(WRITTEN, 8)

    def test_the_flag_is_set_at_delivery_and_ends_the_interrupt(self, machines):
        machine = self.machine(machines)
        self.on(machine, 0x51, self.see())
        send = wrmsr(0x83F, 0x51)
        machine.run(
            f"{self.begin()} sti\n mov ebx, 1000\n again: {send} dec ebx\n jnz again\n{DONE}"
        )
        assert machine.memory.read(SEEN, 1) == b"\1"
        assert machine.count(0x51) == 1000 and self.ends(machine) == (1000, 0)

    def test_without_it_writes_do(self, machines):
        machine = self.machine(machines)
        self.on(machine, 0x51)
        text = X2APIC + f"mov r14d, {EOI_FLAG}\n sti\n" + wrmsr(0x83F, 0x51) + "nop\n"
        machine.run(text + DONE)
        assert machine.count(0x51) == 1 and self.ends(machine) == (0, 1)

    def test_an_interrupt_of_the_same_class_takes_it_back(self, machines):
        machine = self.machine(machines)
        self.on(machine, 0x51, wrmsr(0x83F, 0x52) + "sti\n nop\n" + self.see())
        self.on(machine, 0x52)
        machine.run(self.begin() + "sti\n" + wrmsr(0x83F, 0x51) + "nop\n" + DONE)
        assert machine.memory.read(SEEN, 1) == b"\0"
        assert (machine.count(0x51), machine.count(0x52)) == (1, 1)
        assert self.ends(machine) == (1, 1)

    def test_one_that_comes_while_interrupts_are_disabled_is_taken_at_the_end(self, machines):
        machine = self.machine(machines)
        self.on(machine, 0x51, wrmsr(0x83F, 0x52))
        self.on(machine, 0x52)
        machine.run(self.begin() + "sti\n" + wrmsr(0x83F, 0x51) + "nop\n" + DONE)
        assert (machine.count(0x51), machine.count(0x52)) == (1, 1)
        assert sum(self.ends(machine)) == 2

    def test_a_nested_interrupt_has_none_and_takes_that_of_the_other(self, machines):
        machine = self.machine(machines)
        self.on(machine, 0x51, wrmsr(0x83F, 0x81) + "sti\n nop\n" + self.see())
        self.on(machine, 0x81, self.see(1))
        machine.memory.write(SEEN, b"\7\7")
        machine.run(self.begin() + "sti\n" + wrmsr(0x83F, 0x51) + "nop\n" + DONE)
        assert machine.memory.read(SEEN, 2) == b"\0\0"
        assert self.ends(machine) == (0, 2)

    def test_none_while_another_waits(self, machines):
        machine = self.machine(machines)
        for vector in (0x41, 0x51):
            self.on(machine, vector)
        both = wrmsr(0x83F, 0x41) + wrmsr(0x83F, 0x51)
        machine.run(self.begin() + both + "sti\n nop\n" + DONE)
        assert self.ends(machine) == (1, 1)

    def test_none_of_a_level_triggered_one(self, machines):
        machine = self.machine(machines)
        self.on(machine, 0x70)
        ioapic = Ioapic(machine.bus)
        ioapic.write(0, 4, 0x10 + 2 * 5)
        ioapic.write(0x10, 4, 0x8070)
        line = ioapic.line(5)
        loop = f"again: hlt\n cmp qword ptr [{COUNTS + 8 * 0x70}], 3\n jb again\n"
        machine.start(self.begin() + "sti\n" + loop + DONE)
        line.set(True)
        machine.await_count(0x70, 3)
        line.set(False)
        machine.join()
        assert machine.memory.read_int(ENDED, 8) == 0

    def test_an_exit_takes_it_back(self, machines):
        """Whoever looks at the registers from outside sees what is in service."""
        machine = self.machine(machines)
        self.on(machine, 0x51, "mov ecx, 0x1b\n rdmsr\n" + self.see())
        machine.memory.write(SEEN, b"\7")
        machine.run(self.begin() + "sti\n" + wrmsr(0x83F, 0x51) + "nop\n" + DONE)
        assert machine.memory.read(SEEN, 1) == b"\0"
        assert self.ends(machine) == (0, 1)

    def test_a_write_of_the_task_priority_looks_at_it(self, machines):
        machine = self.machine(machines)
        priority = "mov eax, {}\n mov cr8, rax\n"
        machine.on_vector(0x51, f"btr dword ptr [r14], 0\n inc qword ptr [{ENDED}]\n")
        self.on(machine, 0x52)
        text = wrmsr(0x83F, 0x51) + priority.format(5) + wrmsr(0x83F, 0x52) + priority.format(0)
        machine.run(self.begin() + "sti\n" + text + "nop\n" + DONE)
        assert machine.count(0x52) == 1 and self.ends(machine) == (2, 0)

    @pytest.mark.parametrize("flag", [1 << 30, 0xFFFF_FFFF_FFFF_FFFC])
    def test_an_address_that_is_no_memory(self, machines, flag):
        machine = self.machine(machines)
        self.on(machine, 0x51)
        text = wrmsr(0x83F, 0x51) + "nop\n" + f"mov ecx, {MSR_EOI_FLAG}\n rdmsr\n"
        machine.run(self.begin(flag=flag) + "sti\n" + text + DONE)
        state = machine.vcpus[0].get_state()
        assert state.gpr[0] | state.gpr[2] << 32 == flag | 1
        assert self.ends(machine) == (0, 1)

    def test_beside_code(self, machines):
        """The flag lies in a line of translated code, which is dropped each time."""
        machine = self.machine(machines)
        self.on(machine, 0x51)
        at = CODE + STEP // 2
        machine.memory.write(
            at, assemble("jmp on\n nop\n nop\n nop\n nop\n nop\n nop\n on: ret", 64)
        )
        flag = f"mov r14d, {at + 4}\n mov r15d, {at}\n" + wrmsr(MSR_EOI_FLAG, at + 4 | 1)
        loop = f"mov ebx, 300\n again: call r15\n{wrmsr(0x83F, 0x51)} dec ebx\n jnz again\n"
        machine.run(X2APIC + flag + "sti\n" + loop + DONE)
        assert machine.count(0x51) == 300 and self.ends(machine) == (300, 0)

    def test_two_processors_that_answer_each_other(self, machines):
        machine = self.machine(machines, 2)
        rounds = 3000
        for vector in (0x60, 0x61):
            body = f"push rax\n push rcx\n push rdx\n mov eax, {ROUTINE}\n call rax\n"
            count = f"lock inc qword ptr [{FLAG + 64 * (vector & 1)}]\n"
            machine.on_vector(vector, f"{body}{count}pop rdx\n pop rcx\n pop rax\n")
        await_one = """wait{n}: cli
            cmp [{mine}], r13
            jae on{n}
            sti
            hlt
            jmp wait{n}
            on{n}: sti\n"""
        loop = (
            "mov r13d, 1\n again{n}: {first}{second} inc r13d\n cmp r13d, {rounds}\n jbe again{n}\n"
        )
        texts = []
        for n in range(2):
            turns = [
                wrmsr(0x830, 0x60 | n ^ 1 | (n ^ 1) << 32),
                await_one.format(n=n, mine=FLAG + 64 * n),
            ]
            first, second = turns[::-1] if n else turns
            text = loop.format(n=n, first=first, second=second, rounds=rounds)
            texts.append(self.begin(n) + text + DONE)
        machine.run(*texts, seconds=60)
        assert machine.memory.read_int(FLAG, 8) == machine.memory.read_int(FLAG + 64, 8) == rounds
        ended, written = self.ends(machine)
        assert ended + written == 2 * rounds and ended > 0
