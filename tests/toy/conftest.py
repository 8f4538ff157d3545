"""The toy's board and its guest for the software engine, known for the time of a test."""

import pytest

from ringzero.board.contract import BOARDS
from ringzero.core.memory import GuestMemory
from ringzero.engine.contract import ENGINES
from ringzero.engine.soft.contract import GUESTS
from tests.toy.architecture import TOY
from tests.toy.board import Controller, ToyBoard
from tests.toy.guest import create_vm

RAM = 1 << 20


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(BOARDS._items, "toy", ToyBoard)
    monkeypatch.setitem(GUESTS._items, "toy", create_vm)


@pytest.fixture(scope="session")
def engine():
    return ENGINES.get("soft")()


@pytest.fixture
def vm(engine):
    """A machine without a board: 1 MiB of RAM from 0."""
    memory = GuestMemory([(0, RAM)])
    processors = TOY.identify(
        TOY.default_model, cpus=1, counter_hz=engine.counter_hz, bounds=engine.processor_bounds()
    )
    made = engine.create_vm(memory, processors)
    yield made
    made.close()
    memory.close()


@pytest.fixture
def controller(vm):
    return Controller(vm.read_counter, [])


@pytest.fixture
def vcpu(vm, controller):
    return vm.create_vcpu(0, controller)
