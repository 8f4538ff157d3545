import pytest

from ringzero.api.action import Scope
from ringzero.api.table import ACTIONS
from ringzero.doors.rest import routes
from ringzero.errors import ConfigError, ConflictError, InvalidValueError, NotFoundError


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_every_action_has_a_path(action):
    path = (action.name,) if action.scope is Scope.HOST else ("machines", "web", action.name)
    method = "GET" if action.reads else "POST"
    call = routes.find(method, path, [])
    assert call.action is action
    assert call.machine == (None if action.scope is Scope.HOST else "web")
    with pytest.raises(routes.MethodError) as caught:
        routes.find("PUT", path, [])
    assert method in caught.value.allowed


def test_paths_that_people_expect():
    assert routes.find("POST", ("machines",), []).action.name == "define"
    call = routes.find("DELETE", ("machines", "web"), [("force", "true")])
    assert (call.action.name, call.machine, call.arguments) == ("remove", "web", {"force": True})
    assert routes.find("HEAD", ("machines", "web"), []).action.name == "inspect"
    call = routes.find("DELETE", ("networks", "lan"), [])
    assert (call.action.name, call.machine, call.arguments) == (
        "remove_network", None, {"name": "lan"},
    )  # fmt: skip


def test_arguments_in_the_query():
    call = routes.find("GET", ("machines", "web", "archive"), [("path", "/a"), ("follow", "")])
    assert call.arguments == {"path": "/a", "follow": True}
    call = routes.find_stream(
        ("machines", "web", "exec"), [("words", "ls"), ("words", "-l"), ("rows", "50")]
    )
    assert call.arguments == {"words": ["ls", "-l"], "rows": 50}
    for query in ([("x", "1")], [("follow", "maybe")], [("wait", "x")], [("path", "a")] * 2):
        with pytest.raises(InvalidValueError):
            routes.find("GET", ("machines", "web", "archive"), query)
    with pytest.raises(InvalidValueError, match="in the body"):
        routes.find("POST", ("define",), [("config", "{}")])


def test_what_is_no_path():
    for path in ((), ("nothing",), ("machines", "web", "nothing"), ("machines", "a", "b", "c")):
        with pytest.raises(NotFoundError):
            routes.find("GET", path, [])
        with pytest.raises(NotFoundError):
            routes.find_stream(path, [])
    with pytest.raises(InvalidValueError, match="no WebSocket"):
        routes.find_stream(("machines",), [])


def test_an_argument_stands_in_one_place():
    call = routes.find("DELETE", ("networks", "lan"), [])
    assert routes.merged(call, {}) == {"name": "lan"}
    with pytest.raises(InvalidValueError):
        routes.merged(call, {"name": "wan"})


def test_statuses():
    assert routes.status_of(ConfigError(["a"])) == 400
    assert routes.status_of(NotFoundError("a")) == 404
    assert routes.status_of(ConflictError("a")) == 409
