"""`ringzero image build` with a Vmfile, as a user types it; no machine is needed here."""

import json

import pytest

from ringzero.cli.main import main

TEXT = 'ARG V=1\nFROM scratch\nARG V\nCOPY . /\nLABEL v=$V\nCMD ["/f"]\n'


@pytest.fixture
def place(cache, tmp_path, monkeypatch):
    place = tmp_path / "place"
    place.mkdir()
    (place / "f").write_text("f")
    (place / "Dockerfile").write_text(TEXT)
    monkeypatch.chdir(place)
    return place


def test_a_directory_is_built_and_has_its_names(place, capsys):
    assert main(["image", "build", "-t", "one:1", "-t", "two", "."]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("one:1")
    assert "[1/5] FROM scratch" in err
    assert main(["image", "inspect", "two"]) == 0
    found = json.loads(capsys.readouterr().out)[0]
    assert found["cmd"] == ["/f"]
    assert sorted(found["names"]) == ["one:1", "two:latest"]


def test_a_vmfile_comes_first_and_another_is_named(place, capsys):
    (place / "Vmfile").write_text("FROM scratch\nCMD v\n")
    assert main(["build", "--json", str(place)]) == 0
    assert json.loads(capsys.readouterr().out)[0]["cmd"] == ["/bin/sh", "-c", "v"]
    (place / "other").write_text("FROM scratch\nCMD o\n")
    assert main(["image", "build", "-f", "other", "--json", "."]) == 0
    assert json.loads(capsys.readouterr().out)[0]["cmd"] == ["/bin/sh", "-c", "o"]


def test_steps_as_json(place, capsys):
    assert main(["image", "build", "--progress", "json", "--json", "."]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[0]) == {"step": 1, "of": 5, "instruction": "FROM scratch"}
    assert json.loads(lines[1])["cached"] is False


def test_arguments_come_from_flags_and_the_environment(place, capsys, monkeypatch):
    monkeypatch.setenv("V", "9")
    assert main(["image", "build", "--build-arg", "V", "-t", "one", "."]) == 0
    assert main(["image", "build", "--build-arg", "V=9", "-t", "two", "."]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[1] == second.split()[1]
    monkeypatch.delenv("V")
    assert main(["image", "build", "--build-arg", "V", "."]) == 2
    assert main(["image", "build", "--build-arg", "W=1", "."]) == 2
    assert "no ARG of the file takes it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        ("FROM scratch\nCOPY nothing /\n", 3, "no 'nothing'"),
        ("FROM scratch\nRUNN x\n", 2, "did you mean RUN?"),
        ("FROM scratch\nSNAPSHOT\nDISK 1G /a\n", 2, "do not go together"),
        ("FROM oci:/nowhere\n", 5, "/nowhere"),
        ("FROM scratch\nUSER nobody\nCOPY --chown=nobody f /\n", 5, "nobody"),
    ],
)
def test_what_is_wrong(place, capsys, text, status, says):
    (place / "Dockerfile").write_text(text)
    assert main(["image", "build", "."]) == status
    assert says in capsys.readouterr().err


def test_a_file_that_is_not_there(place, capsys):
    (place / "Dockerfile").unlink()
    assert main(["image", "build", "."]) == 3
    assert "there is no Vmfile in ." in capsys.readouterr().err
    assert main(["image", "build", "-f", "x", "."]) == 3
    assert main(["image", "build", "./nowhere"]) == 3


def test_what_builds_keep_is_removed(place, cache, capsys):
    assert main(["image", "build", "-t", "x", "."]) == 0
    assert list((cache / "build/layers").iterdir())
    assert main(["image", "prune", "--builds"]) == 0
    assert not (cache / "build/layers").exists()
    assert main(["image", "inspect", "x"]) == 0
