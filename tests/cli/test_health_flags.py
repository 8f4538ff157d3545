"""Health checks by flags: what is asked of a guest, and what makes no sense."""

import json

import pytest

from ringzero.cli.main import main
from tests.control.conftest import root  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("root", "machines")
CHECK = ("--health-cmd", "test -e /run/well")


def described(root, capfd, *flags):  # noqa: F811
    """Return the health check of a machine made with `flags`."""
    assert main(["create", "--name", "web", *flags]) == 0, capfd.readouterr().err
    return json.loads((root / "web" / "machine.json").read_text())["health"]


def test_a_command_and_its_times(root, capfd):  # noqa: F811
    times = ("--health-interval", "1m30s", "--health-timeout", "500ms", "--health-retries", "5")
    start = ("--health-start-period", "1h", "--health-start-interval", "0")
    assert described(root, capfd, *CHECK, *times, *start) == {
        "words": ["/bin/sh", "-c", "test -e /run/well"],
        "interval": 90.0,
        "timeout": 0.5,
        "retries": 5,
        "start_period": 3600.0,
        # None is said.
        "start_interval": 5.0,
    }


def test_it_runs_as_the_machines_command_does(root, capfd):  # noqa: F811
    words = described(root, capfd, *CHECK, "-u", "nobody", "-e", "A=b")["words"]
    assert words[0] == "su" and "nobody" in words
    assert words[-5:] == ["env", "A=b", "/bin/sh", "-c", "test -e /run/well"]


def test_it_runs_as_commands_in_a_folders_guest_do(root, tmp_path, capfd, monkeypatch):  # noqa: F811
    """And a folder's guest that stays has no command, whose end would be its own."""
    monkeypatch.chdir(tmp_path)
    where = tmp_path / "rootfs"
    where.mkdir()
    words = described(root, capfd, *CHECK, "--root", str(where), "-u", "me")["words"]
    assert words == ["--user=me", "--", "/bin/sh", "-c", "test -e /run/well"]
    assert json.loads((root / "web" / "machine.json").read_text())["command"] == []


def test_none(root, capfd):  # noqa: F811
    assert described(root, capfd, "--no-healthcheck") is None


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["-d", "--health-interval", "1s"], "--health-interval: there is no health check"),
        (["-d", *CHECK, "--health-timeout", "5"], "--health-timeout: '5' is no time"),
        (["-d", *CHECK, "--health-timeout=-5s"], "--health-timeout: '-5s' is no time"),
        (["-d", *CHECK, "--health-timeout", "999999999h"], "999999999h is too long"),
        (["-d", *CHECK, "--health-retries", "-1"], "--health-retries -1 makes no sense"),
        (["-d", "--health-cmd", " "], "--health-cmd has no command"),
        (["-d", *CHECK, "--no-healthcheck"], "--no-healthcheck and --health-cmd say opposite"),
        ([*CHECK, "--health-retries", "2"], "--health-cmd and --health-retries without -d"),
        (["-d", *CHECK, "--kernel", "KERNEL"], "needs the agent"),
    ],
)
def test_what_makes_no_sense(root, tmp_path, capfd, flags, told):  # noqa: F811
    (tmp_path / "k").write_bytes(b"")
    flags = [str(tmp_path / "k") if word == "KERNEL" else word for word in flags]
    assert main(["run", *flags]) == 2
    assert told in capfd.readouterr().err
    assert not list(root.glob("*"))
