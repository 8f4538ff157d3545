"""Events, and the log in which they are kept."""

import asyncio
import json

from ringzero.control.host import client
from ringzero.doors.events import Events
from tests.control.conftest import root  # noqa: F401 - a fixture


def heard(where, log, between=lambda: None):
    """Return the events of two machines that are defined, told to one who listens."""

    async def run():
        events = Events(where, log)
        events.start()
        try:
            with events.listen() as listener:
                found = []
                for name in ("a", "b"):
                    client.host(where).define({"kernel": "/dev/null"}, name=name)
                    found.append(await listener.next(20))
                    await asyncio.to_thread(between)
                return found, events.last
        finally:
            events.close()

    return asyncio.run(run())


def test_they_are_kept_and_their_numbers_go_on(root, tmp_path):  # noqa: F811
    log = tmp_path / "log"
    found, last = heard(root, log)
    assert [(e.number, e.event.machine) for e in found] == [(1, "a"), (2, "b")]
    assert [json.loads(line)["machine"] for line in log.read_text().splitlines()] == ["a", "b"]
    assert last == Events(root, log).last == 2


def test_a_log_that_cannot_be_written_takes_nobodys_events(root, tmp_path, capsys):  # noqa: F811
    where = tmp_path / "gone"
    found, _ = heard(root, where / "log", lambda: where.mkdir(exist_ok=True))
    assert [e.event.machine for e in found] == ["a", "b"]
    assert capsys.readouterr().err.count("events are not kept") == 1
    # It is kept again as soon as that is possible.
    assert json.loads((where / "log").read_text())["machine"] == "b"
