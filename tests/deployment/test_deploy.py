"""Deployments of fake machines in processes of their own: versions, failures, death."""

import json
import os
import signal
import socket
import threading
import time
from http.client import HTTPException

import pytest

import ringzero
from ringzero.control.host import client as machines
from ringzero.control.host.directory import MACHINE
from ringzero.deployment import client, directory
from ringzero.errors import (
    ConflictError,
    DeployError,
    InvalidValueError,
    NotFoundError,
)
from tests.deployment.conftest import get, port_of, until, web

pytestmark = pytest.mark.usefixtures("host")


def names():
    return sorted(machine.name for machine in machines.machines())


def states(name="web"):
    return [m["state"] for s in client.status(name)["services"] for m in s["machines"]]


class Load:
    """A client that asks without a pause; `failed` has what went wrong."""

    def __init__(self, port, count=3, path="/"):
        self.port, self.path, self.answers, self.failed = port, path, [], []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        until(lambda: len(self.answers) > 5 or self.failed)
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self):
        while not self._over.is_set():
            try:
                self.answers.append(get(self.port, self.path))
            except Exception as fault:
                self.failed.append(repr(fault))
            time.sleep(0.002)


def test_a_service_comes_changes_under_load_and_goes_back():
    told = []
    made = ringzero.deploy(web("v1", replicas=2), tell=told.append)
    assert (made["version"], made["changed"]) == (1, True)
    assert "version 1 serves" in told
    assert names() == ["web-1-1", "web-1-2"]
    port = port_of()
    with Load(port) as load:
        again = ringzero.deploy(web("v1", replicas=2))
        assert (again["version"], again["changed"]) == (1, False)
        assert ringzero.deploy(web("v2", replicas=2))["version"] == 2
        assert get(port) == (200, "v2")
        assert names() == ["web-2-1", "web-2-2"]
        back = client.rollback()
        assert (back["version"], back["changed"]) == (3, True)
        assert get(port) == (200, "v1")
    assert load.failed == []
    assert set(load.answers) == {(200, "v1"), (200, "v2")}
    found = [(e["version"], e["outcome"], e["origin"]) for e in client.history("web")]
    assert found == [
        (3, "live", "version 1"), (2, "replaced", "Python"), (1, "replaced", "Python"),
    ]  # fmt: skip
    assert port_of() == port
    assert client.remove("web") == ["web-3-1", "web-3-2"]
    assert names() == [] and directory.deployments() == []
    with pytest.raises(NotFoundError, match="nothing is deployed"):
        client.status()


def test_both_replicas_are_asked_in_turn():
    ringzero.deploy(web(replicas=2))
    port = port_of()
    for _ in range(4):
        get(port)
    (facts,) = client.status("web")["services"]
    assert facts["ports"][0]["connections"] >= 4
    first = facts["machines"][0]
    # One that is not well is asked no more, and started again.
    inner = first["ports"]["80"]
    assert get(inner, "/sick")[0] == 200
    until(lambda: any(m["restarts"] for m in client.status("web")["services"][0]["machines"]))
    until(lambda: states() == ["healthy"] * 2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"command": ["stop", "127"]}, ["ended with status 127", "the end of it: 127"]),
        ({"command": ["sick", "v2"]}, ["web-2-1: not well: GET /healthz: HTTP/1.1 500"]),
        ({"secrets": {"PW": {"file": "/nonexistent/secret"}}}, ["does not exist"]),
    ],
)
def test_a_version_that_does_not_come_up_leaves_the_old_one(change, told):
    check = web()["check"] | {"start_period": "0s"}
    ringzero.deploy(web("v1"))
    port = port_of()
    with Load(port) as load, pytest.raises((DeployError, ringzero.ConfigError)) as caught:
        ringzero.deploy(web("v2", check=check) | change)
    for text in told:
        assert text in caught.value.message
    assert load.failed == []
    assert set(load.answers) == {(200, "v1")}
    assert names() == ["web-1-1"]
    assert client.status("web")["version"] == 1
    if isinstance(caught.value, DeployError):
        assert caught.value.hint == "version 1 serves as before"
        last = client.history("web")[0]
        assert (last["version"], last["outcome"]) == (2, "failed")
        assert told[0] in last["reason"]


