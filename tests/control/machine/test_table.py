import inspect
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.control.machine import actions  # noqa: F401 - fills the table
from ringzero.control.machine.table import ACTIONS, get
from ringzero.errors import InvalidValueError, NotFoundError

KINDS = {bool: True, int: 3, float: 1.5, str: "x", list[str]: ["a", "b"]}


@pytest.mark.parametrize("action", ACTIONS.values(), ids=lambda action: action.name)
def test_contract_of_actions(action):
    """What REST, client and help are made of: a summary, typed arguments, JSON-ready defaults."""
    assert action.summary
    assert action.summary[0].islower()
    parameters = list(inspect.signature(action.handler).parameters)
    assert parameters[0] == "keeper"
    assert ("call" in parameters) == action.streams
    for argument in action.arguments:
        assert argument.type in KINDS, f"{argument.name}: {argument.type}"
        if not argument.required:
            json.dumps(argument.default)
            argument.check(argument.default)
        good = KINDS[argument.type]
        assert argument.check(json.loads(json.dumps(good))) == good
        for wrong in (None, {}, [1], math.nan, math.inf, 1 << 60):
            with pytest.raises(InvalidValueError, match=argument.name):
                argument.check(wrong)
    required = {a.name: KINDS[a.type] for a in action.arguments if a.required}
    action.check(required)
    for name in required:
        with pytest.raises(InvalidValueError, match=name):
            action.check({key: value for key, value in required.items() if key != name})
    with pytest.raises(InvalidValueError, match="nonsense"):
        action.check(required | {"nonsense": 1})


def test_a_truth_value_is_no_number():
    with pytest.raises(InvalidValueError, match="count"):
        get("fork").check({"count": True})
    assert get("stop").check({"timeout": 3}) == {"timeout": 3.0}


@given(st.text() | st.integers() | st.none() | st.lists(st.text()))
def test_unknown_actions(name):
    if name not in list(ACTIONS):
        with pytest.raises(NotFoundError, match="no action"):
            get(name)
