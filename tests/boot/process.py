"""The real command line as a process, on the software engine."""

import os
import subprocess
import sys
from pathlib import Path

import ringzero

# Seconds after which a run of a few seconds hangs, on a machine with much else to do.
WAIT = 120
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(ringzero.__file__).parents[1])}
COMMAND = [sys.executable, "-m", "ringzero", "run", "--engine", "soft"]


def run(*words, **keywords):
    """Run `ringzero run WORDS` to its end; its outputs are bytes, without a terminal."""
    keywords = {"stdin": subprocess.DEVNULL} | keywords
    if "input" in keywords:
        del keywords["stdin"]
    if "stdout" not in keywords:
        keywords["capture_output"] = True
    environment = ENVIRONMENT | keywords.pop("env", {})
    return subprocess.run([*COMMAND, *words], timeout=WAIT, env=environment, **keywords)


def start(*words, **keywords):
    """Start `ringzero run WORDS`."""
    environment = ENVIRONMENT | keywords.pop("env", {})
    return subprocess.Popen([*COMMAND, *words], env=environment, **keywords)


def check(done, code, *texts):
    """The process ended with `code`, and what it said is for a person and holds `texts`."""
    said = done.stderr.decode(errors="replace")
    assert done.returncode == code, said
    assert "Traceback" not in said
    assert "internal error" not in said
    for text in texts:
        assert text in said, said
    if code not in (0, 130):
        assert said.startswith("ringzero: "), said
