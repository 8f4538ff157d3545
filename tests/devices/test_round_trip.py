"""Save, restore, save gives the same tree: for every device of the registries, any state.

`BUILDERS` has one of every registered device (`test_contract.py` fails when one
is missing), so that a new device is covered by being registered.
"""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringzero.core.state import from_tree, to_tree
from ringzero.errors import StateError
from tests.devices.specimens import BUILDERS
from tests.states import alike

FACTOR = int(os.environ.get("RINGZERO_FUZZ", "1"))
MANY = settings(
    max_examples=25 * FACTOR,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.mark.parametrize("name", sorted(BUILDERS))
@pytest.mark.parametrize("worked", [False, True], ids=["idle", "in-work"])
@MANY
@given(data=st.data())
def test_random_states(name, worked, data):
    """A state that a device accepts is what it saves; what it corrects, it corrects once."""
    first, second = BUILDERS[name](), BUILDERS[name]()
    try:
        if worked:
            first.work()
        first.device.pause()
        for part, other in zip(first.parts, second.parts, strict=True):
            state = data.draw(alike(part.save()))
            try:
                part.restore(state)
            except StateError:
                continue
            saved = part.save()
            tree = to_tree(saved)
            again = from_tree(part.state_type, tree)
            assert again == saved
            other.restore(again)
            assert to_tree(other.save()) == tree
    finally:
        first.device.close()
        second.device.close()


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_most_states_are_accepted(name):
    """The property above would be empty if every made-up state were refused."""
    specimen = BUILDERS[name]()
    try:
        specimen.work()
        specimen.device.pause()
        for part in specimen.parts:
            part.restore(part.save())
    finally:
        specimen.device.close()
