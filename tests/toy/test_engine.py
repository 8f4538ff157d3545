"""The toy ISA under the software engine: the engine's contract, with another guest than x86's."""

import struct
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringzero.core.state import from_tree, to_tree
from ringzero.engine.contract import ENGINES, Interrupts
from ringzero.engine.exits import DebugStop, Halt, Kicked, MmioRead, MmioWrite, Shutdown
from ringzero.errors import EngineError
from ringzero.isa.execution import MEMBERS
from ringzero.isa.x86.cpu import Cpu as X86Cpu
from tests.toy.architecture import TOY, ToyProcessors
from tests.toy.assembler import assemble, encode
from tests.toy.conftest import RAM
from tests.toy.cpu import ACCESS, FETCH, INTERRUPT, TRAP, UNKNOWN, Cpu, ToyState
from tests.toy.insn import MNEMONICS

pytestmark = pytest.mark.engine

MASK = (1 << 64) - 1
DEVICE = 0x4000_0000


def run(vm, vcpu, source, state=None, reads=()):
    """Run a program to its end; return all exits, reads answered from `reads` in turn."""
    vm.memory.write(0, assemble(source))
    vcpu.set_state(state or ToyState())
    answers, seen = list(reads), []
    while True:
        event = vcpu.run()
        seen.append(event)
        if isinstance(event, MmioRead):
            vcpu.complete(answers.pop(0))
        elif not isinstance(event, MmioWrite):
            return seen


@pytest.mark.parametrize("cpu", [Cpu, X86Cpu])
def test_a_vcpu_has_the_members_that_the_engine_knows(cpu):
    for name, kind in MEMBERS.items():
        member = cpu.fields[name]
        assert (member.kind, member.count) == (kind if isinstance(kind, tuple) else (kind, None))


def test_a_loop_and_a_device(vm, vcpu):
    seen = run(vm, vcpu, """
        li r1, 100
        li r2, 0
    again:
        add r2, r1, 0
        add r1, r0, -1
        bnz r1, again
        li r3, 0x4000
        lui r3, 0
        st r2, r3, 8
        sb r2, r3, 1
        lb r4, r3, 0
        add r4, r4, 1
        st r4, r3, 16
        halt
    """, reads=[0x41])  # fmt: skip
    assert seen == [
        MmioWrite(DEVICE + 8, 8, 5050), MmioWrite(DEVICE + 1, 1, 5050 & 0xFF),
        MmioRead(DEVICE, 1), MmioWrite(DEVICE + 16, 8, 0x83), Halt(),
    ]  # fmt: skip
    assert vcpu.statistics()["instructions"] >= 100 * 3 + 8


def test_exceptions_go_to_the_vector(vm, vcpu):
    vm.memory.write(64, assemble("why r7\nhalt"))
    assert run(vm, vcpu, "li r1, 64\nvec r1\ntrap") == [Halt()]
    state = vcpu.get_state()
    assert (state.regs[7], state.cause, state.epc, state.enabled) == (TRAP, TRAP, 8, False)


def test_a_vcpu_in_endless_exceptions_can_be_stopped(vm, vcpu):
    threading.Timer(0.02, vcpu.kick).start()
    assert run(vm, vcpu, "li r1, 2\nvec r1\ntrap") == [Kicked()]
    while not vcpu.get_state().cause:
        # On a busy host the kick comes before the first exception.
        threading.Timer(0.02, vcpu.kick).start()
        assert vcpu.run() == Kicked()
    assert vcpu.get_state().cause == FETCH


@pytest.mark.parametrize(
    ("place", "word", "cause"),
    [(0, b"\0\0\0\0", UNKNOWN), (0, encode("trap"), TRAP), (RAM, b"", FETCH), (2, b"", FETCH),
     (MASK - 3, b"", FETCH)],
)  # fmt: skip
def test_without_a_handler_the_cpu_shuts_down(vm, vcpu, place, word, cause):
    vm.memory.write(0, word)
    vcpu.set_state(ToyState(pc=place))
    event = vcpu.run()
    assert isinstance(event, Shutdown)
    assert f"exception {cause}" in event.detail and f"pc={place:#x}" in event.detail


def test_an_access_that_is_refused_is_an_exception(vm, vcpu):
    vm.memory.write(0, assemble("li r1, 0x4000\nlui r1, 0\nld r2, r1, 0"))
    vcpu.set_state(ToyState())
    assert vcpu.run() == MmioRead(DEVICE, 8)
    vcpu.complete(None)
    assert f"exception {ACCESS}" in vcpu.run().detail


def test_an_address_at_the_very_end_reaches_no_host_memory(vm, vcpu):
    vm.memory.write(0, assemble("li r1, -4\nld r2, r1, 0"))
    vcpu.set_state(ToyState())
    assert vcpu.run() == MmioRead(MASK - 3, 8)


def test_a_kick_and_a_forgotten_answer(vm, vcpu):
    vm.memory.write(0, assemble("li r1, 1\nagain:\nbnz r1, again"))
    vcpu.set_state(ToyState())
    timer = threading.Timer(0.01, vcpu.kick)
    timer.start()
    assert vcpu.run() == Kicked()
    vm.memory.write(0, assemble("lb r1, r2, 0"))
    vcpu.set_state(ToyState(regs=(0, 0, DEVICE, 0, 0, 0, 0, 0)))
    vcpu.run()
    with pytest.raises(EngineError, match="answered"):
        vcpu.run()


WAITING = """
    li r1, 64
    vec r1
    ei 1
    halt
    st r7, r0, 256
    halt
"""


