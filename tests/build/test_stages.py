"""Stages at the same time: that they are, what is kept apart, and how one ends the others."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from ringzero.build.builder import build
from ringzero.build.cut import Cut
from ringzero.build.job import Options
from ringzero.build.origin import Context
from ringzero.build.vmfile.parse import parse
from ringzero.cli.building import _Steps
from ringzero.errors import BuildError, MissingFileError
from tests.build.test_builder import content
from tests.build.test_killed import check
from tests.build.test_services import Quiet
from tests.image.oci.images import FakeRegistry, Image

TEXT = """\
FROM micro AS one
RUN echo one; cat /proc/sys/kernel/random/boot_id >/id; echo 1 >/a
FROM micro AS two
RUN echo two; cat /proc/sys/kernel/random/boot_id >/id; echo 2 >/b
FROM scratch
COPY --from=one /a /id /one/
COPY --from=two /b /id /two/
"""


class Together(Quiet):
    """Has the first words of two steps wait for each other."""

    def __init__(self):
        self.barrier, self.met, self.said = threading.Barrier(2), [], {}

    def says(self, number, data):
        if number not in self.said:
            with contextlib.suppress(threading.BrokenBarrierError):
                self.barrier.wait(100)
                self.met.append(number)
        self.said[number] = self.said.get(number, b"") + data


@pytest.mark.boot
def test_two_stages_run_at_the_same_time(cache, tmp_path):
    listener = Together()
    options = Options(jobs=2)
    image = build(parse(TEXT), Context(tmp_path), options, cache=cache, listener=listener)
    assert sorted(listener.met) == [2, 4]
    assert listener.said == {2: b"one\n", 4: b"two\n"}
    assert (content(image, "/one/a"), content(image, "/two/b")) == (b"1\n", b"2\n")
    # The same, one after the other, and known.
    again = build(parse(TEXT), Context(tmp_path), Options(jobs=1), cache=cache, listener=Quiet())
    assert again.digest == image.digest


class Waits(Quiet):
    """Has the second step fail once the first one runs."""

    def __init__(self):
        self.runs = threading.Event()

    def says(self, number, data):
        if number == 2:
            self.runs.set()
        else:
            self.runs.wait(100)


@pytest.mark.boot
def test_a_stage_that_fails_ends_the_others(cache, tmp_path):
    text = """\
FROM micro AS one
RUN echo begun; sleep 1000
FROM micro AS two
RUN echo bad; exit 3
FROM scratch
COPY --from=one / /
COPY --from=two / /
"""
    with pytest.raises(BuildError, match="ended with status 3"):
        build(parse(text), Context(tmp_path), Options(jobs=2), cache=cache, listener=Waits())
    assert not [t for t in threading.enumerate() if t.name.startswith("stage")]


class WaitsForThePull(Quiet):
    """Has a step wait until an image stops coming."""

    def __init__(self, registry):
        self.registry = registry

    def begins(self, number, count, text):
        if text.startswith("COPY absent"):
            assert self.registry.stalled.wait(100)


@pytest.mark.boot
def test_a_stage_that_pulls_is_ended_too(cache, tmp_path):
    registry = FakeRegistry()
    registry.stall = threading.Event()
    name = registry.add("app", Image([{"a": os.urandom(100_000)}]))
    text = f"""\
FROM {name} AS one
FROM scratch AS two
COPY absent /
FROM scratch
COPY --from=one / /
COPY --from=two / /
"""
    try:
        with pytest.raises(MissingFileError, match="absent"):
            build(
                *(parse(text), Context(tmp_path), Options(jobs=2)),
                cache=cache,
                listener=WaitsForThePull(registry),
            )
        assert not [t for t in threading.enumerate() if t.name.startswith("stage")]
    finally:
        registry.stall.set()
        registry.close()


@pytest.mark.boot
def test_ctrl_c_ends_all_stages(cache, tmp_path):
    place = tmp_path / "context"
    place.mkdir()
    (place / "Vmfile").write_text(TEXT.replace("cat /proc", "sleep 1000; cat /proc"))
    command = [sys.executable, "-m", "ringzero", "image", "build"]
    child = subprocess.Popen(
        [*command, "--jobs", "2", "--progress", "json", place], stdout=subprocess.PIPE
    )
    said = set()
    for line in child.stdout:
        told = json.loads(line)
        said |= {told["step"]} if "output" in told else set()
        if len(said) == 2:
            break
    child.send_signal(signal.SIGINT)
    assert child.wait(100) == 130
    child.stdout.close()
    check(cache)


@pytest.mark.boot
def test_a_stage_that_a_variable_names(cache, tmp_path):
    text = "ARG BASE=first\nFROM scratch AS first\nLABEL a=b\nFROM scratch AS second\nFROM $BASE\n"
    image = build(parse(text), Context(tmp_path), Options(), cache=cache, listener=Quiet())
    assert image is not None


def test_a_cut_build_hears_of_it_at_once():
    cut, done = Cut(), []
    cut.add(lambda: done.append(1))
    cut.check()
    cut.make()
    cut.add(lambda: done.append(2))
    assert done == [1, 2]
    with pytest.raises(BuildError):
        cut.check()
    cut.make()
    assert done == [1, 2]


def test_what_steps_at_the_same_time_say_is_kept_apart(capsys):
    steps = _Steps("plain")
    steps.begins(1, 9, "RUN a")
    steps.begins(4, 9, "RUN b")
    steps.says(4, b"b1\n")
    steps.says(1, b"a1\n")
    steps.begins(6, 9, "RUN c")
    steps.ends(4, 1.0, cached=False)
    steps.says(1, b"a2\n")
    assert capsys.readouterr().err == "[1/9] RUN a\na1\na2\n"
    steps.ends(1, 2.0, cached=False)
    assert capsys.readouterr().err == "[1] 2.0 s\n[4/9] RUN b\nb1\n[4] 1.0 s\n[6/9] RUN c"
    steps.begins(7, 9, "RUN d")
    steps.says(7, b"d1\n")
    # What a build that fails has not shown yet is shown.
    steps.close()
    assert capsys.readouterr().err == "\n[7/9] RUN d\nd1\n"
