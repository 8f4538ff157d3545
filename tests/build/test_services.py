"""SERVICE and READY: what of an image starts with a machine, in a guest."""

import time

import pytest

from ringzero.build.builder import build
from ringzero.build.job import Options
from ringzero.build.origin import Context
from ringzero.build.vmfile.parse import parse
from ringzero.cli.main import main
from ringzero.control.host.directory import MachineDirectory
from ringzero.image.oci.reference import parse_reference

pytestmark = pytest.mark.boot

TEXT = """\
FROM micro
ENV WORD=said
RUN echo 'until [ -e /run/go ]; do sleep 0.05; done; touch /run/up; httpd -f -p 81' >/late
SERVICE first echo "first $WORD $(id -u)"
SERVICE --user=nobody --after=first fails echo "fails $(id -u)"; exit 3
SERVICE --restart=no --after=fails late touch /run/go; exec sh /late
READY --timeout=100s tcp:81
"""


class Quiet:
    """Hears nothing."""

    def begins(self, number, count, text):
        pass

    def says(self, number, data):
        pass

    def ends(self, number, seconds, *, cached):
        pass


@pytest.fixture
def image(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(tmp_path / "machines"))
    monkeypatch.setenv("RINGZERO_TEMPLATES", "0")

    def made(text, name="svc:1"):
        options = Options(names=(parse_reference(name),))
        return build(parse(text), Context(tmp_path), options, cache=cache, listener=Quiet())

    return made


def logs(name, capfd):
    assert main(["logs", name]) == 0
    return capfd.readouterr().out


def test_services_start_and_are_started_again(image, capfd, tmp_path):
    image(TEXT)
    assert main(["run", "-d", "--name", "s1", "svc:1"]) == 0
    try:
        capfd.readouterr()
        # It is ready: the last of them has begun.
        assert main(["exec", "s1", "--", "ls", "/run/up"]) == 0
        capfd.readouterr()
        end = time.monotonic() + 60
        while (text := logs("s1", capfd)).count("fails 65534") < 2:
            assert time.monotonic() < end, text
            time.sleep(0.2)
        # What ended well is not started again.
        assert text.count("first said 0") == 1
        assert "the service fails ended with status 3; again in 1 s" in text
        assert "the service first" not in text
        assert main(["stop", "s1"]) == 0
    finally:
        if MachineDirectory(tmp_path / "machines" / "s1").alive:
            main(["kill", "s1"])


def test_a_run_shows_them_and_ends_with_them(image, capfd):
    image("FROM micro\nSERVICE a echo one of two\nSERVICE --restart=no b echo two; exit 1\n")
    assert main(["run", "svc:1"]) == 0
    out = capfd.readouterr().out
    assert "one of two" in out
    assert "two\r\n" in out
    # A command has them beside it.
    assert main(["run", "svc:1", "--", "echo", "command"]) == 0
    assert "command" in capfd.readouterr().out
    assert main(["run", "-e", "A=1", "svc:1"]) == 2
    assert "for a command" in capfd.readouterr().err


def test_what_is_never_ready_is_told(image, capfd):
    image('FROM micro\nREADY --timeout=1s --interval=100ms tcp:81\nCMD ["sleep", "1000"]\n')
    try:
        assert main(["run", "-d", "--name", "s2", "svc:1"]) == 125
        assert "not ready" in capfd.readouterr().err
    finally:
        main(["kill", "s2"])