def test_interrupts(vm, vcpu, controller):
    vm.memory.write(64, assemble("why r7\nret"))
    assert run(vm, vcpu, WAITING) == [Halt()]
    threading.Timer(0.01, controller.raise_irq, (9,)).start()
    vcpu.wait(5)
    assert vcpu.run() == Halt()
    assert vm.memory.read_int(256, 8) == INTERRUPT + 9
    assert vcpu.statistics()["interrupts"] == 1


def test_a_timer(vm, vcpu, controller):
    vm.memory.write(64, assemble("why r7\nret"))
    assert run(vm, vcpu, WAITING) == [Halt()]
    controller.write(0, 8, vm.counter_hz // 100)
    start = time.monotonic()
    vcpu.wait(5)
    assert time.monotonic() - start < 4
    assert vcpu.run() == Halt()
    assert vm.memory.read_int(256, 8) == INTERRUPT + 1


def test_breakpoints_and_steps(vm, vcpu):
    vm.memory.write(0, assemble("li r1, 1\nli r2, 2\nli r3, 3\nhalt"))
    vcpu.set_state(ToyState())
    vcpu.debug(False, (8,))
    assert vcpu.run() == DebugStop(8)
    assert vcpu.get_state().regs[:4] == (0, 1, 2, 0)
    vcpu.debug(True)
    assert vcpu.run() == DebugStop(12)
    vcpu.debug(False)
    assert vcpu.run() == Halt()


def test_states(vm, vcpu):
    state = ToyState(tuple(range(8)), 4, 64, 12, 3, True, 1 << 40, True, False, 7)
    assert from_tree(ToyState, to_tree(state), "cpu") == state
    vcpu.set_state(state)
    after = vcpu.get_state()
    assert after.counter - state.counter < vm.counter_hz
    assert TOY.advance(after, state.counter - after.counter) == state


def test_who_runs_which_architecture(vm, engine):
    assert engine.runs(TOY)
    kvm = ENGINES.get("kvm")()
    assert not kvm.runs(TOY)
    with pytest.raises(EngineError, match="x86_64 guests"):
        kvm.create_vm(vm.memory, ToyProcessors("plain"))
    with pytest.raises(EngineError, match="from the board"):
        engine.create_vm(vm.memory, ToyProcessors("plain"), interrupts=Interrupts.ENGINE)


def test_an_architecture_that_nobody_has(vm, engine, monkeypatch):
    monkeypatch.setattr(type(TOY), "name", "z80")
    with pytest.raises(EngineError, match="runs no z80 guests") as caught:
        engine.create_vm(vm.memory, ToyProcessors("plain"))
    assert "x86_64" in caught.value.hint


# ---- against a model in plain Python ------------------------------------------------

OPCODES = {number: name for name, number in MNEMONICS.items()}
PLAIN = ["li", "lui", "add", "mul", "ld", "st", "lb", "sb", "bnz"]
DATA = 0x8000


def model(memory, regs, pc, steps):
    """What so many instructions of a program do to registers and memory; None: an exception."""
    regs = list(regs)
    for _ in range(steps):
        opcode, fields, imm = struct.unpack_from("<BBh", memory, pc)
        name, rd, ra = OPCODES[opcode], fields & 7, fields >> 4 & 7
        following = pc + 4
        address = regs[ra] + imm & MASK
        if name == "halt":
            return regs, pc
        if name == "li":
            regs[rd] = imm & MASK
        elif name == "lui":
            regs[rd] = (regs[rd] << 16 | imm & 0xFFFF) & MASK
        elif name == "add":
            regs[rd] = regs[rd] + regs[ra] + imm & MASK
        elif name == "mul":
            regs[rd] = regs[rd] * regs[ra] & MASK
        elif name == "bnz" and regs[rd]:
            following = pc + imm * 4
        elif name in ("ld", "lb", "st", "sb"):
            width = 8 if name in ("ld", "st") else 1
            if address + width > len(memory):
                return None
            if name in ("ld", "lb"):
                regs[rd] = int.from_bytes(memory[address : address + width], "little")
            else:
                value = regs[rd] & (1 << width * 8) - 1
                memory[address : address + width] = value.to_bytes(width, "little")
        pc = following
    return None


@st.composite
def programs(draw):
    """Straight code with branches forward, over data that r0 and r1 point to."""
    length = draw(st.integers(1, 12))
    code = b""
    for place in range(length):
        name = draw(st.sampled_from(PLAIN))
        rd = draw(st.integers(2, 7))
        if name == "bnz":
            code += encode(name, rd, 0, draw(st.integers(1, length - place)))
        elif name in ("ld", "st", "lb", "sb"):
            code += encode(name, rd, draw(st.integers(0, 1)), draw(st.integers(-0x100, 0x100)))
        else:
            code += encode(name, rd, draw(st.integers(0, 7)), draw(st.integers(-0x8000, 0x7FFF)))
    registers = st.integers(0, MASK)
    return code + encode("halt"), (DATA, DATA + 0x200, *(draw(registers) for _ in range(6)))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(programs())
def test_programs_do_what_a_model_does(vm, vcpu, program):
    code, regs = program
    vm.memory.write(0, bytes(0x10000))
    vm.memory.write(0, code)
    memory = bytearray(vm.memory.read(0, RAM))
    expected = model(memory, regs, 0, 100)
    vcpu.set_state(ToyState(regs=regs))
    assert vcpu.run() == Halt()
    state = vcpu.get_state()
    assert expected is not None
    assert (list(state.regs), state.pc - 4) == expected
    assert vm.memory.read(0, 0x10000) == bytes(memory[:0x10000])
