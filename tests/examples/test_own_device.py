"""The example of a device of one's own: as it stands in the file, scripted and in a guest."""

import importlib.util
from pathlib import Path

import pytest

from ringzero.core.state import from_tree, to_tree
from ringzero.engine.exits import MmioRead, MmioWrite
from ringzero.engine.x86 import PortWrite
from ringzero.vm.machine import Machine
from tests.engine.fake import FakeEngine

FILE = Path(__file__).parents[2] / "examples" / "own_device.py"


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("own_device", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_in_a_scripted_machine(example):
    dice = example.Dice()
    script = [MmioWrite(example.ADDRESS, 4, 1), *[MmioRead(example.ADDRESS, 4)] * 3]
    engine = FakeEngine(*script, PortWrite(0x600, 1, 0x34))
    with Machine(engine=engine, memory="32M") as vm:
        vm.attach("dice", dice, mmio=example.ADDRESS)
        vm.start()
        vm.wait(10)
    assert engine.vm.vcpus[0].answers == [1, 1, 1]
    other = example.Dice()
    other.restore(from_tree(example.DiceState, to_tree(dice.save())))
    assert other.save() == example.DiceState(1, 3)


@pytest.mark.boot
@pytest.mark.engine
def test_with_a_real_guest(example, capsys):
    example.main()
    *rolls, last = capsys.readouterr().out.split("\n")[:-1]
    assert len(rolls) == 3 and all(1 <= int(roll, 16) <= 6 for roll in rolls)
    assert last == "the guest rolled 3 times"
