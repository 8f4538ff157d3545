"""Ports that the software engine's native code serves: gathered writes, shadowed reads."""

import random
from functools import partial

import pytest

from ringzero.core.irq import IrqLine
from ringzero.devices.chips.serial import IDENTIFICATION, IER_TRANSMIT, STATUS, Serial
from ringzero.engine.exits import Halt, Kicked
from ringzero.engine.x86 import PortRead, PortWrite
from ringzero.isa.x86.ports import GATHERED, RING, SHADOWED
from tests.isa.guest import USER_DATA, Guest
from tests.oracle import assembler

pytestmark = pytest.mark.engine


class Translated(Guest):
    entry = "run_translator"


class Rig:
    """A guest whose writes to 0x3F8 are gathered; `events` has them and its exits, in order."""

    def __init__(self, guest):
        self.guest = guest
        self.events = []
        assert guest.vm.gather_writes(
            True, 0x3F8, 1, self.write, prompt=True, then=lambda: self.events.append("then")
        )

    def write(self, port, width, values):
        self.events.append((port, width, list(values)))

    def run(self, code, answers=(), **regs):
        ending = self.guest.run(code, answers=tuple(answers), **regs)
        assert ending.vector is None
        return ending


@pytest.fixture(params=[Guest, Translated])
def rig(request):
    return Rig(request.param())


def test_writes_to_one_register_come_at_once_before_the_next_access(rig):
    vcpu = rig.guest.vcpu
    state = rig.guest.state
    assert rig.run("mov edx, 0x3f8; mov al, 1; out dx, al; mov al, 2; out dx, al; hlt")
    assert rig.events == [(0x3F8, 1, [1, 2]), "then"]
    rig.events.clear()
    from tests.isa.guest import assemble

    rig.guest.write(state.rip, assemble("mov edx, 0x3f8; out dx, al; out 0x10, al; hlt"))
    vcpu.set_state(state)
    assert vcpu.run() == PortWrite(0x10, 1, 0)
    assert rig.events == [(0x3F8, 1, [0])], "what follows waits for the access"
    assert vcpu.run() == Halt()
    assert rig.events == [(0x3F8, 1, [0]), "then"]


def test_more_than_the_ring_holds(rig):
    count = 3 * RING
    ending = rig.guest.run(
        "mov edx, 0x3f8; again: mov eax, ecx; out dx, al; loop again; hlt",
        rcx=count,
        answers=(0,) * 10,
    )
    assert ending.vector is None
    gathered = [value for event in rig.events if event != "then" for value in event[2]]
    # A full ring makes an exit, before which it is emptied.
    passed = [event.value for event in ending.exits if isinstance(event, PortWrite)]
    assert len(passed) in (2, 3)
    assert len(gathered) + len(passed) == count
    assert gathered[:RING] == [n & 0xFF for n in range(count, count - RING, -1)]


def test_a_guest_that_only_computes_is_told_of_soon(rig):
    from tests.isa.guest import assemble

    vcpu = rig.guest.vcpu
    code = "mov edx, 0x3f8; out dx, al; mov ecx, 100000; 1: dec ecx; jnz 1b; hlt"
    rig.guest.write(rig.guest.state.rip, assemble(code))
    vcpu.set_state(rig.guest.state)
    before = vcpu.statistics()["exits"]
    assert vcpu.run() == Halt()
    assert rig.events == [(0x3F8, 1, [0]), "then"]
    assert vcpu.statistics()["exits"] - before == 2, "one for the write, one for HLT"


def test_settle_passes_on_the_rest(rig):
    from tests.isa.guest import assemble

    vcpu = rig.guest.vcpu
    rig.guest.write(rig.guest.state.rip, assemble("mov edx, 0x3f8; out dx, al; end: jmp end"))
    vcpu.set_state(rig.guest.state)
    vcpu.kick()
    assert vcpu.run() == Kicked()
    rig.guest.vm.settle()
    assert rig.events in ([], [(0x3F8, 1, [0]), "then"])


def test_string_output_is_gathered_too(rig):
    rig.guest.write(USER_DATA, b"hello")
    rig.run("mov edx, 0x3f8; rep outsb; hlt", rsi=USER_DATA, rcx=5)
    values = [value for event in rig.events if event != "then" for value in event[2]]
    assert bytes(values) == b"hello"


def test_wider_writes_than_the_register_leave_the_guest(rig):
    ending = rig.run("mov edx, 0x3f8; out dx, ax; hlt", answers=(0,))
    assert ending.exits == [PortWrite(0x3F8, 2, 0)] and not rig.events


def test_shadowed_reads(rig):
    show = rig.guest.vm.shadow_port(0x3FD)
    code = "mov edx, 0x3fd; in al, dx; hlt"
    assert rig.run(code, answers=(0x11,)).exits == [PortRead(0x3FD, 1)]
    show(0x60)
    ending = rig.run(code, rax=0x1234)
    assert not ending.exits and ending.reg(0) == 0x1260
    assert rig.run("mov edx, 0x3fd; in ax, dx; hlt", answers=(0,)).exits == [PortRead(0x3FD, 2)]
    # INS may have an access of its own besides, so it always asks.
    asked = rig.run("mov edx, 0x3fd; insb; hlt", rdi=USER_DATA, answers=(7,)).exits
    assert asked == [PortRead(0x3FD, 1)]
    show(None)
    assert rig.run(code, answers=(0x11,)).reg(0) & 0xFF == 0x11


