"""Ports that the software engine's native code serves: gathered writes, shadowed reads."""

import pytest

from ringzero.engine.exits import Halt, Kicked
from ringzero.engine.x86 import PortRead, PortWrite
from ringzero.isa.x86.ports import GATHERED, RING, SHADOWED
from tests.isa.guest import USER_DATA, Guest

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
