"""The public contracts hold for what is in this package, and fail for what breaks them."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from examples.own_device import Dice

from ringzero.devices.contract import Device
from ringzero.testing import DeviceContract, DiskContract
from tests.devices.specimens import BUILDERS
from tests.disk.flavours import FLAVOURS

# Devices that stand alone: no second part, no driver in the guest's memory.
PLAIN = sorted(set(BUILDERS) & {"rtc", "serial", "vmgenid"})

pytest_plugins = ["pytester"]


class TestDice(DeviceContract):
    size = 4

    def make(self):
        return Dice()


class TestDevices(DeviceContract):
    """Devices of ours by the public suite; tests/devices/test_contract.py asks more of them."""

    size = 8
    outlives_reset = ("cmos", "offset")

    @pytest.fixture(autouse=True, params=PLAIN)
    def specimen(self, request):
        self.name = request.param

    def make(self):
        return BUILDERS[self.name]().device


class TestDisks(DiskContract):
    """Every flavour of every format, as in tests/disk/test_contract.py, which asks more of them."""

    @pytest.fixture(autouse=True, params=FLAVOURS, ids=str)
    def flavour(self, request):
        self.made = request.param

    def create(self, path, size):
        self.made.create(path, size)

    def open(self, path, *, read_only=False):
        return self.made.open(path, read_only=read_only)


@dataclass(frozen=True)
class State:
    value: int


class Register(Device[State]):
    """One register that works."""

    state_type = State

    def __init__(self):
        self.reset()

    def read(self, offset, width):
        return self.value & ((1 << 8 * width) - 1)

    def write(self, offset, width, value):
        self.value = value

    def reset(self):
        self.value = 0

    def save(self):
        return State(self.value)

    def restore(self, state):
        self.value = state.value


BROKEN = {
    "reset": ("def reset(self): self.value = getattr(self, 'value', 0)", "reset_gives_the_state"),
    "restore": ("def restore(self, state): pass", "round_trip"),
    "write": ("def write(self, offset, width, value): self.value = [1][offset]", "any_width"),
    "save": ("def save(self): return 7", "plain_data"),
}


@pytest.mark.parametrize("name", ["nothing", *BROKEN])
def test_device_that_breaks_the_contract_fails(pytester, name):
    method, failing = BROKEN.get(name, ("pass", None))
    pytester.makepyfile(
        f"""
from ringzero.testing import DeviceContract
from tests.testing.test_contracts import Register

class Broken(Register):
    {method}

class TestBroken(DeviceContract):
    size = 8
    def make(self):
        return Broken()
"""
    )
    pytester.syspathinsert(Path(__file__).parent.parent.parent)
    result = pytester.runpytest_inprocess("-p", "no:randomly")
    if failing is None:
        result.assert_outcomes(passed=6)
    else:
        result.stdout.fnmatch_lines([f"FAILED *{failing}*"])
