"""`ringzero snapshot`, over snapshots of machines that never ran."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ringzero
from ringzero.cli.main import main
from ringzero.vm.saved.store import Store
from tests.vm.seeds import ancestors, save


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(tmp_path / "machines"))
    store = Store()
    root = save(store, tmp_path, "root", b"r")
    save(store, tmp_path, "left", b"l", ancestors(root))
    save(store, tmp_path, "right", b"rr", ancestors(root))
    return store


@pytest.fixture
def call(capsys):
    def run(*words, code=0):
        assert main(["snapshot", *map(str, words)]) == code
        return capsys.readouterr()

    return run


def test_list_and_tree(store, call):
    listed = call("ls").out.splitlines()
    assert listed[0].split() == ["NAME", "MACHINE", "TAKEN", "KIND", "OWN", "SHARED", "PARENT"]
    assert [line.split()[0] for line in listed[1:]] == ["root", "left", "right"]
    assert [line.split()[-1] for line in listed[1:]] == ["-", "root", "root"]
    tree = [line.split("  ")[0] for line in call("tree").out.splitlines()]
    assert tree == ["root", "├─ left", "└─ right"]
    facts = json.loads(call("ls", "--json").out)
    assert [fact["parent"] for fact in facts] == [None, "root", "root"]
    assert facts == json.loads(call("tree", "--json").out)


def test_a_damaged_one_is_listed_with_what_is_wrong(store, call):
    (store.root / "left" / "manifest.json").write_text("{}")
    said = call("ls")
    assert "left" in said.err and "right" in said.out
    assert json.loads(call("ls", "--json").out)[-1]["name"] == "left"
    call("rm", "left")
    assert store.names() == ["right", "root"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_names_are_completed(store, call):
    assert call("ls", "-q").out.split() == ["left", "right", "root"]
    source = Path(ringzero.__file__).parents[1]
    script = f"""ringzero() {{ PYTHONPATH={source} {sys.executable} -m ringzero "$@"; }}
    eval "$(ringzero completion bash)"
    complete_last() {{
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _ringzero; echo "${{COMPREPLY[@]}}"
    }}
    complete_last ringzero snapshot rev
    complete_last ringzero snapshot rm r
    complete_last ringzero snapshot diff left r
    complete_last ringzero snapshot revert web l
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["revert", "right root", "right root", "left"]


def test_remove(store, call):
    said = json.loads(call("rm", "root", "left", "--json").out)
    assert [item["name"] for item in said] == ["root", "left"] and store.names() == ["right"]
    assert "no snapshot called 'root'" in call("rm", "root", code=3).err


def test_difference(store, call):
    assert "memory   1 pages" in call("diff", "left", "right").out
    assert json.loads(call("diff", "left", "left", "--json").out)["memory"]["pages"] == 0


def test_export_and_import(store, call, tmp_path):
    path = tmp_path / "left.rzs"
    assert json.loads(call("export", "left", path, "--json").out)["size"] == path.stat().st_size
    assert call("import", path, "--name", "back").out == "back\n"
    assert call("check", "back").out == "back: sound\n"
    assert "left" in call("import", path, code=2).err
    path.write_bytes(path.read_bytes()[:-50])
    assert call("import", path, "--name", "cut", code=9).err
    call("import", tmp_path / "nothing", code=3)


def test_check(store, call):
    snapshot = store.get("left")
    blob = snapshot.blob(snapshot.manifest.memory.delta)
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    assert "damaged" in call("check", "left", code=9).out
    assert json.loads(call("check", "left", "--json", code=9).out)["faults"]
    assert "damaged" in call("restore", "left", "--verify", code=9).err


@pytest.mark.parametrize(
    "words",
    [("save", "nosuch", "x"), ("restore", "x"), ("check", "x"), ("revert", "nosuch", "left")],
)
def test_what_is_not_there(store, call, words):
    assert "no " in call(*words, code=3).err
    assert not list((store.root.parent.parent / "machines").glob("*"))
