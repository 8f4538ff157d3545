"""What happens to machines, told by their directories, however late somebody looks."""

from __future__ import annotations

import time

import pytest

from ringzero.api.values import EventKind, ExitRecord, Status
from ringzero.control.host import claims
from ringzero.control.host.directory import EXIT, STATUS
from ringzero.control.host.events import Watch
from ringzero.control.host.records import StatusRecord, save
from ringzero.control.host.removed import end_of_removed, name_of_removed
from tests.control.fake import config

ENDS = [
    ExitRecord("command", "its command ended with status 7", 7, 1_800_000_000.25),
    ExitRecord("fault", "cannot write /a/b: 虚 " * 40, 70, 0.0),
    ExitRecord("panic", '"][,\\u002f\n\0' * 30, 125, 1.5),
    ExitRecord("poweroff", "", 0, 2.0),
]


def running(name="web"):
    claim = claims.create(name, config(), remove=True)
    save(StatusRecord(Status.RUNNING.value, time.time()), claim.directory.path / STATUS)
    return claim


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.reason)
def test_a_machine_that_is_gone_already_has_told_its_end(root, end):
    with Watch(root) as watch:
        claim = running()
        assert [event.kind for event in watch.read(5)] == ["created", "started"]
        save(end, claim.directory.path / EXIT)
        claim.discard()
        assert list(root.iterdir()) == []
        events = []
        while not events or events[-1].kind != EventKind.REMOVED.value:
            more = watch.read(5)
            assert more, events
            events += more
    assert [event.kind for event in events] == ["ended", "removed"]
    told = ExitRecord.from_dict(events[0].detail["exit"])
    assert (told.reason, told.exit_code, told.time) == (end.reason, end.exit_code, end.time)
    assert end.detail.startswith(told.detail)
    assert told.detail or not end.detail


def test_one_that_was_never_seen_is_not_told_of(root):
    with Watch(root) as watch:
        running().discard()
        assert watch.read(0.05) == []


def test_renamed_and_removed_between_two_looks(root):
    with Watch(root) as watch:
        claim = running()
        watch.read(5)
        save(ENDS[0], claim.directory.path / EXIT)
        claim.release()
        claim.directory.rename("other").remove()
        events, deadline = [], time.monotonic() + 5
        while [event.kind for event in events][-1:] != ["removed"]:
            assert time.monotonic() < deadline, events
            events += watch.read(0.1)
    assert [(event.kind, event.machine) for event in events] == [
        ("renamed", "other"),
        ("ended", "other"),
        ("removed", "other"),
    ]
    assert events[1].detail["exit"]["exit_code"] == 7


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.reason)
def test_names_of_what_is_removed(end, tmp_path):
    name = name_of_removed(".old-", "0" * 16, end)
    (tmp_path / name).mkdir()
    found = end_of_removed(tmp_path / name)
    assert found.to_dict() | {"detail": ""} == end.to_dict() | {"detail": ""}


@pytest.mark.parametrize("name", [".old-0123", ".old-[", ".old-[]", '.old-{"a":1}', ".old-[1,2,3]"])
def test_names_that_tell_no_end(name, tmp_path):
    assert end_of_removed(tmp_path / name) is None
