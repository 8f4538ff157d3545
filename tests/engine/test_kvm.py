"""What only the KVM engine has: APICs in the kernel, doorbells, probe, reasons, speed of start."""

import os
import struct
import threading
import time

import pytest

from ringzero.core.memory import GuestMemory
from ringzero.engine.contract import Interrupts, Usability
from ringzero.engine.exits import Halt, Kicked, MmioWrite, Shutdown
from ringzero.engine.kvm import engine as kvm_engine_module
from ringzero.engine.kvm.engine import KvmEngine, open_system
from ringzero.engine.kvm.probe import measure_mips
from ringzero.engine.x86 import PortWrite
from ringzero.errors import EngineError, EngineUnavailableError
from ringzero.host.kvm import abi as kvm
from ringzero.isa.x86.architecture import CpuidTable
from ringzero.isa.x86.state import MP_UNINITIALIZED, CpuState
from tests.engine import guest as toolkit
from tests.engine.guest import CODE, MMIO, long_mode
from tests.oracle.assembler import assemble

pytestmark = pytest.mark.kvm


class TestAvailability:
    def test_no_device(self):
        with pytest.raises(EngineUnavailableError, match="there is no /dev/no-kvm") as caught:
            open_system("/dev/no-kvm")
        assert "--engine soft" in caught.value.hint

    def test_a_closed_device_names_the_group(self, tmp_path, monkeypatch):
        device = tmp_path / "kvm"
        device.touch(mode=0o660)

        def refuse(path):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(kvm_engine_module.kvmfd, "KvmSystem", refuse)
        with pytest.raises(EngineUnavailableError, match=r"members of group .* usermod -aG"):
            open_system(str(device))

    def test_another_device(self):
        with pytest.raises(EngineUnavailableError, match="is not KVM"):
            open_system("/dev/null")

    def test_the_probe_takes_milliseconds(self, kvm_engine):
        start = time.monotonic()
        mips = measure_mips(kvm_engine.system)
        assert mips > 0.1
        assert time.monotonic() - start < 2
        found = kvm_engine.availability()
        assert found.usability in (Usability.USABLE, Usability.SLOW)
        assert "\n" not in found.reason


@pytest.fixture
def vm(kvm_engine):
    """A machine of two vCPUs with local APICs in the kernel, in long mode over 1 MiB."""
    memory = GuestMemory([(0, toolkit.RAM)])
    memory.write(toolkit.GDT, toolkit._GDT)
    toolkit.write_long_tables(memory)
    # The APIC page at 0xFEE00000, by a 2 MiB page in the fourth gigabyte.
    memory.write_int(toolkit.TABLES + 0x1000 + 8 * 3, 8, 0xC0000000 | 1 << 7 | 3)
    made = kvm_engine.create_vm(
        memory, toolkit.processors(kvm_engine, cpus=2), interrupts=Interrupts.ENGINE
    )
    yield made
    made.close()
    memory.close()


def gate(memory, vector, at, text):
    """Install an interrupt gate to the assembled `text` at `at`."""
    memory.write(at, assemble(text, 64))
    low = at & 0xFFFF | toolkit.CODE64 << 16 | 0x8E << 40 | (at >> 16 & 0xFFFF) << 48
    memory.write(toolkit.IDT + 16 * vector, struct.pack("<QQ", low, at >> 32))


def run_to(vcpu, port, seconds=20):
    """Run until a write to `port`; return all port writes up to it."""
    timer = threading.Timer(seconds, vcpu.kick)
    timer.start()
    end = time.monotonic() + seconds
    seen = []
    try:
        while time.monotonic() < end:
            event = vcpu.run()
            if isinstance(event, PortWrite):
                seen.append((event.port, event.value))
                if event.port == port:
                    return seen
    finally:
        timer.cancel()
    raise AssertionError(f"no write to {port:#x}; seen {seen}")


# Enables the local APIC (xAPIC mode) and sets the spurious vector to 255.
ENABLE_APIC = "mov edi, 0xfee00000\nmov dword ptr [rdi + 0xf0], 0x1ff\n"


