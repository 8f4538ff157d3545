"""What every stencil is made of."""

from ringzero.isa.x86.state import GPR_NAMES
from ringzero.jit.host.x86_64 import ARGUMENT_REGISTERS
from ringzero.jit.stencil import COMMON, Frame, pinned_by_name
from ringzero.native import Struct, field, u64


class Vcpu(Struct):
    regs = field(u64, 8)


def test_registers_land_in_those_of_the_same_name():
    pinned = pinned_by_name(GPR_NAMES[:8])
    places = ARGUMENT_REGISTERS[len(COMMON) :]
    for number, place in zip(pinned, places, strict=False):
        if place in GPR_NAMES[:8]:
            assert GPR_NAMES[number] == place
    assert sorted(pinned) == list(range(8))


def test_registers_of_another_isa_follow_their_numbers():
    assert pinned_by_name(("x0", "x1", "x2", "x3")) == (0, 1, 2, 3)


def test_arguments_are_in_the_order_of_the_parameters():
    frame = Frame(Vcpu, (2, 0), 2)
    assert frame.parameters == "ptr %cpu, i64 %n, i64 %t, i64 %g2, i64 %g0"
    given = frame.arguments(lambda n: f"%r{n}", "%n", "poison")
    assert given == "ptr %cpu, i64 %n, i64 poison, i64 %r2, i64 %r0"
