"""The table of what can be asked, and how a path finds its row."""

import pytest

from ringzero.doors.firecracker import balloon, faults, table
from ringzero.doors.firecracker.configuration import Configuration
from ringzero.doors.firecracker.faults import ApiFault
from ringzero.doors.firecracker.instance import Instance


def found(method, path, body=True):
    operation, identifier = table.find(method, path, body=body)
    return operation.path, identifier


@pytest.mark.parametrize("operation", table.OPERATIONS, ids=lambda o: f"{o.method} {o.path}")
def test_every_row_is_found_and_served(operation):
    body = operation.method in ("PUT", "PATCH")
    path = operation.path.replace(table.ID, "one")
    identifier = "one" if table.ID in operation.path else ""
    assert table.find(operation.method, path, body=body) == (operation, identifier)
    assert operation.before or operation.after
    assert (operation.body is not None or operation.free) == body


@pytest.mark.parametrize(
    ("method", "path", "row"),
    [
        # What stands behind a path is not looked at: a client says /vsock/vsock0.
        ("PUT", "/vsock/vsock0", ("/vsock", "")),
        ("PUT", "/drives/rootfs/", ("/drives/{id}", "rootfs")),
        ("PUT", "/mmds/config", ("/mmds/config", "")),
        ("PUT", "//actions", ("/actions", "")),
        ("PATCH", "/balloon/statistics", ("/balloon/statistics", "")),
    ],
)
def test_paths(method, path, row):
    assert found(method, path) == row


def test_a_body_that_may_be_missing():
    assert found("PATCH", "/balloon/hinting/start", body=False)[0] == "/balloon/hinting/start"


@pytest.mark.parametrize(
    ("method", "path", "body", "sentence"),
    [
        ("GET", "/unicorn", False, "Invalid request method and/or path: GET unicorn."),
        ("POST", "/actions", True, "Invalid request method and/or path: POST actions."),
        ("DELETE", "/vsock", False, "Invalid request method and/or path: DELETE vsock."),
        ("PUT", "/snapshot/take", True, "Invalid request method and/or path: PUT /snapshot/take."),
        ("PUT", "/snapshot", True, "Missing snapshot operation type."),
        ("GET", "/balloon/size", False, "Unrecognized GET request path `size`."),
        ("PUT", "/mmds/other", True, "Unrecognized PUT request path `other`."),
        (
            *("PATCH", "/balloon/hinting/now", True),
            "Unrecognized PATCH request path `/hinting/now`.",
        ),
        ("GET", "/version", True, faults.WITH_BODY["GET"]),
        ("PUT", "/actions", False, faults.NO_BODY["PUT"]),
        ("PATCH", "/vm", False, faults.NO_BODY["PATCH"]),
        ("PUT", "/drives", True, faults.EMPTY_ID),
        ("PUT", "/drives/a-b", True, faults.INVALID_ID),
        ("DELETE", "/drives/a%2Fb", False, faults.INVALID_ID),
    ],
)
def test_paths_that_are_none(method, path, body, sentence):
    with pytest.raises(ApiFault) as caught:
        table.find(method, path, body=body)
    assert (caught.value.message, caught.value.status) == (sentence, 400)


def test_every_row_has_somebody_who_does_it_or_is_told_of():
    """What is not there is a list, which may only become shorter."""
    missing = {
        operation.path
        for operation in table.OPERATIONS
        if not hasattr(Instance, f"_{operation.name}")
        and not hasattr(Configuration, operation.name)
        and operation.name not in balloon.ANSWERS
        and operation.name != "unplug"
    }
    assert missing == MISSING


MISSING = {"/hotplug/memory"}