def test_a_version_that_is_never_well_is_taken_back_after_the_time():
    ringzero.deploy(web("v1"))
    with pytest.raises(DeployError, match=r"within 0\.5 s"):
        ringzero.deploy(web("v2", command=["deaf", "v2"]), timeout=0.5)
    assert names() == ["web-1-1"] and get(port_of()) == (200, "v1")


def test_a_first_version_that_fails_leaves_nothing_that_runs():
    for _ in range(2):
        with pytest.raises(DeployError, match="status 9") as caught:
            ringzero.deploy(web(command=["stop", "9"]))
        assert caught.value.hint == "nothing of it runs"
    assert names() == []
    place = directory.find("web")
    until(lambda: not place.alive)
    assert [v.outcome for v in place.versions()] == ["failed", "failed"]
    assert ringzero.deploy(web())["version"] == 3
    client.remove("web")


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(DeployError, match=f"port {number} of 127.0.0.1 is taken"):
            ringzero.deploy(web(ports=[f"{number}:80"]))
    assert names() == []
    ringzero.deploy(web(ports=[f"{number}:80"]))
    assert get(number) == (200, "v1")
    # A port that comes beside it, and goes again.
    ringzero.deploy(web(ports=[f"{number}:80", "0:80"]))
    assert client.status("web")["version"] == 3 and names() == ["web-2-1"]
    assert get(port_of(number=1)) == (200, "v1")
    ringzero.deploy(web(ports=[f"{number}:80"]))
    assert len(client.status("web")["services"][0]["ports"]) == 1


def test_what_changes_no_machine_leaves_them():
    ringzero.deploy(web())
    before = machines.machine("web-1-1").inspect()["id"]
    ringzero.deploy(web(restart="on-failure:3", drain="1s", replicas=3))
    assert names() == ["web-1-1", "web-2-1", "web-2-2"]
    assert machines.machine("web-1-1").inspect()["id"] == before
    ringzero.deploy(web(replicas=1))
    assert len(names()) == 1
    ringzero.deploy(web(replicas=1), force=True)
    assert names() == ["web-4-1"]


def held(port):
    """Ask for what is not answered yet; return the thread, and the answers to come."""
    answers = []

    def ask():
        try:
            answers.append(get(port, "/held", 100))
        except ConnectionResetError:
            answers.append("reset")

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: client.status("web")["services"][0]["ports"][0]["open"])
    return thread, answers


def test_open_connections_end_before_their_machine():
    ringzero.deploy(web("v1", drain="100s"))
    port = port_of()
    inner = client.status("web")["services"][0]["machines"][0]["ports"]["80"]
    thread, answers = held(port)
    change = threading.Thread(target=lambda: ringzero.deploy(web("v2", drain="100s")))
    change.start()
    until(lambda: get(port) == (200, "v2"))
    assert names() == ["web-1-1", "web-2-1"] and answers == []
    get(inner, "/release")
    thread.join()
    change.join()
    assert answers == [(200, "v1")]
    assert names() == ["web-2-1"]


def test_and_no_longer_than_they_may():
    ringzero.deploy(web("v1"))
    thread, answers = held(port_of())
    ringzero.deploy(web("v2", drain="0s"))
    thread.join()
    assert answers == ["reset"]
    assert names() == ["web-2-1"]


def test_one_after_the_other_where_two_cannot_be(host):
    (host / "a.img").write_bytes(bytes(4096))
    more = {"disks": [f"{host}/a.img,format=raw"], "update": {"order": "stop-first"}}
    ringzero.deploy(web("v1", **more))
    port = port_of()
    with Load(port, 1) as load:
        ringzero.deploy(web("v2", **more))
        with pytest.raises(DeployError, match="status 1"):
            ringzero.deploy(web("v3", **more) | {"command": ["stop", "1"]})
        # Who asks meanwhile waits.
        until(lambda: load.answers[-1] == (200, "v2"))
    assert load.failed == []
    assert names() == ["web-2-1"]
    assert directory.find("web").state().paused == ()


