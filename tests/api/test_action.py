"""Actions as data: declarations, arguments, results; and a small front door made from the table."""

import inspect
import json
import math
import types
from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin, get_type_hints, is_typeddict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.api import action as api
from ringzero.api.action import REQUIRED, Actions, Argument, Scope, declared, from_plain, to_plain
from ringzero.api.host import HostActions
from ringzero.api.machine import MachineActions
from ringzero.api.table import ACTIONS, get
from ringzero.api.values import (
    ALIVE,
    ANY,
    EventKind,
    ExitRecord,
    MachineSummary,
    Status,
    Value,
)
from ringzero.control.host.client import HANDLERS as HOST_HANDLERS
from ringzero.control.machine.actions import HANDLERS as MACHINE_HANDLERS
from ringzero.control.machine.server import TakesDescriptors
from ringzero.errors import ConflictError, InvalidValueError, NotFoundError, ProtocolError

GOOD = {bool: True, int: 3, float: 1.5, str: "x", list[str]: ["a", "b"], dict[str, Any]: {"a": 1}}
actions = pytest.mark.parametrize("action", ACTIONS.values(), ids=lambda action: action.name)


def kinds(argument):
    return [option for option in argument.options if option is not types.NoneType]


@actions
def test_every_action_says_all_that_a_door_needs(action):
    assert action.summary
    assert action.summary[0].islower()
    assert (action.scope is Scope.HOST) == (not action.states)
    for argument in action.arguments:
        assert argument.help
        assert "\n" not in argument.help
        (kind,) = kinds(argument)
        assert kind in GOOD, f"{argument.name}: {argument.type}"
        if not argument.required:
            json.dumps(argument.default)
            argument.check(argument.default)
        assert argument.check(json.loads(json.dumps(GOOD[kind]))) == GOOD[kind]
        for wrong in ([1], math.nan, math.inf, 1 << 60, object()):
            with pytest.raises(InvalidValueError, match=argument.name):
                argument.check(wrong)
    needed = {a.name: GOOD[kinds(a)[0]] for a in action.arguments if a.required}
    assert set(action.complete(needed)) == {a.name for a in action.arguments}
    for name in needed:
        with pytest.raises(InvalidValueError, match=name):
            action.check({key: value for key, value in needed.items() if key != name})
    with pytest.raises(InvalidValueError, match="nonsense"):
        action.check(needed | {"nonsense": 1})


@actions
def test_every_action_has_somebody_who_does_it(action):
    """In the machine's process with keeper and call, or on the host with a directory."""
    wanted = [argument.name for argument in action.arguments]
    host, machine = HOST_HANDLERS.get(action.name), MACHINE_HANDLERS.get(action.name)
    assert host is not None or machine is not None
    if host is not None:
        stream = ["stream"] if action.streams else []
        assert list(inspect.signature(host.act).parameters) == ["where", *stream, *wanted]
    if machine is not None:
        call = ["call"] if action.streams else []
        if isinstance(machine, TakesDescriptors):
            machine, call = machine.do, ["descriptors"]
        assert list(inspect.signature(machine).parameters) == ["keeper", *call, *wanted]
    if action.states & ALIVE:
        assert machine is not None or host.running
    if action.states - ALIVE:
        assert host is not None


def test_nobody_does_what_is_no_action():
    assert set(HOST_HANDLERS) | set(MACHINE_HANDLERS) == set(ACTIONS)


def test_declarations():
    class Toy(Actions):
        scope = Scope.MACHINE

        @api.action(states=(Status.RUNNING,), events=(EventKind.PAUSED,), patience=5)
        def cough(
            self, times: Annotated[int, "how often"], loud: bool = False, timeout: float = 1.0
        ) -> list[str]:
            """Cough some times.

            More about it.
            """

        def perform(self, action, arguments, stream):
            return action, arguments

    (cough,) = declared(Toy).values()
    assert (cough.name, cough.summary) == ("cough", "cough some times")
    assert cough.arguments == (
        Argument("times", int, REQUIRED, "how often"),
        Argument("loud", bool, False),
        Argument("timeout", float, 1.0),
    )
    assert cough.result == list[str]
    assert Toy().cough(3, loud=True) == (cough, {"times": 3, "loud": True})
    assert cough.answer_time({"timeout": 3}) == 8
    with pytest.raises(InvalidValueError, match="times"):
        Toy().cough()
    with pytest.raises(InvalidValueError, match="whole number"):
        Toy().cough("often")
    cough.require("web", Status.RUNNING)
    with pytest.raises(ConflictError, match="is paused; 'cough' needs one that is running") as told:
        cough.require("web", Status.PAUSED)
    assert told.value.hint == "let it go on: `ringzero resume web`"


