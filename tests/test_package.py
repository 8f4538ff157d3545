"""The package's top: its names, how they are found, and what their objects say."""

import inspect

import pytest

import ringzero
from ringzero.api.command import Invocation
from ringzero.config.fields import MachineArguments, MachineFields
from ringzero.config.machine import MachineConfig
from ringzero.errors import ConfigError
from ringzero.vm.guest.execution import Execution
from ringzero.vm.machine import Machine
from tests.engine.fake import FakeEngine


def test_every_name_is_there_and_can_be_found():
    for name in ringzero.__all__:
        assert getattr(ringzero, name) is not None
    assert set(ringzero.__all__) <= set(dir(ringzero))


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'Machin'") as caught:
        _ = ringzero.Machin
    assert (caught.value.name, caught.value.obj) == ("Machin", ringzero)


def test_arguments_of_a_machine_are_those_that_type_checkers_know():
    own = set(inspect.signature(Machine).parameters) - {"config", "fields"}
    assert own == set(MachineArguments.__annotations__) - set(MachineFields.__annotations__)


def test_memory_that_was_meant_in_another_unit():
    with pytest.raises(ConfigError, match="was '512M' meant") as caught:
        MachineConfig(memory=512)
    assert "help(ringzero.Machine)" in caught.value.hint


def test_a_machine_says_what_it_is():
    with Machine(name="web", memory="32M", engine=FakeEngine()) as machine:
        assert repr(machine) == "<Machine 'web': not started>"
        machine.start()
        assert repr(machine).startswith("<Machine 'web': ")
    assert repr(machine) == "<Machine 'web': stopped>"


def test_ctrl_c_while_a_command_runs_ends_the_command():
    signals = []

    class Command:
        def wait(self, timeout):
            raise KeyboardInterrupt

        def signal(self, name):
            signals.append(name)

    class Agent:
        takes_options = False

        def run(self, words, **how):
            return Command()

    with pytest.raises(KeyboardInterrupt):
        Execution(Agent(), Invocation("sleep 9")).finish()
    assert signals == ["KILL"]
