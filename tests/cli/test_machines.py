"""The verbs about named machines, with fake machines in processes of their own."""

import json
import os
import pty
import subprocess
import sys
import threading
import time

import pytest

from ringzero.cli.main import main
from ringzero.cli.verb import VERBS
from ringzero.control.host import claims, directory, launch
from ringzero.image import micro
from tests.control import fake
from tests.control.conftest import root  # noqa: F401 - a fixture

VERBS_ABOUT_ONE = ("inspect", "wait", "logs", "console", "pause", "resume", "stop", "kill", "rm")


@pytest.fixture(autouse=True)
def machines(root, monkeypatch, tmp_path):  # noqa: F811
    """Machines are fake, and the default image is two empty files."""
    for name in ("vmlinuz", "initrd"):
        (tmp_path / name).write_bytes(b"")
    image = micro.BootFiles(
        "micro", "0" * 24, tmp_path / "vmlinuz", tmp_path / "initrd", "", ("busybox=1",), 5
    )
    monkeypatch.setattr(micro, "ensure", lambda *_, **__: image)
    monkeypatch.setattr(launch, "PROGRAM", fake.PROGRAM)
    return root


def run(*words):
    return main(list(words))


def test_tour(capfd):
    assert run("run", "-d", "--name", "web") == 0
    assert capfd.readouterr().out == "web\n"
    assert run("ps") == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["NAME", "STATUS"]
    assert lines[1].split()[:2] == ["web", "running"]
    assert run("exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 9") == 9
    assert capfd.readouterr() == ("out\n", "err\n")
    assert run("fork", "web", "--count", "2") == 0
    assert capfd.readouterr().out == "web-1\nweb-2\n"
    assert run("pause", "web", "web-1") == 0
    assert run("ps", "-q", "--status", "paused") == 0
    assert capfd.readouterr().out == "web\nweb-1\nweb\nweb-1\n"
    assert run("resume", "web", "web-1") == 0
    assert run("stop", "web", "web-1", "web-2") == 0
    capfd.readouterr()
    assert run("ps") == 0
    assert len(capfd.readouterr().out.splitlines()) == 1
    assert run("ps", "-a", "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert [f["exit"]["reason"] for f in found] == ["poweroff"] * 3
    assert found[1]["parent"] == "web"
    assert run("rm", "web", "web-1", "web-2") == 0
    assert directory.machines() == []


def test_the_errors_of_a_machine_are_those_of_the_foreground(capfd):
    assert run("run", "-d", "--name", "web", "--append", "bad") == 5
    assert capfd.readouterr().err == "ringzero: error: not a kernel\n  hint: give a kernel\n"
    assert run("run", "-d", "--name", "web", "--append", "panic", "--json") == 125
    error = json.loads(capfd.readouterr().err)["error"]
    assert error["kind"] == "guest"
    assert "no init" in error["message"]
    assert run("run", "-d", "--name", "web") == 11
    assert "taken by a machine that is" in capfd.readouterr().err
    assert run("run", "-d", "--name", "web", "--kernel", "/nonexistent") == 3
    assert run("run", "-d", "--name", "../web") == 2
    assert [m.name for m in directory.machines()] == ["web"]


@pytest.mark.parametrize(
    "flags",
    [
        ["-d", "-t", "--", "vi"],
        ["-d", "--stats"],
        ["--no-wait"],
        ["-d", "--serial", "stdio", "--kernel", "/dev/null"],
    ],
)
def test_flags_that_make_no_sense_together(flags):
    assert run("run", *flags) == 2
    assert directory.machines() == []


@pytest.mark.parametrize("verb", VERBS_ABOUT_ONE)
def test_unknown_and_ended_machines(verb, capfd):
    assert run(verb, "nobody") == 3
    assert "no machine called 'nobody'" in capfd.readouterr().err
    assert run(verb, "no/name") == 2
    claim = claims.create("gone", fake.config())
    claim.release()
    expected = {"inspect": 0, "wait": 137, "logs": 0, "rm": 0, "kill": 11}.get(verb, 11)
    assert run(verb, "gone") == expected


@pytest.mark.parametrize("name", VERBS.names())
def test_every_verb_has_help_and_examples(name, capsys):
    assert run(name, "--help") == 0
    text = capsys.readouterr().out
    assert "ringzero" in text
    if VERBS.get(name).examples:
        assert "examples:" in text


def test_a_command_that_is_the_machine(capfd):
    assert run("run", "-d", "--name", "job", "--", "sh", "-c", "echo made; exit 7") == 0
    assert run("wait", "job") == 7
    assert run("logs", "job") == 0
    assert capfd.readouterr().out == "job\ncommand: its command ended with status 7\nmade\n"
    assert run("logs", "-n", "0", "job") == 0
    assert capfd.readouterr().out == ""


def test_logs_are_followed_across_rotation_to_the_end(machines, capfd):
    run("run", "-d", "--name", "web", "--no-wait")
    path = machines / "web" / "run" / "console.log"
    while not path.exists():
        time.sleep(0.01)
    follower = threading.Thread(target=run, args=("logs", "-f", "web"), daemon=True)
    path.write_bytes(b"one\n")
    follower.start()
    time.sleep(0.3)
    path.rename(path.with_name("console.log.1"))
    path.write_bytes(b"two\n")
    time.sleep(0.3)
    run("kill", "web")
    follower.join(10)
    assert not follower.is_alive()
    assert capfd.readouterr().out.replace("web\n", "") == "one\ntwo\n"


def test_a_named_machine_in_the_foreground(machines):
    """It is run by the command itself, and others see it."""
    environment = os.environ | {"RINGZERO_MACHINES_DIR": str(machines)}
    code = (
        "import sys; from tests.control import fake; from ringzero.cli import main, session\n"
        "from ringzero.image import micro\n"
        "session.run.__kwdefaults__['build'] = fake.Fake\n"
        "from pathlib import Path; null = Path(fake.__file__)\n"
        "micro.ensure = lambda *_, **__: micro.BootFiles('micro', '0', null, null, '', (), 5)\n"
        "sys.exit(main.main(['run', '--name', 'fg', '--', 'sh', '-c', 'sleep 1; exit 4']))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], env=environment)
    while not (directory.machines() and directory.machines()[0].status().value == "running"):
        time.sleep(0.01)
    fg = directory.find("fg")
    assert fg.process().pid == child.pid
    assert fg.summary()["foreground"]
    assert child.wait(10) == 4
    assert (fg.exit().reason, fg.exit().exit_code) == ("command", 4)


def test_console_in_a_terminal(machines):
    run("run", "-d", "--name", "web")
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["RINGZERO_MACHINES_DIR"] = str(machines)
        os.execv(sys.executable, [sys.executable, "-m", "ringzero", "console", "web"])
    seen = b""

    def read_until(text):
        nonlocal seen
        while text not in seen:
            seen += os.read(terminal, 4096)

    read_until(b"terminal")
    os.write(terminal, b"\x03x\x1d\x1d")
    read_until(b"<\x03x\x1d>")
    os.write(terminal, b"\x1dq")
    read_until(b"detached from web, which goes on")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
    assert directory.find("web").status().value == "running"


def test_completion_of_names(capfd):
    claim = claims.create("web", fake.config())
    assert run("completion", "bash") == 0
    code = capfd.readouterr().out
    script = (
        f'ringzero() {{ {sys.executable} -m ringzero "$@"; }}\n{code}\n'
        'COMP_WORDS=(ringzero stop w) COMP_CWORD=2; _ringzero; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout == "web\n", done.stderr
    claim.release()


def test_completion_of_networks(capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_NETWORKS_DIR", str(tmp_path / "networks"))
    assert run("network", "create", "lan") == run("completion", "bash") == 0
    code = capfd.readouterr().out.partition("\n")[2]
    script = f'ringzero() {{ {sys.executable} -m ringzero "$@"; }}\n{code}\n'
    for words in ("network rm l", "run --net l"):
        script += f"COMP_WORDS=(ringzero {words}) COMP_CWORD=3; _ringzero; "
        script += 'echo "${COMPREPLY[@]}"\n'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout == "lan\nlan\n", done.stderr
    assert run("network", "rm", "lan") == 0


def test_stats_of_interfaces(capfd):
    claim = claims.create("web", fake.config(nets=("user", "none")))
    launch.launch(claim, program=fake.PROGRAM)
    assert run("stats", "--once") == 0
    head, row = capfd.readouterr().out.splitlines()
    assert head.split()[-4:] == ["NET", "IN", "NET", "OUT"]
    assert row.split()[-4:] == ["5.9", "KiB", "128", "B"], row
    assert run("stats", "--once", "--net") == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines()[1:]]
    counted = ["2.9", "KiB", "2", "64", "B", "1", "5"]
    assert rows == [["web", "eth0", "user", *counted], ["web", "eth1", "none", *counted]]
    assert run("stats", "--json", "web") == 0
    (facts,) = json.loads(capfd.readouterr().out)
    assert [net["network"] for net in facts["interfaces"]] == ["user", "none"]
    assert facts["interfaces"][0]["received_bytes"] == 3000


HEAVY = ("llvmlite", "ringzero.jit", "ringzero.isa", "ringzero.engine", "ringzero.vm")


@pytest.mark.parametrize("words", [["ps", "-a"], ["inspect", "web"], ["pause", "web"]])
def test_faces_never_load_the_engine(words):
    run("run", "-d", "--name", "web")
    code = (
        "import sys; from ringzero.cli.main import main\n"
        f"assert main({words!r}) == 0\n"
        f"print([m for m in sys.modules if m.startswith({HEAVY!r})], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "[]\n"


def test_create_and_start(capfd):
    assert run("create", "--name", "web", "--memory", "64M", "--", "service", "-x") == 0
    assert capfd.readouterr().out == "web\n"
    assert run("ps") == 0
    assert len(capfd.readouterr().out.splitlines()) == 1
    assert run("inspect", "web") == 0
    facts = json.loads(capfd.readouterr().out)
    assert (facts["status"], facts["command"]) == ("defined", ["service", "-x"])
    assert facts["config"]["memory"] == 64 << 20
    assert run("create", "--name", "web") == 11
    assert run("exec", "web", "true") == 11
    assert "ringzero start web" in capfd.readouterr().err
    assert run("create", "--json") == 0
    assert json.loads(capfd.readouterr().out)["status"] == "defined"
    assert run("create", "nonsense", "ls") == 3
    assert "ringzero create -- nonsense ls" in capfd.readouterr().err
    assert run("rm", "web", "micro-1") == 0


# A command line of each verb that wants a machine: "web" runs, "gone" has ended.
WITH_OUTPUT = [
    ["inspect", "web"],
    ["ps"],
    ["stats", "web"],
    ["logs", "web"],
    ["console", "web"],
    ["events"],
    ["exec", "web", "--", "sh", "-c", "echo out"],
    ["pause", "web"],
    ["resume", "web"],
    ["fork", "web"],
    ["rename", "gone", "went"],
    ["start", "gone"],
    ["restart", "web"],
    ["stop", "web"],
    ["kill", "web"],
    ["wait", "web"],
    ["rm", "-f", "web"],
    ["create"],
    ["run", "-d"],
]


@pytest.mark.parametrize("closed", [False, True], ids=["full", "closed"])
@pytest.mark.parametrize("words", WITH_OUTPUT, ids=lambda words: words[0])
def test_output_that_cannot_be_written_is_exit_4(words, closed, capfd):
    assert run("run", "-d", "--name", "web") == 0
    assert run("run", "-d", "--name", "gone") == run("stop", "gone") == 0
    if words[0] == "resume":
        assert run("pause", "web") == 0
    if words[0] == "wait":
        threading.Timer(0.5, lambda: run("kill", "web")).start()
    capfd.readouterr()
    # In a process of its own, whose standard output is closed or the device that is always full.
    to = '"$@" >&-' if closed else '"$@" >/dev/full'
    done = subprocess.run(
        ["sh", "-c", to, "-", sys.executable, "-m", "tests.cli.faked", *words],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert done.returncode == 4, done.stderr
    assert "cannot write the output: " in done.stderr


def test_a_log_of_nothing_is_nothing(capfd):
    assert run("run", "-d", "--name", "web") == 0
    capfd.readouterr()
    assert run("logs", "web") == 0
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("verb", (*VERBS_ABOUT_ONE, "start", "restart", "stats", "fork", "exec"))
def test_faults_are_json_in_every_verb(verb, capfd):
    words = [verb, "--json", "nobody", *(["true"] if verb == "exec" else [])]
    assert run(*words) == 3
    fault = json.loads(capfd.readouterr().err)["error"]
    assert fault["kind"] == "not-found"
    assert "nobody" in fault["message"]
    # Usage, too.
    assert run(verb, "--json", "--nonsense", "nobody") == 2
    assert json.loads(capfd.readouterr().err)["error"]["kind"] in ("config", "invalid-value")