def test_a_truth_value_is_no_number():
    with pytest.raises(InvalidValueError, match="count"):
        get("fork").check({"count": True})
    assert get("stop").check({"timeout": 3}) == {"timeout": 3.0}


@given(st.text() | st.integers() | st.none() | st.lists(st.text()))
def test_unknown_actions(name):
    if name not in list(ACTIONS):
        with pytest.raises(NotFoundError, match="no action"):
            get(name)


def test_states():
    assert {status for status in Status if not status.alive} == ANY - ALIVE
    with pytest.raises(ConflictError, match="running") as told:
        get("start").require("web", Status.RUNNING)
    assert "stop" in told.value.hint
    with pytest.raises(ConflictError, match="ended") as told:
        get("pause").require("web", Status.ENDED)
    assert "start" in told.value.hint


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_answers_are_believed_only_where_they_are_of_the_type(data):
    for action in ACTIONS.values():
        try:
            value = from_plain(action.result, data)
        except ProtocolError:
            continue
        assert action.result is type(None) or to_plain(value) is not None


def test_results_come_back_as_they_were():
    ended = ExitRecord("poweroff", "", 0, 1.5)
    assert from_plain(ExitRecord, json.loads(json.dumps(to_plain(ended)))) == ended
    assert from_plain(list[str], to_plain(("a", "b"))) == ["a", "b"]
    for type_, wrong in ((list[str], [1]), (ExitRecord, {}), (MachineSummary, []), (str, 1)):
        with pytest.raises(ProtocolError):
            from_plain(type_, wrong)


# ---- a second tenant: what a front door does --------------------------------


class ToyDoor:
    """An HTTP-like door: a document made from the table, requests answered by `Host.call`."""

    def __init__(self, host):
        self._host = host

    def document(self) -> Mapping[str, Any]:
        """An OpenAPI-like description: each action a POST, machines' ones below a name."""
        return {self.path(action): operation(action) for action in ACTIONS.values()}

    @staticmethod
    def path(action):
        where = "/machines/{machine}" if action.scope is Scope.MACHINE else ""
        return f"{where}/{action.name}"

    def post(self, path, body):
        *above, name = path.strip("/").split("/")
        machine = above[1] if above else None
        return json.loads(json.dumps(self._host.call(name, json.loads(body), machine)))


def operation(action):
    schema = {
        "type": "object",
        "properties": {
            a.name: {**type_schema(a.type), "description": a.help}
            | ({} if a.required else {"default": a.default})
            for a in action.arguments
        },
        "required": [a.name for a in action.arguments if a.required],
        "additionalProperties": False,
    }
    return {
        "summary": action.summary,
        "requestBody": schema,
        "response": type_schema(action.result),
        "x-states": sorted(state.value for state in action.states),
        "x-events": [event.value for event in action.events],
        "x-streams": action.wants_stream,
    }


def type_schema(type_):
    """JSON Schema of an argument's or a result's type."""
    names = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string"}
    if isinstance(type_, types.UnionType):
        return {"anyOf": [type_schema(option) for option in get_args(type_)]}
    if get_origin(type_) is list:
        return {"type": "array", "items": type_schema(get_args(type_)[0])}
    if get_origin(type_) is dict:
        return {"type": "object"}
    if is_typeddict(type_) or issubclass(type_, Value):
        if is_typeddict(type_):
            hints = get_type_hints(type_)
        else:
            hints = dict.fromkeys(type_.__match_args__)
        return {
            "type": "object",
            "properties": {n: type_schema(h) if h else {} for n, h in hints.items()},
        }
    return {"type": names[type_]}


def test_a_door_describes_every_action():
    document = json.loads(json.dumps(ToyDoor(None).document()))
    assert set(document) == {ToyDoor.path(action) for action in ACTIONS.values()}
    stop = document["/machines/{machine}/stop"]
    assert stop["requestBody"]["properties"]["timeout"] == {
        "type": "number",
        "default": 10.0,
        "description": "seconds until a guest that goes on is ended",
    }
    assert "exit_code" in stop["response"]["properties"]
    assert document["/define"]["requestBody"]["required"] == ["config"]
    assert document["/machines/{machine}/inspect"]["response"]["properties"]["name"] == {
        "type": "string"
    }


def test_the_clients_methods_are_the_table():
    for kind in (MachineActions, HostActions):
        for name, action in declared(kind).items():
            method = getattr(kind, name)
            assert (method.__name__, method.__doc__.splitlines()[0].lower()) == (
                name,
                f"{action.summary}.".lower(),
            )
            assert ACTIONS[name] == action
