"""Breakpoints of the host's debugger in the software engine: a stop for each time, and no other.

`stops` goes past a breakpoint as `vm.debugger` does: by a single step without it.
"""

import pytest

from ringzero.engine.contract import ENGINES
from ringzero.engine.exits import DebugStop, Kicked
from ringzero.engine.x86 import PortWrite
from tests.engine import guest as toolkit
from tests.engine.guest import CODE, DONE, long_mode
from tests.oracle.assembler import assemble

pytestmark = pytest.mark.engine

COUNT, VECTOR = 0xA0000, 0x51
END = f"out {DONE}, al\n"


@pytest.fixture
def guest():
    made = toolkit.build(ENGINES.get("soft")())
    toolkit.write_long_tables(made.memory)
    yield made
    made.vm.close()
    made.memory.close()


def behind(text):
    """The address behind some code, which is the first of the program."""
    return CODE + len(assemble(text, 64))


def stops(guest, breakpoints, at_stop=lambda: None):
    """Run to the end; return the breakpoints in the order in which the vCPU came to them."""
    seen = []
    guest.vcpu.debug(False, tuple(breakpoints))
    while True:
        event = guest.step()
        if isinstance(event, PortWrite) and event.port == DONE:
            return seen
        if not isinstance(event, DebugStop):
            continue
        standing = event.address in breakpoints
        if standing:
            seen.append(event.address)
            at_stop()
        rest = [a for a in breakpoints if not standing or a != event.address]
        guest.vcpu.debug(standing, tuple(rest))


def test_an_interrupt_at_a_stop_waits_for_the_instruction(guest):
    """Its handler would return to the breakpoint, and it be met once more."""
    setup = "mov ecx, 20\n sti\n"
    guest.on_vector(VECTOR, f"inc qword ptr [{COUNT}]\n iretq")
    guest.load(f"{setup}again: inc eax\n dec ecx\n jnz again\n{END}", long_mode())
    here = behind(setup)
    assert stops(guest, [here], lambda: guest.apic.raise_vector(VECTOR)) == [here] * 20
    assert guest.memory.read_int(COUNT, 8) == 20


def test_so_does_an_nmi(guest):
    setup = "mov ecx, 5\n"
    guest.on_vector(2, f"inc qword ptr [{COUNT}]\n iretq")
    guest.load(f"{setup}again: inc eax\n dec ecx\n jnz again\n{END}", long_mode())
    here = behind(setup)
    assert stops(guest, [here], guest.apic.raise_nmi) == [here] * 5
    assert guest.memory.read_int(COUNT, 8) == 5


def test_an_instruction_that_faults_and_runs_again_is_met_once(guest):
    setup = "mov r8d, 3\nagain: xor ecx, ecx\n xor edx, edx\n mov eax, 8\n"
    guest.on_vector(0, f"inc qword ptr [{COUNT}]\n mov ecx, 2\n iretq")
    guest.load(f"{setup}div ecx\n dec r8d\n jnz again\n{END}", long_mode())
    here = behind(setup)
    assert stops(guest, [here]) == [here] * 3
    assert guest.memory.read_int(COUNT, 8) == 3
    assert guest.vcpu.get_state().gpr[0] == 4


def test_a_long_repetition_is_met_once(guest):
    """It is left and begun again after 65,536 elements, for interrupts' sake."""
    setup = "mov ecx, 300000\n mov edi, 0x20000\n"
    guest.load(f"{setup}rep stosb\n nop\n{END}", long_mode())
    here = behind(setup)
    assert stops(guest, [here, here + 2]) == [here, here + 2]
    assert guest.vcpu.get_state().gpr[1] == 0


def test_so_is_it_by_the_guests_own_breakpoints(guest):
    setup = "mov eax, {}\n mov dr0, rax\n mov eax, 0x402\n mov dr7, rax\n"
    setup += "mov ecx, 300000\n mov edi, 0x20000\n"
    here = behind(setup.format(CODE))
    # #DB's handler sets RF in the frame, so as to go past the instruction.
    guest.on_vector(1, f"inc qword ptr [{COUNT}]\n or dword ptr [rsp + 16], 0x10000\n iretq")
    guest.load(f"{setup.format(here)}rep stosb\n{END}", long_mode())
    guest.run()
    assert guest.memory.read_int(COUNT, 8) == 1
    assert guest.vcpu.get_state().gpr[1] == 0


def test_a_step_that_was_made_is_not_made_again(guest):
    """Another thread arms breakpoints with the vCPU past its instruction, before it has said so."""
    guest.load(f"nop\n out 0x10, al\n nop\n nop\n{END}", long_mode())
    guest.vcpu.debug(False, (CODE + 1,))
    while guest.step() != DebugStop(CODE + 1):
        pass
    guest.vcpu.debug(True, ())
    while not isinstance(guest.step(), PortWrite):
        pass
    # The access is finished here, and the vCPU behind it.
    guest.vcpu.debug(True, (CODE + 3,))
    event = guest.step()
    while isinstance(event, Kicked):
        event = guest.step()
    assert event == DebugStop(CODE + 3)
