"""What our own process costs before the guest runs: imports, building, loading the kernel."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench import start

import ringzero
from ringzero.engine import select
from ringzero.engine.contract import ENGINES, Usability
from ringzero.errors import RingzeroError
from tests.vm.guests import own_templates

# Modules that the way to the first instruction does not need; each costs milliseconds.
NOT_LOADED = {
    "argparse", "dataclasses", "datetime", "hashlib", "inspect", "llvmlite", "shutil",
    "subprocess", "tarfile", "tempfile", "ringzero.disk", "ringzero.image.packages", "ringzero.jit",
}  # fmt: skip
LOAD = """
import json, sys
import ringzero.vm.machine, ringzero.board.machines.microvm, ringzero.engine.kvm.engine
import ringzero.cli.main, ringzero.cli.flags, ringzero.cli.verbs.run, ringzero.cli.session
import ringzero.image.catalog.micro
print(json.dumps(sorted(sys.modules)))
"""
# A start with everything in the cache, from the first module to the guest's end: modules of
# ours, and what none of them may bring in. Each module costs a third of a millisecond. The
# stack of the user's network comes when the guest first speaks, and is not counted.
MODULES_OF_A_START = 183
# One that resumes knows templates, and has neither kernel nor firmware to load.
MODULES_OF_A_RESUME = 178
# Files that it opens, Python's own among them: modules come from one, tables of the engine from a
# dozen. Each costs some 20 microseconds.
FILES_OF_A_RESUME = 62
# Counts events of the interpreter (PEP 578), and tells them at the process's end.
COUNTING = """
import collections, json, os, sys
opened = []
sys.addaudithook(lambda name, told: opened.append(str(told[0])) if name == "open" else None)
end = os._exit
def tell(code):
    os.write(2, json.dumps(opened).encode())
    end(code)
os._exit = tell
sys.argv = ["ringzero", *sys.argv[1:]]
from ringzero.cli.entry import main
main()
"""
NETWORK = ("ringzero.net.stack", "ringzero.net.proxy")
NOT_IN_A_START = {
    *("dataclasses", "hashlib", "inspect", "queue", "shlex", "subprocess", "llvmlite"),
}
# The part of the process, by the clock, with everything in the cache (issue 4).
LIMIT_MS = 60
# Of that, what an empty Python takes on an idle machine of the kind that was aimed at. Where
# it takes longer now, because others use the machine, so may we.
EMPTY_MS = 11
TRIES = 12


def test_a_start_loads_no_more_than_it_needs():
    # Without site, which loads what it likes; so the sources' place is told.
    environment = os.environ | {"PYTHONPATH": str(Path(ringzero.__file__).parents[1])}
    command = [sys.executable, "-S", "-c", LOAD]
    done = subprocess.run(command, capture_output=True, check=True, env=environment)
    loaded = set(json.loads(done.stdout))
    assert not loaded & NOT_LOADED


@pytest.mark.engine
@pytest.mark.boot
def test_a_whole_start_loads_no_more_than_it_needs():
    ours = modules_of_a_run("--engine", "soft")
    ours = {name for name in ours if not name.startswith(NETWORK)}
    assert len(ours) <= MODULES_OF_A_START


def modules_of_a_run(*flags):
    """Return our modules that `run -- true` loads, after one that has made what the cache lacks."""
    from ringzero.image import micro

    try:
        micro.ensure()
    except RingzeroError as fault:
        pytest.skip(f"no guest image: {fault.message}")
    command = [sys.executable, "-S", "-X", "importtime", "-m", "ringzero"]
    paths = filter(lambda place: "site-packages" in place, sys.path)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(ringzero.__file__).parents[1]), *paths]),
    }
    command += ["run", *flags, "--", "true"]
    # The first one may compile what the cache has not.
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    loaded = {line.rpartition("|")[2].strip() for line in lines}
    assert not loaded & NOT_IN_A_START
    return {name for name in loaded if name.startswith("ringzero")}


def files_of_a_run(*flags):
    """Return what `run -- true` opens when earlier ones have left what they leave."""
    source = str(Path(ringzero.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": source}
    # Modules without bytecode are in no file but their own.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", COUNTING, "run", *flags, "--", "true"]
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    opened = json.loads(done.stderr)
    assert not [path for path in opened if path.startswith(source) and "/vm/" in path], opened
    return opened


@pytest.mark.engine
@pytest.mark.boot
def test_a_start_that_resumes_loads_no_more_than_it_needs(tmp_path):
    from ringzero.engine import select
    from ringzero.vm import boot
    from ringzero.vm.saved import making
    from ringzero.vm.saved.templates import Templates

    with own_templates(tmp_path):
        try:
            config = boot.complete(None, "micro", {"memory": "128M", "engine": "soft"})
        except RingzeroError as fault:
            pytest.skip(f"no guest image: {fault.message}")
        assert making.make(config, select.choose("soft"), Templates())
        ours = modules_of_a_run("--engine", "soft", "-m", "128M")
        opened = files_of_a_run("--engine", "soft", "-m", "128M")
    assert "ringzero.vm.copies" in ours
    assert not {name for name in ours if name.startswith(NETWORK)}
    assert len(ours) <= MODULES_OF_A_RESUME
    assert len(opened) <= FILES_OF_A_RESUME, opened


@pytest.mark.speed
@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("kvm", marks=pytest.mark.kvm),
        pytest.param("soft", marks=pytest.mark.engine),
    ],
)
def test_our_part_before_the_guest(engine):
    if select.judge(ENGINES.get(engine)()).usability is Usability.UNUSABLE:
        pytest.skip(f"no engine {engine} here")
    from ringzero.image import micro

    try:
        micro.ensure()
    except RingzeroError as fault:
        pytest.skip(f"no guest image: {fault.message}")
    start.before_guest(engine)
    empty = min(start.empty_python()[0] for _ in range(TRIES))
    best = min(start.before_guest(engine)[0] for _ in range(TRIES))
    print(f"\n{engine}: {best:.1f} ms before the guest ran, {empty:.1f} ms of them Python")
    if engine == "kvm":
        assert best < LIMIT_MS * max(1, empty / EMPTY_MS)