def test_users_need_permission(rig):
    rig.guest.vm.shadow_port(0x3FD)(0x60)
    rig.guest.become_user()
    assert rig.guest.run("mov edx, 0x3fd; in al, dx; ud2").vector == 13
    assert rig.guest.run("mov edx, 0x3f8; out dx, al; ud2").vector == 13
    assert not rig.events


def test_there_is_room_for_so_many(rig):
    vm = rig.guest.vm
    more = [vm.gather_writes(True, 0x100 + n, 1, rig.write) for n in range(GATHERED)]
    assert more == [True] * (GATHERED - 1) + [False]
    shadows = [vm.shadow_port(0x200 + n) for n in range(SHADOWED + 1)]
    assert [show is not None for show in shadows] == [True] * SHADOWED + [False]
    assert not vm.gather_writes(False, 0xFEC0_0000, 4, rig.write), "memory is not gathered"


class SerialRig:
    """A guest with a serial port that native code serves in part, beside one that it does not."""

    def __init__(self, guest):
        self.guest = guest
        self.out, self.plain_out = bytearray(), bytearray()
        self.serial = Serial(IrqLine(lambda _: None), self.out.extend)
        self.plain = Serial(IrqLine(lambda _: None), self.plain_out.extend)
        vm, serial = guest.vm, self.serial
        for offset in STATUS:
            read = serial.identified if offset == IDENTIFICATION else None
            serial.shadow(offset, vm.shadow_port(0x3F8 + offset, read))
        identification = 0x3F8 + IDENTIFICATION

        def write(port, width, values):
            serial.write_all(port - 0x3F8, width, values)

        gather = partial(vm.gather_writes, True, changes=identification)
        assert gather(0x3F8, 1, write, prompt=True, then=serial.settle)
        assert gather(0x3F9, 1, write, clears=IER_TRANSMIT, hold=serial.hold_enabled)

    def run(self, accesses):
        """Make accesses, in the guest and to the plain port; return what both read, and exits."""
        code, expected = [f"mov edi, {USER_DATA}"], bytearray()
        for offset, value in accesses:
            code.append(f"mov edx, {0x3F8 + offset}")
            if value is None:
                code.append("in al, dx; mov [rdi], al; inc edi")
                expected.append(self.plain.read(offset, 1))
            else:
                code.append(f"mov al, {value}; out dx, al")
                self.plain.write(offset, 1, value)
        vcpu, exits = self.guest.vcpu, 0
        self.guest.write(self.guest.state.rip, assembler.assemble("; ".join([*code, "hlt"]), 64))
        vcpu.set_state(self.guest.state)
        while (event := vcpu.run()) != Halt():
            if isinstance(event, PortRead):
                exits += 1
                vcpu.complete(self.serial.read(event.port - 0x3F8, event.width))
            elif isinstance(event, PortWrite):
                exits += 1
                self.serial.write(event.port - 0x3F8, event.width, event.value)
        self.guest.vm.settle()
        return self.guest.memory.read(USER_DATA, len(expected)), bytes(expected), exits

    def compare(self):
        assert self.out == self.plain_out
        assert self.serial._irq.level == self.plain._irq.level or self.serial._late
        assert self.serial.save() == self.plain.save()


@pytest.fixture(params=[Guest, Translated])
def serial_rig(request):
    return SerialRig(request.param())


def test_a_line_of_a_drivers_needs_one_exit(serial_rig):
    """As Linux's: interrupt on, identified, sent, off, identified again."""
    line = [(1, 7), (2, None), (5, None), *((0, byte) for byte in b"a line\r\n"), (1, 5), (2, None)]
    serial_rig.run([(2, 1), (1, 5)])
    read, expected, exits = serial_rig.run(line * 5)
    assert read == expected == bytes([0xC2, 0x60, 0xC1] * 5)
    assert exits == 5
    serial_rig.compare()


@pytest.mark.parametrize("seed", range(20))
def test_a_port_served_in_part_is_the_same_port(serial_rig, seed):
    rng = random.Random(seed)
    # What drivers do most; now and then anything.
    usual = [(1, 7), (1, 5), (1, 2), (1, 0), (1, 1), (0, 65), (0, None), (2, None), (5, None)]
    for _ in range(25):
        accesses = [
            rng.choice(usual)
            if rng.random() < 0.9
            else (rng.randrange(8), rng.choice((None, rng.randrange(256))))
            for _ in range(rng.randrange(1, 40))
        ]
        read, expected, _ = serial_rig.run(accesses)
        assert read == expected, accesses
        serial_rig.compare()
        pushed = bytes(rng.randrange(3))
        assert serial_rig.serial.push(pushed) == serial_rig.plain.push(pushed)
        serial_rig.compare()