def test_a_machine_that_ends_is_started_again():
    ringzero.deploy(web())
    port = port_of()
    inner = client.status("web")["services"][0]["machines"][0]["ports"]["80"]
    crash(inner)
    until(lambda: client.status("web")["services"][0]["machines"][0]["restarts"])
    # Who asks meanwhile waits.
    assert get(port) == (200, "v1")
    machines.machine("web-1-1").kill()
    until(lambda: client.status("web")["services"][0]["machines"][0]["restarts"] == 2)
    assert get(port) == (200, "v1")
    (facts,) = client.status("web")["services"][0]["machines"]
    assert (facts["machine"], facts["state"]) == ("web-1-1", "healthy")


def crash(port):
    with pytest.raises((OSError, HTTPException)):
        get(port, "/crash")


@pytest.mark.parametrize(
    ("restart", "command", "state", "restarts"),
    [
        ("no", "/crash", "ended", 0),
        ("on-failure:1", "/crash", "healthy", 1),
        ("on-failure:0", "/crash", "ended", 0),
        ("on-failure", None, "ended", 0),
        ("always", None, "healthy", 1),
    ],
)
def test_what_the_policy_says(restart, command, state, restarts):
    ringzero.deploy(web(restart=restart))
    inner = client.status("web")["services"][0]["machines"][0]["ports"]["80"]
    if command is not None:
        with pytest.raises(Exception):  # noqa: B017 - however it hangs up
            get(inner, command)
    else:
        machines.machine("web-1-1").stop()

    def settled():
        (facts,) = client.status("web")["services"][0]["machines"]
        return (facts["state"], facts["restarts"]) == (state, restarts)

    until(settled)
    if state == "ended" and command is not None:
        # `deploy` brings the host to what is described.
        assert ringzero.deploy(web(restart=restart))["started"] == ["web-1-1"]
        until(lambda: states() == ["healthy"])


def test_a_killed_process_takes_nothing_but_the_ports():
    ringzero.deploy(web(replicas=2))
    port, place = port_of(), directory.find("web")
    before = {m.name: m.inspect()["id"] for m in machines.machines()}
    kill(place)
    with pytest.raises(OSError):
        get(port)
    assert port_of() == port
    assert get(port) == (200, "v1")
    assert {m.name: m.inspect()["id"] for m in machines.machines()} == before
    # What ended or was removed meanwhile comes again.
    kill(place)
    machines.machine("web-1-1").kill()
    machines.machine("web-1-2").remove(force=True)
    until(lambda: states() == ["healthy"] * 2)
    assert names() == ["web-1-1", "web-1-2"]
    assert ringzero.deploy(web("v2"))["version"] == 2


def kill(place):
    os.kill(client.status(place.name)["pid"], signal.SIGKILL)
    until(lambda: not place.alive)


def test_what_a_killed_rollout_left_goes():
    ringzero.deploy(web("v1"))
    port, place = port_of(), directory.find("web")
    accepted = ringzero.deploy(web("v2", command=["deaf", "v2"]), wait=False)
    assert (accepted["version"], accepted["accepted"]) == (2, True)
    until(lambda: names() == ["web-1-1", "web-2-1"])
    with pytest.raises(ConflictError, match="is being changed already"):
        ringzero.deploy(web("v3"))
    kill(place)
    assert client.status("web")["version"] == 1
    assert get(port) == (200, "v1")
    until(lambda: names() == ["web-1-1"])
    last = client.history("web")[0]
    assert (last["outcome"], last["reason"]) == ("failed", "the deployment's process was killed")
    assert ringzero.deploy(web("v3"))["version"] == 3


def test_it_is_taken_back_where_the_user_wants_it(monkeypatch):
    ringzero.deploy(web("v1"))

    from ringzero.deployment.wire import Link

    receive = Link.receive

    def interrupted(self):
        found = receive(self)
        if str(found.get("event", "")).startswith("web: starting"):
            monkeypatch.setattr(Link, "receive", receive)
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Link, "receive", interrupted)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ringzero.deploy(web("v2", command=["deaf", "v2"]))
    # Far less than one look at a machine may take.
    assert time.monotonic() - began < 30
    assert names() == ["web-1-1"]
    assert client.history("web")[0]["reason"] == "it was taken back"


