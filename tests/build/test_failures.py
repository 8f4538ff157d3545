"""The machine of a step that failed: kept, looked into, and gone in time."""

import itertools
import json
import re

import pytest

from ringzero.build import failures
from ringzero.build.builder import build
from ringzero.build.cache import BuildCache
from ringzero.build.job import Options
from ringzero.build.origin import Context
from ringzero.build.vmfile.parse import parse
from ringzero.build.worker import Call
from ringzero.cli.main import main
from ringzero.errors import BuildError, NotFoundError
from tests.build.test_services import Quiet

TEXT = """\
FROM micro
ENV WORD=said
WORKDIR /srv
RUN echo before >before
USER nobody
RUN mkdir /tmp/d && echo $WORD >/tmp/d/f && rm /bin/vi 2>/dev/null; exit 9
"""


def built(text, place, cache, **options):
    return build(parse(text), Context(place), Options(**options), cache=cache, listener=Quiet())


@pytest.mark.boot
def test_a_failed_step_is_looked_into(cache, tmp_path, capfd):
    with pytest.raises(BuildError, match="status 9") as caught:
        built(TEXT, tmp_path, cache)
    (name,) = re.findall("ringzero image debug ([0-9a-f]+)", caught.value.hint)
    command = "pwd; cat before /tmp/d/f; id -u; echo $WORD; exit 4"
    assert main(["image", "debug", "--command", command]) == 4
    assert capfd.readouterr().out == "/srv\nbefore\nsaid\n65534\nsaid\n"
    # What somebody does there is not kept.
    assert main(["image", "debug", name, "--command", "rm /tmp/d/f"]) == 0
    assert main(["image", "debug", name[:6], "--command", "cat /tmp/d/f /no", "--json"]) == 1
    found = json.loads(capfd.readouterr().out)
    assert (found["name"], found["status"], found["stdout"]) == (name, 1, "said\n")
    assert "/no" in found["stderr"]
    assert main(["image", "debug", "--json"]) == 0
    (one,) = json.loads(capfd.readouterr().out)
    assert (one["status"], one["directory"], one["uid"]) == (9, "/srv", 65534)
    # The same failure again takes its place.
    with pytest.raises(BuildError, match=r"status 9"):
        built(TEXT, tmp_path, cache)
    assert len(BuildCache(cache).failures.all()) == 1
    assert main(["image", "prune", "--builds"]) == 0
    assert main(["image", "debug", name]) == 3
    assert not list((cache / "build/failed").glob("*"))


@pytest.mark.boot
def test_a_machine_that_knows_a_secret_is_not_kept(cache, tmp_path):
    text = "FROM micro\nRUN --mount=type=secret,id=key exit 1\n"
    with pytest.raises(BuildError) as caught:
        built(text, tmp_path, cache, secrets={"key": b"s3cr3t"})
    assert "debug" not in caught.value.hint
    assert BuildCache(cache).failures.all() == []


class Machine:
    """Is saved as an empty directory with what a snapshot's name needs."""

    def __init__(self, names):
        self.names = names

    def save(self, store, name):
        self.names.append(name)


def test_the_oldest_go(tmp_path, monkeypatch):
    names = []
    kept = failures.Failures(tmp_path)

    class Machines:
        def names(self):
            return names

        def remove(self, name):
            if name in names:
                names.remove(name)

        def tree(self):
            return []

    kept._machines = Machines()
    ticks = itertools.count(1000.0)
    monkeypatch.setattr(failures.time, "time", lambda: next(ticks))
    for number in range(8):
        call = Call(("sh", str(number)), {"A": "1"})
        failure = failures.Failure.of(f"RUN {number}", 1, call, 1, ("/bin/sh", "-c"))
        kept.keep(Machine(names), failure)
    found = kept.all()
    assert len(found) == failures.MOST
    assert kept.find().instruction == "RUN 7"
    assert kept.find(found[2].name[:8]) == found[2]
    assert found[0].call == Call(("sh", "7"), {"A": "1"})
    monkeypatch.setattr(failures.time, "time", lambda: 1000.0 + failures.MOST_SECONDS + 100)
    kept.tidy()
    assert len(kept.all()) == 1
    with pytest.raises(NotFoundError, match="no failed step 'x'"):
        kept.find("x")
