"""A whole machine of the toy ISA: the run loop, its board, saved states, copies, the debugger."""

import json

import pytest

from ringzero.errors import (
    DeviceError,
    EngineUnavailableError,
    GuestError,
    InvalidValueError,
    StateError,
)
from ringzero.vm.exit import ExitReason
from ringzero.vm.machine import Machine
from ringzero.vm.state import MachineState
from tests.engine.fake import FakeEngine
from tests.toy.assembler import assemble
from tests.toy.cpu import ToyState

pytestmark = pytest.mark.engine
END = 20.0
TEXT = b"toy says hello\n"

# Prints the text at 512, then powers off.
HELLO = """
    li r1, 0x1000
    lui r1, 0
    li r2, 512
next:
    lb r3, r2, 0
    bnz r3, print
    li r1, 0x2000
    lui r1, 0
    li r3, 1
    sb r3, r1, 0
    halt
print:
    sb r3, r1, 0
    add r2, r0, 1
    bnz r2, next
"""
# vCPU 0 starts vCPU 1 at `second` and counts at 768; vCPU 1 leaves its number at 776, then
# powers off.
TWO = """
    li r1, 0x2000
    lui r1, 0x108
    li r2, @second
    st r2, r1, 0
    li r3, 1
count:
    add r4, r0, 1
    st r4, r5, 768
    bnz r3, count
second:
    st r0, r7, 776
    li r1, 0x2000
    lui r1, 0
    li r2, 1
    sb r2, r1, 0
    halt
"""
COUNTING = """
    li r3, 1
count:
    add r4, r0, 1
    st r4, r5, 768
    bnz r3, count
"""


@pytest.fixture
def machine(engine):
    made = []

    def make(source, **fields):
        vm = Machine(board="toy", engine=engine, memory="1M", agent=False, **fields)
        made.append(vm)
        code = assemble(source)
        vm.memory[0 : len(code)] = code
        vm.memory[512 : 512 + len(TEXT)] = TEXT
        for cpu in vm.cpus:
            cpu.state = ToyState(offline=cpu.index > 0)
        return vm

    yield make
    for vm in made:
        vm.stop()


def test_it_prints_and_powers_off(machine):
    vm = machine(HELLO)
    out = bytearray()
    vm.serial.on_output = out.extend
    vm.start()
    assert vm.wait(END).reason is ExitReason.POWEROFF
    assert bytes(out) == TEXT
    stats = vm.stats()
    assert stats["devices"]["serial"]["writes"] == len(TEXT)
    assert stats["cpu0"]["instructions"] > len(TEXT) * 5


# Leaves at 768 what the first virtio window shows at its beginning.
PROBE = """
    li r1, 0x4000
    lui r1, 0
    lb r2, r1, 0
    st r2, r3, 768
    halt
"""


def test_devices_sit_in_its_slots(machine):
    vm = machine(PROBE)
    vm.debugger.break_at(16)
    vm.start()
    assert vm.debugger.wait(END) is not None
    # The registers of virtio over MMIO are of 32 bits: a narrower read gives nothing.
    assert vm.stats()["devices"]["console"]["reads"] == 1


def test_it_starts_a_second_vcpu(machine):
    vm = machine(TWO, cpus=2)
    assert [cpu.state.offline for cpu in vm.cpus] == [False, True]
    vm.start()
    assert vm.wait(END).reason is ExitReason.POWEROFF
    assert int.from_bytes(vm.memory[776:784], "little") == 1


def test_a_vcpu_is_taken_offline(machine):
    vm = machine(COUNTING)
    vm.start()
    vm.board.mmio.write(0x2000_0008, 8, 0)
    vm.pause()
    assert vm.cpu.state.offline
    vm.resume()
    vm.board.mmio.write(0x2000_0100, 8, 0)
    vm.pause()
    state = vm.cpu.state
    # It began anew, with its number in r0.
    assert not state.offline and state.regs[0] == 0


def test_a_cpu_that_cannot_go_on(machine):
    vm = machine("trap")
    vm.start()
    end = vm.wait(END)
    assert isinstance(end.error(), GuestError) and "exception 4" in end.detail
    assert "pc=0x0" in end.detail


def test_registers_by_their_names(machine):
    vm = machine(HELLO)
    registers = vm.cpu.registers
    registers.r3 = 7
    registers["pc"] = 8
    assert (registers["r3"], registers.pc, vm.cpu.state.regs[3]) == (7, 8, 7)
    assert next(iter(registers)) == "r0" and len(registers) == 12 and "rax" not in registers
    with pytest.raises(AttributeError):
        registers.rip  # noqa: B018
    with pytest.raises(InvalidValueError, match="64 bits"):
        registers.r0 = 1 << 64


def test_hooks_and_breakpoints(machine):
    vm = machine(COUNTING)
    vm.debugger.break_at(8)
    vm.start()
    cpu, address = vm.debugger.wait(END)
    assert (cpu.index, address, cpu.registers.r4) == (0, 8, 1)
    vm.resume()
    assert vm.debugger.wait(END)[0].registers.r4 == 2


def test_it_is_saved_restored_and_forked(machine):
    vm = machine(COUNTING)
    vm.start()
    vm.pause()
    state = vm.save()
    tree = json.loads(json.dumps(state.tree))
    assert tree["architecture"] == "toy"
    assert tree["processor"]["features"] == ["base", "mul"]
    other = machine(COUNTING, name="other")
    other.restore(MachineState(tree))
    assert other.cpu.state.regs == vm.cpu.state.regs
    (child,) = vm.fork(1)
    with child:
        assert child.cpu.state.regs == vm.cpu.state.regs
        before = child.cpu.registers.r4
        child.start()
        child.debugger.break_at(8)
        # Where it stood may be the place itself: it goes round once more.
        assert child.debugger.wait(END)[0].registers.r4 >= before
        child.resume()
        assert child.debugger.wait(END)[0].registers.r4 > before
        assert vm.cpu.registers.r4 == before


def test_a_state_of_another_architecture_is_refused(machine):
    vm = machine(HELLO)
    with Machine(engine=FakeEngine(), memory="32M") as other:
        tree = {**other.save().tree, "processor": vm.save().tree["processor"]}
    with pytest.raises(StateError, match="architecture"):
        vm.restore(MachineState(tree))


def test_auto_takes_an_engine_that_runs_it():
    with Machine(board="toy", memory="1M", agent=False) as vm:
        assert vm.engine_name == "soft"
    with pytest.raises(EngineUnavailableError, match="'kvm' runs no toy guests"):
        Machine(board="toy", engine="kvm", memory="1M", agent=False)


def test_models_and_ports_are_the_architectures(machine):
    assert machine(HELLO).config.cpu == "multiplying"
    vm = machine(HELLO, cpu="plain")
    assert vm.save().tree["processor"]["features"] == ["base"]
    with pytest.raises(InvalidValueError, match="no CPU model 'x86-64-v2'"):
        machine(HELLO, cpu="x86-64-v2")
    with pytest.raises(DeviceError, match="no I/O ports"):
        vm.attach("own", object(), pio=0x10)
