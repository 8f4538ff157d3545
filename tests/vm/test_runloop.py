"""The run loop over a scripted engine: every exit goes where it belongs."""

import gc
import threading
import time
from pathlib import Path

import pytest

from ringzero.devices.contract import Device
from ringzero.engine.exits import DebugStop, Halt, Kicked, MmioRead, MmioWrite, Shutdown
from ringzero.engine.x86 import MsrRead, MsrWrite, PortRead, PortWrite
from ringzero.errors import DeviceError, InvalidValueError
from ringzero.isa.x86.state import CpuState
from ringzero.vm.exit import Exit, ExitReason
from ringzero.vm.machine import Machine
from ringzero.vm.runloop import RunControl
from tests.engine.fake import FakeEngine

POWER_OFF = PortWrite(0x600, 1, 0x34)
END = 10.0


def machine(*script, others=None, **fields):
    fields.setdefault("memory", "32M")
    fields.setdefault("agent", False)
    engine = FakeEngine(*script, others=others)
    return Machine(engine=engine, **fields), engine


def run(*script, **fields):
    vm, engine = machine(*script, **fields)
    with vm:
        vm.start()
        result = vm.wait(END)
    return result, engine.vm.vcpus[0], vm


def test_power_off_ends_the_run():
    result, _, _ = run(POWER_OFF)
    assert result.reason is ExitReason.POWEROFF and result.error() is None


def test_reads_are_answered_with_the_right_width():
    _, vcpu, _ = run(
        PortRead(0x3FD, 1), PortRead(0xCF8, 4), MmioRead(0xD0000000, 4), MmioRead(0xDEAD0000, 8),
        MmioRead(0xFEE00030, 4), MsrRead(0x1B), MsrRead(0xC0FFEE), POWER_OFF,
    )  # fmt: skip
    assert vcpu.answers == [
        0x60, 0xFFFFFFFF, 0x74726976, (1 << 64) - 1, 0x50014, 0xFEE00900, None,
    ]  # fmt: skip


def test_only_a_failed_msr_write_is_answered():
    _, vcpu, _ = run(MsrWrite(0x4B564D01, 0), MsrWrite(0xC0FFEE, 1), POWER_OFF)
    assert vcpu.answers == [None]


def test_serial_output_and_panic_detail():
    script = [PortWrite(0x3F8, 1, byte) for byte in b"oops\nKernel panic - not syncing"]
    out = bytearray()
    vm, _ = machine(*script, PortWrite(0x64, 1, 0xFE))
    vm.serial.on_output = out.extend
    with vm:
        vm.start()
        result = vm.wait(END)
    assert out.endswith(b"not syncing")
    assert result.reason is ExitReason.PANIC
    # Last words begin at the cause.
    assert "oops" not in result.error().message and "not syncing" in result.error().message


def test_panic_device_and_reboot():
    assert run(PortWrite(0x505, 1, 1))[0].reason is ExitReason.PANIC
    assert run(PortWrite(0x602, 1, 1))[0].reason is ExitReason.REBOOT
    assert run(PortWrite(0x64, 1, 0xFE))[0].reason is ExitReason.REBOOT


def test_triple_fault_keeps_the_detail():
    result, _, _ = run(Shutdown("rip=0x1234"))
    assert result.reason is ExitReason.TRIPLE_FAULT and "0x1234" in result.error().message


def test_linux_may_reboot_by_a_triple_fault():
    text = [PortWrite(0x3F8, 1, byte) for byte in b"[ 9.1] reboot: Restarting system\n"]
    assert run(*text, Shutdown("rip=0"))[0].reason is ExitReason.REBOOT


def test_mmio_write_reaches_the_local_apic_and_interrupts():
    def expect(vcpu):
        assert vcpu.taken == [0x77]
        return POWER_OFF

    result, _, _ = run(
        MmioWrite(0xFEE000F0, 4, 0x1FF), MmioWrite(0xFEE00300, 4, 0x40077), Kicked(), expect
    )
    assert result.reason is ExitReason.POWEROFF


def test_halt_wakes_by_the_timer():
    result, vcpu, _ = run(
        MmioWrite(0xFEE000F0, 4, 0x1FF),
        MmioWrite(0xFEE00320, 4, 0x55),
        MmioWrite(0xFEE003E0, 4, 0xB),
        MmioWrite(0xFEE00380, 4, 5_000_000),
        Halt(),
        POWER_OFF,
    )
    assert result.reason is ExitReason.POWEROFF and vcpu.taken == [0x55]


def test_stop_from_another_thread_is_prompt():
    for script in ((), [lambda vcpu: time.sleep(0.001) or Kicked()] * 100_000):
        vm, engine = machine(*script)
        vm.start()
        time.sleep(0.05)
        begin = time.monotonic()
        vm.stop()
        assert time.monotonic() - begin < 2
        assert engine.vm.closed
        assert vm.wait(0).reason is ExitReason.STOPPED
        vm.stop()


