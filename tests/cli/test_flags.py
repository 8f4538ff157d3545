"""The quick reader of plain command lines agrees with argparse, or leaves it the word."""

import argparse
import contextlib
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.cli import flags
from ringzero.cli.verb import VERBS

RUN = VERBS.get("run")()
WORDS = st.sampled_from(
    ["--memory", "-m", "256M", "--memory=1G", "--cpus", "2", "--cpus=x", "--engine", "soft", "-t",
     "--tty", "--tty=1", "--stats", "--json", "--disk", "a,ro", "--disk=b", "--append", "x=1 y",
     "--append=", "-m256M", "--mem", "--timeout", "1.5", "-1", "", "--help", "word", "--serial"]
)  # fmt: skip


def by_argparse(verb, words):
    """Return what argparse makes of it, or None for an error or help."""
    parser = argparse.ArgumentParser()
    verb.configure(parser)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            return vars(parser.parse_args(words))
        except SystemExit:
            return None


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=6))
def test_what_is_read_is_what_argparse_reads(words):
    found = flags.parse(RUN, words)
    if found is not None:
        assert vars(found) == by_argparse(RUN, words)


@pytest.mark.parametrize(
    "words",
    [[], ["--engine", "kvm"], ["-m", "1G", "--cpus=2", "--stats"], ["--disk", "a", "--disk", "b"]],
)
def test_the_usual_is_read(words):
    assert vars(flags.parse(RUN, words)) == by_argparse(RUN, words)


@pytest.mark.parametrize(
    "words", [["-h"], ["--mem", "1"], ["x"], ["--cpus"], ["--cpus", "x"], ["--memory", "--json"]]
)
def test_the_rest_is_left_to_argparse(words):
    assert flags.parse(RUN, words) is None


DISK = VERBS.get("disk")()
DISK_WORDS = st.sampled_from(
    ["-f", "raw", "-O", "qcow2", "-p", "-q", "a", "b", "--output", "json", "--output=human", "xml",
     "-o", "x=1", "-m", "2", "-c", "--force", "-", "", "-Oraw", "--json", "-l", "+1G", "-1G"]
)  # fmt: skip


def plain(found):
    """Return what was read, without the command, which either side has made for itself."""
    return {name: value for name, value in found.items() if name != "chosen_command"}


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["convert", "measure", "create", "info", "resize", "dd", "snapshot", "none"]),
    st.lists(DISK_WORDS, max_size=7),
)
def test_words_without_a_flag(command, words):
    found = flags.parse(DISK, [command, *words])
    if found is not None:
        assert plain(vars(found)) == plain(by_argparse(DISK, [command, *words]))


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "-f", "raw", "a", "-O", "qcow2", "b", "-q"], ["info", "a", "--json"],
        ["measure", "--size", "1G"], ["create", "-q", "a", "1G"], ["create", "a"],
    ],
)  # fmt: skip
def test_the_usual_commands_are_read(words):
    assert plain(vars(flags.parse(DISK, words))) == plain(by_argparse(DISK, words))


@pytest.mark.parametrize("name", VERBS.names())
def test_every_verb(name):
    verb = VERBS.get(name)()
    found = flags.parse(verb, [])
    assert found is None or vars(found) == by_argparse(verb, [])
