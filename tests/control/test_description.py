"""What is noted of a machine, and what it is from its next start on."""

import threading
import uuid

import pytest

from ringzero.config.tree import config_to_tree
from ringzero.control.host import client, directory, notes
from ringzero.control.host import launch as launching
from ringzero.control.host.description import describe, redefine
from ringzero.errors import ConfigError, ConflictError, InvalidValueError, NotFoundError
from tests.control.fake import PROGRAM, config, start
from tests.killed import killed_at

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setattr(launching, "PROGRAM", PROGRAM)


def tree(**fields):
    return config_to_tree(config(**fields))


def test_a_machine_has_a_uuid_for_life():
    host = client.host()
    host.define(tree(), name="web")
    web = host.machine("web")
    found = web.metadata()["uuid"]
    assert str(uuid.UUID(found)) == found
    web.rename("db")
    assert web.metadata()["uuid"] == found
    host.define(tree(), name="other")
    assert host.machine("other").metadata()["uuid"] != found
    given = "{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}"
    host.define(tree(), name="given", uuid=given)
    assert host.machine("given").metadata()["uuid"] == given.strip("{}").lower()
    with pytest.raises(InvalidValueError, match="no UUID"):
        host.define(tree(), name="wrong", uuid="1234")
    assert [m["name"] for m in host.machines()] == ["db", "given", "other"]


def test_notes():
    start("web")
    web = client.machine("web")
    assert {**web.metadata(), "uuid": ""} == {
        "uuid": "", "title": "", "description": "", "autostart": False, "elements": {},
    }  # fmt: skip
    web.describe(title="the web", autostart=True, metadata={"a": "1", "b": "2"})
    web.describe(description="two\nlines", metadata={"a": None, "c": "3"})
    found = web.metadata()
    assert (found["title"], found["description"]) == ("the web", "two\nlines")
    assert found["autostart"] is True
    assert found["elements"] == {"b": "2", "c": "3"}
    web.describe(title="", autostart=False)
    assert (web.metadata()["title"], web.metadata()["autostart"]) == ("", False)
    for wrong in ({"a": 1}, {"": "x"}, {"a": "x" * 300_000}):
        with pytest.raises(InvalidValueError):
            web.describe(metadata=wrong)
    assert web.metadata()["elements"] == {"b": "2", "c": "3"}
    with pytest.raises(NotFoundError):
        client.machine("nobody")


def test_a_machine_that_runs_is_another_from_its_next_start_on():
    start("web")
    web = client.machine("web")
    web.redefine(tree(cpus=4, memory="64M"))
    assert web.inspect()["config"]["cpus"] == 1
    assert web.next()["cpus"] == 4
    web.redefine(tree(cpus=3))
    web.restart(timeout=5)
    assert web.inspect()["config"]["cpus"] == 3
    assert web.next() == web.inspect()["config"]
    assert web.next()["name"] == "web"
    assert not (web.directory.path / notes.NEXT).exists()
    web.redefine(tree(cpus=2))
    web.stop()
    # One that does not run is so at once, and other changes go on from there.
    web.rename("db")
    assert web.next()["cpus"] == 2
    web.redefine(tree(cpus=5))
    assert web.inspect()["config"]["cpus"] == 5
    web.start()
    assert web.inspect()["config"]["cpus"] == 5


def test_what_is_described_anew_and_changed_has_both():
    host = client.host()
    host.define(tree(), name="web")
    web = host.machine("web")
    web.redefine(tree(nets=("user",), cpus=2))
    web.publish("0:80")
    assert web.next()["cpus"] == 2
    assert [port["guest_port"] for port in web.ports()] == [80]


def test_what_is_refused():
    start("web")
    web = client.machine("web")
    for wrong in ({"memory": "lots"}, {"colour": "red"}):
        with pytest.raises(ConfigError):
            web.redefine(wrong)
    assert web.next() == web.inspect()["config"]
    record = web.directory.machine()
    from ringzero.control.host.records import save
    from ringzero.records import replace

    save(replace(record, deployment={"name": "shop"}), web.directory.path / directory.MACHINE)
    with pytest.raises(ConflictError, match="part of a deployment"):
        web.redefine(tree())


def test_many_note_something_at_once():
    start("web")
    web = client.machine("web")

    def note(number):
        for each in range(10):
            describe(web.directory, metadata={f"{number}.{each}": "x"})

    threads = [threading.Thread(target=note, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(web.metadata()["elements"]) == 80


@pytest.mark.parametrize("runs", [False, True])
def test_a_description_and_its_notes_change_together_whenever_that_is_killed(runs):
    if runs:
        start("web")
    else:
        client.host().define(tree(memory="32M"), name="web")
    web = client.machine("web")
    web.describe(title="old", metadata={"a": "old"})

    def change():
        new = config(memory="64M").with_room_for_shares()
        redefine(web.directory, new, notes={"title": "new", "metadata": {"a": "new"}})

    old, step, seen = (web.next()["memory"], "old"), 0, set()
    while killed_at(step, change):
        seen.add((web.next()["memory"], web.metadata()["title"]))
        assert web.metadata()["title"] == web.metadata()["elements"]["a"]
        step += 1
    new = web.next()["memory"], web.metadata()["title"]
    assert new[1] == "new" and new[0] != old[0] and step > 1
    assert seen <= {old, new}
    # What is noted later counts, wherever the earlier notes stood.
    web.describe(title="later")
    assert web.metadata()["title"] == "later" and web.metadata()["elements"] == {"a": "new"}


def test_what_a_killed_change_left_is_settled_by_the_next_start():
    client.host().define(tree(memory="32M"), name="web")
    web = client.machine("web")

    def change():
        redefine(web.directory, config(memory="64M").with_room_for_shares(), notes={"title": "new"})

    # Behind the one rename that counts.
    assert killed_at(1, change)
    assert (web.directory.path / notes.NEXT).exists()
    web.start()
    assert not (web.directory.path / notes.NEXT).exists()
    assert (
        web.metadata()["title"] == "new"
        and web.inspect()["config"]["memory"] == web.next()["memory"]
    )


def test_a_machine_whose_rename_was_killed_has_its_directorys_name():
    client.host().define(tree(), name="web")
    for step in range(4):
        if not killed_at(step, lambda: client.machine("web").rename("db")):
            break
        names = [machine["name"] for machine in client.host().machines()]
        assert len(names) == 1 and names[0] in ("web", "db")
        if names == ["db"]:
            assert client.machine("db").inspect()["name"] == "db"
            return
    raise AssertionError("no kill was between")
