"""The order of a rollout and its way back, with machines that are none."""

import threading

import pytest

from ringzero.deployment import file
from ringzero.deployment.directory import LIVE, PENDING, State, Version, place
from ringzero.deployment.rollout import Rollout
from ringzero.errors import DeployError, HostError

pytestmark = pytest.mark.usefixtures("places")


class Machine:
    """A Replica's outside; `fate` is the state that it comes to."""

    def __init__(self, host, service, label, fate):
        self.host, self.service, self.label, self.fate = host, service, label, fate
        self.name = f"{label.service}-{label.version}-{label.replica}"
        self.state, self.failure, self.reason = "starting", "", ""
        self.targets = {80: (self.name, 80)}
        self.insist = False

    def start(self):
        self.host.said.append(f"start {self.name}")
        self.state = self.fate
        if self.fate == "ended":
            self.failure = "it crashed"

    def end(self, *, remove):
        self.host.said.append(f"{'remove' if remove else 'end'} {self.name}")

    def facts(self):
        return {"answer": "no"}

    def last_lines(self):
        return "last words"


class Host:
    """Notes what is asked of it."""

    def __init__(self, fates=()):
        self.place = place("web")
        self.place.make()
        self.balancer = self
        self.changed = threading.Condition()
        self.said, self.fates = [], dict(fates)

    def replica(self, deployment, service, label):
        return Machine(self, service, label, self.fates.get(label.version, "healthy"))

    def lead(self, deployment, sets):
        names = sorted(each.name for found in sets.values() for each in found)
        self.said.append(f"lead {' '.join(names)}")

    def listen(self, deployment):
        self.said.append("listen")

    def shut(self, deployment):
        self.said.append("shut")

    def drain(self, targets, seconds):
        self.said.append(f"drain {' '.join(name for name, _ in targets)}")


def version(number, **more):
    given = {"name": "web", "image": f"web:{number}", "ports": ["1:80"], "replicas": 2}
    found = file.read(given | {"env": {"N": number}} | more).deployment
    return Version(number, 0.0, found)


def first(host):
    """Return the live machines of version 1, and forget how they came."""
    new = version(1)
    sets = Rollout(host, None, {}, new).run()
    host.said.clear()
    return new, sets


def test_beside_each_other():
    host = Host()
    old, live = first(host)
    new = version(2, update={"parallel": 1})
    sets = Rollout(host, old, live, new).run()
    assert [each.name for each in sets["web"]] == ["web-2-1", "web-2-2"]
    assert host.said[:3] == ["listen", "start web-2-1", "start web-2-2"]
    assert host.said[3:6] == ["lead web-2-1 web-2-2", "shut", "drain web-1-1 web-1-2"]
    assert sorted(host.said[6:]) == ["remove web-1-1", "remove web-1-2"]
    assert host.place.state().live == 2
    assert host.place.version(2).outcome == LIVE


@pytest.mark.parametrize("fate", ["ended", "unhealthy", "starting"])
def test_back(fate):
    host = Host({2: fate})
    old, live = first(host)
    before = list(live["web"])
    with pytest.raises(DeployError, match="web: machine web-2-1") as caught:
        Rollout(host, old, live, version(2), timeout=0.05).run()
    assert "last words" in caught.value.message
    assert sorted(host.said[3:5]) == ["remove web-2-1", "remove web-2-2"]
    assert host.said[5:] == ["shut", "lead web-1-1 web-1-2"]
    assert live["web"] == before and host.place.state().live == 1


def test_after_each_other_and_back():
    host = Host({2: "ended"})
    old, live = first(host)
    with pytest.raises(DeployError):
        Rollout(host, old, live, version(2, update={"order": "stop-first"})).run()
    assert host.said[1] == "lead " and host.said[2].startswith("drain web-1-1")
    assert sorted(host.said[3:5]) == ["end web-1-1", "end web-1-2"]
    assert sorted(host.said[-3:]) == ["lead web-1-1 web-1-2", "start web-1-1", "start web-1-2"]
    assert all(each.insist for each in live["web"])
    assert host.place.state() == State(live=1)


def test_a_state_that_cannot_be_written_is_no_new_version(monkeypatch):
    host = Host()
    old, live = first(host)

    def full(state):
        raise HostError("no space left on the disk")

    monkeypatch.setattr(host.place, "write_state", full)
    with pytest.raises(DeployError, match="no space left"):
        Rollout(host, old, live, version(2)).run()
    assert sorted(host.said[3:5]) == ["remove web-2-1", "remove web-2-2"]
    assert "drain web-1-1 web-1-2" not in host.said
    assert host.place.state().live == 1


def test_taken_back_by_the_user():
    host = Host({2: "starting"})
    old, live = first(host)
    rollout = Rollout(host, old, live, version(2))
    threading.Timer(0.05, rollout.cancel).start()
    with pytest.raises(DeployError, match="it was taken back"):
        rollout.run()
    assert "remove web-2-1" in host.said


def test_who_has_which_image(monkeypatch):
    from ringzero.deployment.directory import users_of
    from ringzero.records import replace

    where = place("web")
    where.make()
    one = version(1)
    service = replace(one.deployment.services[0], digest="sha256:12")
    where.write_version(replace(one, deployment=replace(one.deployment, services=(service,))))
    assert users_of("sha256:12") == ["web version 1"]
    assert users_of("sha256:34") == []
    assert where.version(1).outcome == PENDING
