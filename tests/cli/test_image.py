import json

import pytest

from ringzero.cli.main import main


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_build(machines, capsys):
    assert main(["image", "build"]) == 0
    assert "micro  000000000000  5 B" in capsys.readouterr().out
    assert main(["image", "build", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["packages"] == ["busybox=1"]
    assert main(["image", "build", "other"]) == 3


def test_list_and_remove_nothing(capsys):
    assert main(["image", "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["image", "rm", "micro"]) == 3
    assert "no image called 'micro'" in capsys.readouterr().err


def test_action_is_needed(capsys):
    assert main(["image"]) == 2
    assert "ACTION" in capsys.readouterr().err
