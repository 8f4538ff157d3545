"""Which command lines a machine of a pool takes as its client's."""

import os
from pathlib import Path

import pytest

from ringzero.cli.pool import line, place
from ringzero.config.machine import MachineConfig

KEPT = ("--memory", "256M")


@pytest.fixture
def key(tmp_path, monkeypatch):
    """Return the key of the pool of machines with KEPT, of an image that is made of nothing."""
    for name in ("vmlinuz", "initrd"):
        (tmp_path / name).write_bytes(b"x")

    def describe(self, arguments):
        return MachineConfig.create(
            kernel=tmp_path / "vmlinuz",
            initrd=tmp_path / "initrd",
            agent=True,
            memory=arguments.memory,
        )

    monkeypatch.setattr(line.Run, "describe", describe)
    return place.key_of(
        MachineConfig.create(
            kernel=tmp_path / "vmlinuz", initrd=tmp_path / "initrd", agent=True, memory="256M"
        )
    )


def test_a_line_of_such_a_machine(key):
    words = ["run", *KEPT, "--timeout", "3", "--stats", "-e", "A=b", "-w", "/", "--"]
    found = line.read([*words, "echo", "--", "x"], key)
    told = []

    def how(**given):
        told.append(given)
        return 7

    assert found.run(how) == 7
    assert told == [{"words": ["echo", "--", "x"], "timeout": 3.0, "stats": True, "as_json": False}]


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--", "true"],
        ["run", *KEPT],
        ["run", *KEPT, "--"],
        ["run", *KEPT, "-t", "--", "true"],
        ["run", *KEPT, "-d", "--", "true"],
        ["run", *KEPT, "--name", "x", "--", "true"],
        ["run", *KEPT, "--boot", "--", "true"],
        ["run", *KEPT, "--serial", "x", "--", "true"],
        ["run", *KEPT, "--kernel", "x", "--", "true"],
        ["run", *KEPT, "--nonsense", "--", "true"],
        ["run", *KEPT, "--help", "--", "true"],
        ["run", *KEPT, "-m256M", "--", "true"],
        ["run", *KEPT, "two", "words", "--", "true"],
        ["exec", *KEPT, "--", "true"],
    ],
)
def test_others(key, words):
    assert line.read(words, key) is None


def test_what_goes_wrong_is_told_as_by_the_command_line(key, capfd):
    from ringzero.errors import GuestError

    def how(**given):
        raise GuestError("panic", hint="so what")

    found = line.read(["run", *KEPT, "--", "true"], key)
    assert found.run(how) == GuestError.exit_code
    assert capfd.readouterr().err == "ringzero: error: panic\n  hint: so what\n"


def test_a_signal_that_ends_the_client(key):
    def how(**given):
        raise SystemExit(143)

    assert line.read(["run", *KEPT, "--", "true"], key).run(how) == 143


@pytest.fixture
def here(tmp_path):
    descriptor = os.open(tmp_path, os.O_PATH)
    before = Path.cwd()
    yield descriptor
    os.chdir(before)
    os.close(descriptor)


def test_the_clients_environment_and_directory_for_a_while(here, tmp_path):
    before = dict(os.environ)
    with line.like(before | {"NEW": "1"}, here) as possible:
        assert possible
        assert os.environ["NEW"] == "1"
        assert Path.cwd() == tmp_path
    assert dict(os.environ) == before
    assert Path.cwd() == Path("/")


@pytest.mark.parametrize("name", ["RINGZERO_CACHE_DIR", "RINGZERO_ENGINE", "HOME"])
def test_other_settings_are_another_process_to_read(here, name, monkeypatch):
    for setting in ("RINGZERO_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(setting, raising=False)
    with line.like(dict(os.environ) | {name: "/other"}, here) as possible:
        assert not possible
