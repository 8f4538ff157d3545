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


@pytest.mark.parametrize("name", VERBS.names())
def test_every_verb(name):
    verb = VERBS.get(name)()
    found = flags.parse(verb, [])
    assert found is None or vars(found) == by_argparse(verb, [])