def test_secrets_are_in_no_record(host, monkeypatch):
    (host / "password").write_text("hunter2\n")
    monkeypatch.setenv("TOKEN_HERE", "tok3n")
    secrets = {"PASSWORD": {"file": str(host / "password")}, "TOKEN": {"env": "TOKEN_HERE"}}
    ringzero.deploy(web(secrets=secrets, env={"PLAIN": "seen"}))
    _, body = get(port_of(), "/env")
    assert json.loads(body) == {"PASSWORD": "hunter2", "TOKEN": "tok3n", "PLAIN": "seen"}
    for path in host.rglob("*"):
        if path.is_file() and path.name != "password":
            data = path.read_bytes()
            assert b"hunter2" not in data and b"tok3n" not in data, path
    record = json.loads((host / "machines/web-1-1" / MACHINE).read_text())
    assert record["secrets"]["TOKEN"] == {"env": "TOKEN_HERE"}
    told = json.dumps(client.plan(web(secrets={"PASSWORD": {"env": "HOME"}})))
    assert "hunter2" not in told and "password" in told
    # Started again, it has them again.
    machines.machine("web-1-1").kill()
    assert json.loads(get(port_of(), "/env")[1])["TOKEN"] == "tok3n"
    monkeypatch.delenv("TOKEN_HERE")
    with pytest.raises(InvalidValueError, match="read from \\$TOKEN_HERE, which is not set"):
        ringzero.deploy(web("v2", secrets=secrets))


def test_services_wait_for_others():
    told = []
    services = {
        "front": web("front", after=["back"]) | {"ports": ["0:80"]},
        "back": web("back"),
        "job": {"image": "fake", "command": ["stop", "0"], "restart": "no", "after": ["back"]},
    }
    for service in services.values():
        service.pop("name", None)
    ringzero.deploy({"name": "shop", "services": services}, tell=told.append)
    started = [text for text in told if ": starting" in text]
    assert started[0].startswith("back:")
    assert names() == ["shop-back-1-1", "shop-front-1-1", "shop-job-1-1"]
    wanted = {"front": "healthy", "back": "healthy", "job": "ended"}

    def found():
        return {s["service"]: s["machines"][0]["state"] for s in client.status()["services"]}

    until(lambda: found() == wanted)
    # One that is left out goes; the others stay.
    del services["job"]
    plan = client.plan({"name": "shop", "services": services})
    assert {c["service"]: c["how"] for c in plan["changes"]} == {
        "front": "same", "back": "same", "job": "removed",
    }  # fmt: skip
    ringzero.deploy({"name": "shop", "services": services})
    assert names() == ["shop-back-1-1", "shop-front-1-1"]


def test_a_machine_of_the_users_own_is_left_alone():
    from ringzero.control.host import claims
    from tests.control.fake import config

    claim = claims.create("web-1-1", config())
    claims.define(claim)
    with pytest.raises(DeployError, match="'web-1-1' is taken by a machine"):
        ringzero.deploy(web())
    assert names() == ["web-1-1"]
    assert machines.machine("web-1-1").inspect()["status"] == "defined"


def test_versions_are_kept_for_a_while(monkeypatch):
    place = directory.place("web")
    place.make()
    from ringzero.deployment import file
    from ringzero.deployment.directory import KEPT, State, Version

    found = file.read(web()).deployment
    place.write_state(State(live=1))
    for number in range(1, KEPT + 5):
        place.write_version(Version(number, 0.0, found, "replaced"))
    assert place.numbers() == [1, *range(5, KEPT + 5)]
    with pytest.raises(NotFoundError, match="has no version 3"):
        client.rollback("web", 3)
    place.remove(volumes=True)


def test_volumes_stay_until_they_are_to_go(host):
    ringzero.deploy(web(mounts=["files:/files"]))
    volume = host / "data/deployments/web/volumes/files"
    (volume / "kept").write_text("still")
    client.remove("web")
    assert (volume / "kept").read_text() == "still"
    ringzero.deploy(web(mounts=["files:/files"]))
    client.remove("web", volumes=True)
    assert not volume.exists()