@pytest.mark.hardware
class TestKernelApics:
    @pytest.fixture(autouse=True)
    def usable(self, kvm_engine):
        found = kvm_engine.availability()
        if found.usability is not Usability.USABLE:
            pytest.skip(found.reason)

    def test_a_message_interrupts_a_halt(self, vm):
        vcpu = vm.create_vcpu(0, None)
        memory = vm.memory
        gate(memory, 0x41, 0x9000, "mov al, 0x41\nout 0x10, al\niretq")
        text = ENABLE_APIC + "mov al, 1\nout 0x10, al\nsti\nagain: hlt\njmp again"
        memory.write(CODE, assemble(text, 64))
        vcpu.set_state(long_mode())
        assert run_to(vcpu, 0x10)[-1] == (0x10, 1)
        threading.Timer(0.1, vm.send_message, [0xFEE00000, 0x4041]).start()
        assert run_to(vcpu, 0x10)[-1] == (0x10, 0x41)

    def test_a_repeated_message_comes_by_irqfd(self, vm, monkeypatch):
        vcpu, writes = vm.create_vcpu(0, None), []
        write = os.eventfd_write
        monkeypatch.setattr(os, "eventfd_write", lambda *of: (writes.append(of), write(*of)))
        gate(
            vm.memory, 0x41, 0x9000,
            "mov al, 0x41\nout 0x10, al\nmov dword ptr [rdi + 0xb0], 0\niretq",
        )  # fmt: skip
        text = ENABLE_APIC + "mov al, 1\nout 0x10, al\nsti\nagain: hlt\njmp again"
        vm.memory.write(CODE, assemble(text, 64))
        vcpu.set_state(long_mode())
        run_to(vcpu, 0x10)
        for _ in range(5):
            assert vm.send_message(0xFEE00000, 0x4041)
            assert run_to(vcpu, 0x10)[-1] == (0x10, 0x41)
        assert len(writes) == 4

    def test_a_message_by_irqfd_is_in_the_state_at_once(self, vm):
        vcpu = vm.create_vcpu(0, None)
        text = ENABLE_APIC + "mov al, 1\nout 0x10, al\nagain: jmp again"
        vm.memory.write(CODE, assemble(text, 64))
        enabled = long_mode()
        vcpu.set_state(enabled)
        run_to(vcpu, 0x10)
        idle = vcpu.get_state()
        # More than there are irqfds: some are given away again.
        for _ in range(2):
            for vector in range(0x30, 0x60):
                for _ in range(2):
                    vcpu.set_state(idle)
                    assert vm.send_message(0xFEE00000, 0x4000 | vector)
                    page = vcpu.get_state().lapic
                    assert page[0x200 + vector // 32 * 0x10 + vector % 32 // 8] & 1 << vector % 8

    def test_the_end_of_a_level_triggered_interrupt_is_told(self, vm):
        vcpu, ended = vm.create_vcpu(0, None), []
        vm.on_eoi = ended.append
        for vector in (0x41, 0x52, 0x63):
            handler = f"mov al, {vector}\nout 0x10, al\nmov dword ptr [rdi + 0xb0], 0\niretq"
            gate(vm.memory, vector, 0x9000 + vector, handler)
        text = ENABLE_APIC + "mov al, 1\nout 0x10, al\nsti\nagain: hlt\njmp again"
        vm.memory.write(CODE, assemble(text, 64))
        vcpu.set_state(long_mode())
        run_to(vcpu, 0x10)
        for vector, trigger in ((0x41, 0xC000), (0x52, 0xC000), (0x41, 0xC000), (0x63, 0x4000)):
            assert vm.send_message(0xFEE00000, trigger | vector)
            assert run_to(vcpu, 0x10)[-1] == (0x10, vector)
            threading.Timer(0.3, vcpu.kick).start()
            assert isinstance(vcpu.run(), Kicked)
        assert ended == [0x41, 0x52, 0x41]

    def test_a_message_to_nobody(self, vm):
        vm.create_vcpu(0, None).set_state(long_mode())
        assert not vm.send_message(0xFEE00000 | 0x77 << 12, 0x4041)

    def test_a_processor_is_started(self, vm):
        first, second = vm.create_vcpu(0, None), vm.create_vcpu(1, None)
        icr = "mov dword ptr [rdi + 0x310], 0x01000000\nmov dword ptr [rdi + 0x300], "
        text = ENABLE_APIC + f"{icr}0x4500\n{icr}0x4606\nagain: pause\njmp again"
        vm.memory.write(CODE, assemble(text, 64))
        vm.memory.write(0x6000, assemble("mov al, 7\nout 0x20, al\nhlt", 16))
        first.set_state(long_mode())
        second.set_state(CpuState(mp_state=MP_UNINITIALIZED))
        found = []
        threads = [
            threading.Thread(target=lambda: found.append(run_to(second, 0x20))),
            threading.Thread(target=first.run),
        ]
        for thread in threads:
            thread.start()
        threads[0].join(20)
        first.kick()
        threads[1].join(20)
        assert found == [[(0x20, 7)]]

    def test_the_apic_is_part_of_the_state(self, vm):
        vcpu = vm.create_vcpu(0, None)
        text = ENABLE_APIC + "mov dword ptr [rdi + 0x80], 0x30\nmov al, 1\nout 0x10, al\nhlt"
        vm.memory.write(CODE, assemble(text, 64))
        vcpu.set_state(long_mode())
        run_to(vcpu, 0x10)
        state = vcpu.get_state()
        assert state.lapic[0x80] == 0x30
        assert state.cr8 == 3
        vcpu.set_state(state)
        assert vcpu.get_state().lapic == state.lapic


class TestDoorbells:
    def test_a_rung_doorbell_is_no_exit(self, vm, kvm_engine):
        if kvm_engine.availability().usability is not Usability.USABLE:
            pytest.skip("needs KVM as hardware does it")
        vcpu = vm.create_vcpu(0, None)
        rings = []
        assert vm.add_doorbell(MMIO + 0x50, 4, 1, lambda: rings.append(1))
        text = (
            f"mov dword ptr [{MMIO + 0x50}], 1\nmov dword ptr [{MMIO + 0x50}], 2\n"
            "mov al, 1\nout 0x10, al\nhlt"
        )
        vm.memory.write(CODE, assemble(text, 64))
        vcpu.set_state(long_mode())
        assert vcpu.run() == MmioWrite(MMIO + 0x50, 4, 2)
        run_to(vcpu, 0x10)
        vm.settle()
        assert rings == [1]

    def test_settle_waits_for_what_was_rung(self):
        from ringzero.engine.kvm.doorbell import Doorbells

        bells, rings = Doorbells(), []
        fd = bells.add(lambda: (time.sleep(0.05), rings.append(1)))
        for n in range(1, 6):
            os.eventfd_write(fd, 1)
            bells.settle()
            assert len(rings) == n
        bells.close()


class TestGatheredWrites:
    """Registers whose writes are told later: an I/O APIC's index, for one."""

    TEXT = f"""
        mov ecx, {{rounds}}
        again:
        mov dword ptr [{MMIO + 0x100}], ecx
        mov eax, ecx
        out 0x70, al
        loop again
        mov dword ptr [{MMIO + 0x110}], 7
        mov al, 1
        out 0x10, al
        mov byte ptr [{MMIO + 0x100}], 9
        end: jmp end
    """

    @pytest.fixture
    def seen(self, vm):
        """What arrives late, in order."""
        found = []
        late = lambda a, w, vs: found.extend((a, w, v) for v in vs)  # noqa: E731 - two uses
        assert vm.gather_writes(False, MMIO + 0x100, 4, late)
        assert vm.gather_writes(True, 0x70, 1, late)
        assert not vm.gather_writes(True, 0x3F8, 1, late, prompt=True)
        return found

    def start(self, vm, rounds):
        vcpu = vm.create_vcpu(0, None)
        vm.memory.write(CODE, assemble(self.TEXT.format(rounds=rounds), 64))
        vcpu.set_state(long_mode())
        return vcpu

    def test_they_arrive_in_order_before_the_next_access(self, vm, seen):
        vcpu = self.start(vm, 3)
        assert vcpu.run() == MmioWrite(MMIO + 0x110, 4, 7)
        expected = [((MMIO + 0x100, 4, n), (0x70, 1, n)) for n in (3, 2, 1)]
        assert seen == [write for pair in expected for write in pair]
        assert vcpu.statistics()["exits"] == 1
        assert vcpu.run() == PortWrite(0x10, 1, 1)

    def test_more_than_the_ring_holds(self, vm, seen):
        vcpu = self.start(vm, 500)
        exits = []
        while not exits or exits[-1] != MmioWrite(MMIO + 0x110, 4, 7):
            event = vcpu.run()
            exits.append(event)
            if isinstance(event, (MmioWrite, PortWrite)) and len(exits) < 999:
                # A full ring makes an exit, and what it holds comes first.
                key = event.address if isinstance(event, MmioWrite) else event.port
                seen.append((key, event.width, event.value))
        assert len(exits) < 20
        assert [value & 0xFF for _, _, value in seen[:-1]] == [
            n & 0xFF for n in range(500, 0, -1) for _ in range(2)
        ]

    def test_settle_passes_on_the_rest(self, vm, seen):
        vcpu = self.start(vm, 1)
        while vcpu.run() != PortWrite(0x10, 1, 1):
            pass
        seen.clear()
        threading.Timer(0.2, vcpu.kick).start()
        assert isinstance(vcpu.run(), Kicked)
        vm.settle()
        assert seen == [(MMIO + 0x100, 1, 9)]


class TestDirtyRing:
    @pytest.fixture
    def ringed(self, kvm_engine):
        if not kvm_engine.system.check(kvm.CAP_DIRTY_LOG_RING):
            pytest.skip("this KVM has no dirty ring")
        guest = toolkit.build(KvmEngine(dirty_ring=1024))
        toolkit.write_long_tables(guest.memory)
        yield guest
        guest.vm.close()
        guest.memory.close()

    def test_what_was_written_is_told_once(self, ringed):
        ringed.vm.track_dirty(True)
        text = "mov [0x5000], al\nmov [0x5fff], al\nmov [0x20000], al\nout 0xf4, al\n"
        ringed.load(text + "mov [0x21000], al\nhlt", long_mode())
        ringed.run()
        assert {5, 0x20} <= set(ringed.vm.take_dirty())
        ringed.run()
        again = ringed.vm.take_dirty()
        assert 0x21 in again
        assert 0x20 not in again

    def test_more_pages_than_entries(self, ringed):
        """The ring fills up again and again: no exit for the run loop comes of it."""
        ringed.vm.track_dirty(True)
        seen = set()
        for _ in range(8):
            # Each round writes 200 pages, which are then clean again.
            text = "mov ecx, 200\nmov edi, 0x20000\nagain: mov [rdi], al\nadd edi, 4096\nloop again"
            ringed.load(text + "\nhlt", long_mode())
            ringed.run()
            if _ % 2:
                found = set(ringed.vm.take_dirty())
                assert set(range(0x20, 0x20 + 200)) <= found
                seen |= found
        assert not any(isinstance(event, Shutdown) for event in ringed.log)

    def test_a_size_that_cannot_be(self, kvm_engine):
        for entries in (3, 1, 1 << 30):
            memory = GuestMemory([(0, toolkit.RAM)])
            with pytest.raises(EngineError, match="dirty"):
                KvmEngine(dirty_ring=entries).create_vm(memory, CpuidTable(()))
            memory.close()


class TestErrors:
    def test_apics_are_kept_in_one_place(self, vm):
        with pytest.raises(EngineError):
            vm.create_vcpu(0, toolkit.FakeApic())

    def test_an_unanswered_read_is_an_error(self, kvm_engine):
        guest = toolkit.build(kvm_engine)
        toolkit.write_long_tables(guest.memory)
        guest.load("in al, 0x10\nhlt", long_mode())
        while isinstance(guest.vcpu.run(), Kicked):
            pass
        with pytest.raises(EngineError, match="answered"):
            guest.vcpu.run()
        guest.vm.close()

    def test_five_breakpoints(self, vm):
        with pytest.raises(EngineError):
            vm.create_vcpu(0, None).debug(False, (1, 2, 3, 4, 5))

    def test_dirty_pages_must_be_tracked_first(self, vm):
        with pytest.raises(EngineError):
            vm.take_dirty()


@pytest.mark.speed
def test_our_part_before_the_first_entry(kvm_engine):
    """Making a machine's engine side: under 60 ms of CPU, the kernel's part included."""
    best = 1.0
    for _ in range(5):
        start = time.process_time()
        engine = KvmEngine()
        memory = GuestMemory([(0, 64 << 20)])
        made = engine.create_vm(memory, toolkit.processors(engine))
        vcpu = made.create_vcpu(0, toolkit.FakeApic())
        memory.write(CODE, b"\xf4")
        toolkit.write_long_tables(memory)
        vcpu.set_state(long_mode())
        best = min(best, time.process_time() - start)
        assert isinstance(vcpu.run(), Halt)
        made.close()
        memory.close()
    print(f"\nengine, machine and vCPU made in {best * 1000:.1f} ms")
    assert best < 0.06
