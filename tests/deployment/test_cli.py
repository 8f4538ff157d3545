"""`ringzero deploy`, as people and programs call it; the machines are fake ones."""

import json

import pytest

from ringzero.cli.main import main
from tests.deployment.conftest import get, port_of, until

pytestmark = pytest.mark.usefixtures("host")

FILE = """\
name = "shop"
image = "fake"
command = "serve {text}"
ports = ["0:80"]
replicas = 1
check.http = "/healthz"
check.start_interval = "20ms"
check.start_period = "0s"
check.retries = 1
check.timeout = "60s"
env.LEVEL = "{text}"
secrets.PASSWORD.file = "password"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "password").write_text("hunter2")
    monkeypatch.chdir(tmp_path)
    write("v1")
    return tmp_path


def write(text, more=""):
    from pathlib import Path

    Path("run.toml").write_text(FILE.format(text=text) + more)


def said(capfd, *words, code=0):
    assert main(["deploy", *words]) == code
    return capfd.readouterr()


def test_from_nothing_to_nothing(folder, capfd):
    out = said(capfd, "--dry-run").out
    assert out == "shop: nothing is deployed\n+ shop: added, fake, 1 machine\n"
    found = said(capfd)
    assert found.out == "shop  version 1 serves\n"
    assert "ringzero: shop: starting shop-1-1\n" in found.err
    assert said(capfd).out == "shop  version 1 serves; nothing has changed\n"
    assert said(capfd, "--dry-run").out.startswith("shop: version 1 serves; nothing would change")
    port = port_of("shop")
    write("v2")
    out = said(capfd, "--dry-run").out
    assert "~ shop: replaced" in out and "    command: serve v1 -> serve v2\n" in out
    assert "    env: LEVEL=v1 -> LEVEL=v2\n" in out
    found = json.loads(said(capfd, "--json").out)
    assert found == {
        "name": "shop", "version": 2, "changed": True, "started": [], "accepted": False,
    }  # fmt: skip
    assert get(port) == (200, "v2")
    head, row = said(capfd, "status").out.splitlines()[1:]
    assert head.split()[:4] == ["SERVICE", "MACHINE", "STATE", "FOR"]
    assert row.split()[:3] == ["shop", "shop-2-1", "healthy"]
    assert f"127.0.0.1:{port}->80" in row
    assert json.loads(said(capfd, "status", "--json").out)["version"] == 2
    rows = said(capfd, "history", "shop").out.splitlines()
    assert [line.split()[:2] for line in rows[1:]] == [["2", "live"], ["1", "replaced"]]
    assert said(capfd, "rollback").out == "shop  version 3 serves\n"
    assert get(port) == (200, "v1")
    assert said(capfd, "rollback", "--to", "2", "--json").out
    assert said(capfd, "ls", "-q").out == "shop\n"
    assert json.loads(said(capfd, "ls", "--json").out)[0]["version"] == 4
    assert "shop" in said(capfd, "ls").out
    assert said(capfd, "rm").out == "shop-4-1\n"
    assert said(capfd, "status").err == "ringzero: nothing is deployed\n"


def test_a_bad_version_is_1_and_the_old_one_serves(folder, capfd):
    said(capfd)
    port = port_of("shop")
    write("v2")
    (folder / "run.toml").write_text(FILE.format(text="v2").replace("serve", "sick"))
    found = said(capfd, code=1)
    assert (
        "ringzero: error: shop: machine shop-2-1: not well: GET /healthz: HTTP/1.1 500" in found.err
    )
    assert "hint: version 1 serves as before" in found.err
    assert get(port) == (200, "v1")
    error = json.loads(said(capfd, "--json", code=1).err)["error"]
    assert error["kind"] == "deploy" and error["context"] == {"version": "3", "live": "1"}


def test_without_waiting(folder, capfd):
    assert said(capfd, "--no-wait").out == "shop  version 1 is rolled out\n"
    until(lambda: json.loads(said(capfd, "status", "--json").out)["version"] == 1)


def test_what_is_wrong(folder, capfd):
    write("v1", "replcas = 2\nmemory = 3\n")
    found = said(capfd, code=2)
    assert "2 things are wrong" in found.err
    assert "run.toml:13: replcas: there is no such key; did you mean 'replicas'?" in found.err
    assert len(json.loads(said(capfd, "--json", code=2).err)["error"]["faults"]) == 2
    found = said(capfd, "-f", "nothing.toml", code=3)
    assert "there is no file nothing.toml" in found.err and "hint:" in found.err
    assert "no deployment is called 'x'" in said(capfd, "status", "x", code=3).err
    assert "nothing is deployed" in said(capfd, "rollback", code=3).err
    assert "--timeout" in said(capfd, "--timeout", "0", code=2).err
    assert "one of them" in said(capfd, "--wait", "--no-wait", code=2).err
    assert "has no command 'statsu'" in said(capfd, "statsu", code=3).err
    write("v1")
    said(capfd)
    assert "has no version to go back to" in said(capfd, "rollback", code=3).err
    assert "has no version 9" in said(capfd, "rollback", "--to", "9", code=3).err


def test_secrets_are_not_shown(folder, capfd):
    for words in (["--dry-run", "--json"], [], ["status", "--json"], ["history", "--json"]):
        found = said(capfd, *words)
        assert "hunter2" not in found.out + found.err
    assert main(["inspect", "shop-1-1"]) == 0
    assert "hunter2" not in capfd.readouterr().out


def test_help_and_completion(capsys):
    with_help = main(["deploy", "--help"])
    out = capsys.readouterr().out
    assert with_help == 0
    for text in ("--dry-run", "rollback", "ringzero deploy status", "docs/deploy.md"):
        assert text in out
    main(["deploy", "rollback", "--help"])
    assert "ringzero deploy rollback shop --to 3" in capsys.readouterr().out
    main(["completion", "bash"])
    code = capsys.readouterr().out
    assert "ringzero deploy ls -q" in code
    assert '*[0-9]" deploy "*)' in code
