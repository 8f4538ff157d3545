"""The pages on how to add a part: their code is put beside the tree's and used, as it stands.

What a page adds are its blocks that begin with the name of a file: at most three, the test
among them, and none of the tree's.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n# ((?:src|tests)/\S+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# How what was added shows where nothing was changed.
DICE = """
import contextlib
import json

from ringzero.cli.flags import parse
from ringzero.cli.main import main
from ringzero.cli.verb import VERBS
from ringzero.config.machine import MachineConfig
from ringzero.config.tree import config_from_tree, config_to_tree
from ringzero.vm.machine import Machine
from tests.engine.fake import FakeEngine


def test_the_flag(capsys):
    assert parse(VERBS.get("run")(), ["--dice", "6", "--dice", "20"]).dice == ["6", "20"]
    with contextlib.suppress(SystemExit):
        main(["run", "--help"])
    assert "--dice SIDES" in capsys.readouterr().out
    assert main(["run", "--dice", "7e", "--cpus", "0", "--", "true"]) == 2
    told = capsys.readouterr().err
    assert "no dice has '7e' sides" in told and "0 CPUs" in told


def test_the_description():
    config = MachineConfig.create(dices=["6", "20"])
    assert config_from_tree(json.loads(json.dumps(config_to_tree(config)))) == config


def test_the_machine():
    with Machine(engine=FakeEngine(), dices=["6", "20"]) as machine:
        assert {"dice0", "dice0.device", "dice1"} <= {n for n, _ in machine.board.stateful()}
        (child,) = machine.fork()
        with child:
            assert child.config == machine.config
"""
PAGES = {
    "add-a-device.md": (DICE, ["tests/devices/test_contract.py", "-k", "dice or registered"]),
    "add-a-board.md": ("", ["tests/config/test_machine.py"]),
    "add-a-disk-format.md": ("", ["tests/disk/test_contract.py", "-k", "tagged"]),
    "add-a-share.md": ("", ["tests/config/devices/test_share.py"]),
    "add-a-network.md": ("", ["tests/net/test_contract.py", "-k", "mirror"]),
}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_what_the_page_adds(page, tmp_path):
    blocks = BLOCK.findall((ROOT / "docs" / page).read_text())
    assert 1 < len(blocks) <= 3
    tests = []
    for name, text in blocks:
        assert not (ROOT / name).exists()
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        tests += [path] * name.startswith("tests/")
    assert tests
    more, suite = PAGES[page]
    if more:
        tests.append(tmp_path / "test_more.py")
        tests[-1].write_text(more)
    environment = os.environ | {"RINGZERO_OVERLAY": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for chosen in (["--rootdir", tmp_path, "-c", os.devnull, *tests], suite):
        command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:randomly", "-p"]
        done = subprocess.run(
            [*command, "tests.examples.overlay", *map(str, chosen)],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert " passed" in done.stdout