def test_wait_gives_up_and_the_machine_goes_on():
    vm, _ = machine()
    with vm:
        vm.start()
        assert vm.wait(0.05) is None
        assert vm.running


def test_pause_and_resume():
    counts = []

    def count(vcpu):
        counts.append(1)
        vcpu.script.append(count)
        time.sleep(0.0005)
        return Kicked()

    vm, _ = machine(count)
    with vm:
        vm.start()
        time.sleep(0.02)
        vm.pause()
        before = len(counts)
        assert before and not vm.running
        time.sleep(0.05)
        assert len(counts) == before
        vm.resume()
        time.sleep(0.05)
        assert len(counts) > before


def test_a_paused_machine_stands_still():
    vm, _ = machine()
    with vm:
        vm.start()
        vm.serial.write(b"before")
        vm.pause()
        first = vm.save().tree
        vm.serial.write(b"typed meanwhile")
        second = vm.save().tree
        for name in first["devices"]:
            if name != "serial":
                assert first["devices"][name] == second["devices"][name]
        assert first["devices"]["serial"]["received"] == second["devices"]["serial"]["received"]
        vm.resume()
        assert vm.save().tree["devices"]["serial"]["received"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_end_is_told_once_and_to_nobody_who_called_it_off(when):
    told = []
    control = RunControl()
    control.when_ended(lambda: told.append("another"))
    control.when_ended(None)
    if when == "before":
        control.when_ended(lambda: told.append(control.exit))
    control.finish(Exit(ExitReason.POWEROFF))
    control.fail(RuntimeError("too late"))
    if when == "after":
        control.when_ended(lambda: told.append(control.exit))
    assert told == [Exit(ExitReason.POWEROFF)]


def test_a_fault_of_ours_is_raised_to_the_waiter():
    def broken(vcpu):
        raise RuntimeError("engine bug")

    vm, _ = machine(broken)
    with vm:
        vm.start()
        with pytest.raises(RuntimeError, match="engine bug"):
            vm.wait(END)


def test_registers_and_memory():
    vm, _ = machine()
    with vm:
        vm.start()
        vm.cpu.registers.rax = 42
        vm.cpu.registers["rip"] = 0x1000
        assert vm.cpu.registers.rax == 42 and vm.cpu.registers["rip"] == 0x1000
        assert set(vm.cpu.registers) >= {"rax", "r15", "rip", "rflags", "cr3", "efer"}
        assert vm.running, "the machine went on"
        for wrong in ("eax", "xyz"):
            with pytest.raises(KeyError):
                vm.cpu.registers[wrong]
        with pytest.raises(InvalidValueError):
            vm.cpu.registers.rax = 1 << 64
        vm.memory[0x1000:0x1004] = b"abcd"
        assert vm.memory[0x1000:0x1010] == b"abcd" + bytes(12)
        vm.memory[0x1001] = 0x58
        assert vm.memory[0x1001] == 0x58
        with pytest.raises(DeviceError):
            vm.memory[0x40000000:0x40000004]
        for wrong in (slice(4, 2), slice(0, None), slice(0, 8, 2)):
            with pytest.raises(InvalidValueError):
                vm.memory[wrong]
        with pytest.raises(InvalidValueError):
            vm.memory[0:4] = b"too long"


def mapped():
    return Path("/proc/self/maps").read_text().count("guest-ram")


def test_memory_goes_back_to_the_host_at_once():
    before = mapped()
    gc.disable()
    try:
        vm, _ = machine(agent=True)
        vm.start()
        vm.stop()
        assert mapped() == before
        with pytest.raises(InvalidValueError):
            vm.memory[0]
    finally:
        gc.enable()


def test_breakpoint_pauses_and_resume_goes_on():
    vm, engine = machine(DebugStop(0x2000), POWER_OFF)
    with vm:
        vm.debugger.break_at(0x2000)
        assert engine.vm.vcpus[0].breakpoints == (0x2000,)
        vm.start()
        cpu, address = vm.debugger.wait(END)
        assert (cpu.index, address) == (0, 0x2000) and not vm.running
        assert vm.wait(0) is None
        vm.resume()
        assert vm.wait(END).reason is ExitReason.POWEROFF


def test_a_breakpoint_is_passed_by_a_single_step():
    vm, engine = machine(DebugStop(0x2000), DebugStop(0x2001), DebugStop(0x3000), POWER_OFF)
    vcpu, calls = engine.vm.vcpus[0], []
    vcpu.debug = lambda step, addresses: calls.append((step, addresses))
    with vm:
        for address in (0x2000, 0x3000):
            vm.debugger.hook(address, lambda m, cpu: None)
        calls.clear()
        vm.start()
        vm.wait(END)
    assert calls == [(True, (0x3000,)), (False, (0x2000, 0x3000)), (True, (0x2000,))]


def test_hook_is_called_and_the_machine_goes_on():
    seen = []
    vm, _ = machine(DebugStop(0x3000), DebugStop(0x3000), POWER_OFF)
    with vm:
        vm.debugger.hook(0x3000, lambda m, cpu: seen.append((m, cpu.registers.rip)))
        vm.start()
        assert vm.wait(END).reason is ExitReason.POWEROFF
    assert [m for m, _ in seen] == [vm, vm]


def test_a_hook_may_stop_the_machine():
    vm, engine = machine(DebugStop(0x3000), POWER_OFF)
    with vm:
        vm.debugger.hook(0x3000, lambda m, cpu: m.stop())
        vm.start()
        assert vm.wait(END).reason is ExitReason.STOPPED
    assert engine.vm.closed


def test_second_processor_waits_for_init_and_startup():
    states = []

    def remember(vcpu):
        states.append(vcpu.get_state())
        return Halt()

    sipi = [
        MmioWrite(0xFEE00310, 4, 1 << 24),
        MmioWrite(0xFEE00300, 4, 0x4500),
        MmioWrite(0xFEE00300, 4, 0x4699),
        lambda vcpu: time.sleep(0.1) or POWER_OFF,
    ]
    vm, _ = machine(*sipi, others={1: [remember]}, cpus=2)
    with vm:
        vm.threads[1].set_state(CpuState(mp_state="uninitialized"))
        vm.start()
        assert vm.wait(END).reason is ExitReason.POWEROFF
    assert len(states) == 1
    assert (states[0].cs.selector, states[0].cs.base, states[0].rip) == (0x9900, 0x99000, 0)


class Doubler(Device):
    state_type = CpuState

    def __init__(self):
        self.value = 0

    def read(self, offset, width):
        return self.value * 2

    def write(self, offset, width, value):
        self.value = value

    def reset(self):
        self.value = 0

    def save(self):
        return CpuState()

    def restore(self, state):
        pass


def test_a_device_of_ones_own():
    vm, engine = machine(
        MmioWrite(0xD1000000, 4, 21),
        MmioRead(0xD1000000, 4),
        PortWrite(0x700, 2, 4),
        PortRead(0x700, 2),
        POWER_OFF,
    )
    with vm:
        vm.attach("doubler", Doubler(), mmio=0xD1000000)
        vm.attach("port", Doubler(), pio=0x700, size=2)
        with pytest.raises(DeviceError):
            vm.attach("doubler", Doubler(), mmio=0xD2000000)
        with pytest.raises(DeviceError):
            vm.attach("ram", Doubler(), mmio=0x1000)
        vm.start()
        vm.wait(END)
        with pytest.raises(DeviceError):
            vm.attach("late", Doubler(), mmio=0xD3000000)
    assert engine.vm.vcpus[0].answers == [42, 8]
    assert vm.stats()["devices"]["doubler"] == {"reads": 1, "writes": 1}


class Resuming(Doubler):
    resumed = 0

    def resume(self):
        self.resumed += 1


def test_restored_devices_go_on_at_start():
    vm, _ = machine()
    device = Resuming()
    with vm:
        vm.attach("doubler", device, mmio=0xD1000000)
        vm.restore(vm.save())
        with pytest.raises(InvalidValueError):
            vm.resume()
        assert device.resumed == 0
        vm.start()
        assert device.resumed == 1


def test_a_hook_and_another_thread_look_at_registers():
    looked = []

    def look(m, cpu):
        time.sleep(0.001)
        looked.append(cpu.registers.rip)

    vm, _ = machine(*[DebugStop(0x3000)] * 200, POWER_OFF)
    with vm:
        vm.debugger.hook(0x3000, look)
        vm.start()
        while vm.wait(0) is None:
            vm.cpu.registers.rax = 1
        assert len(looked) == 200


def test_state_tree_round_trip():
    vm, _ = machine(PortWrite(0x3FF, 1, 0x5A), cpus=2)
    with vm:
        vm.start()
        time.sleep(0.02)
        saved = vm.save()
        assert vm.running
    other, _ = machine(PortRead(0x3FF, 1), POWER_OFF, cpus=2)
    with other:
        other.restore(saved)
        assert other.save() == saved
        other.start()
        other.wait(END)
        assert other.parts.vm.vcpus[0].answers == [0x5A]


def test_nothing_is_left_behind():
    before = threading.active_count()
    for _ in range(3):
        vm, _ = machine(agent=True)
        vm.start()
        vm.stop()
    # A thread that has been told to end is there for a moment.
    end = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= before
