"""A machine's state as a tree, put back into one whose board may have grown."""

import copy

import pytest

from ringzero.devices.contract import Device
from ringzero.errors import StateError
from ringzero.records import record
from ringzero.vm.machine import Machine
from ringzero.vm.state import MachineState
from tests.engine.fake import FakeEngine


@record
class LampState:
    lit: int = 0


class Lamp(Device[LampState]):
    """A chip that a board has got since; it is as after power-on where no state tells."""

    state_type = LampState

    def __init__(self):
        self.lit = 0

    def read(self, offset, width):
        return self.lit

    def write(self, offset, width, value):
        self.lit = value & 1

    def reset(self):
        self.lit = 0

    def save(self):
        return LampState(self.lit)

    def restore(self, state):
        self.lit = state.lit


@pytest.fixture
def machine():
    with Machine(engine=FakeEngine(), net="none") as machine:
        yield machine


def test_a_part_that_was_not_there_is_as_after_power_on(machine):
    saved = machine.save()
    lamp = Lamp()
    machine.attach("lamp", lamp, mmio=0xD100_0000)
    lamp.lit = 1
    machine.restore(saved)
    assert lamp.lit == 0
    lamp.lit = 1
    saved = machine.save()
    lamp.lit = 0
    machine.restore(saved)
    assert lamp.lit == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda devices: devices.pop("serial"), "other devices: serial"),
        (lambda devices: devices.pop("net"), "other devices: net"),
        (lambda devices: devices.update(odd={}), "other devices: odd"),
        (lambda devices: devices["serial"].update(odd=1), "devices.serial: unknown fields: odd"),
        (lambda devices: devices["net.device"].clear(), "devices.net.device: missing fields"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(machine, change, message):
    before = machine.save().tree
    tree = copy.deepcopy(before)
    change(tree["devices"])
    with pytest.raises(StateError, match=message):
        machine.restore(MachineState(tree))
    assert machine.save().tree["devices"] == before["devices"]


@pytest.mark.parametrize("devices", [None, [], 5])
def test_no_devices(machine, devices):
    tree = {**machine.save().tree, "devices": devices}
    with pytest.raises(StateError, match="other devices"):
        machine.restore(MachineState(tree))
