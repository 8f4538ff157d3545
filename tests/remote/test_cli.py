"""`ringzero --host`: the same commands, about another host."""

import argparse
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time

import pytest

from ringzero.cli.carrying import places
from ringzero.cli.elsewhere import away_of
from ringzero.cli.parser import Parser
from ringzero.cli.verb import AS_IS, CARRIED, HERE, REFUSED, STREAMS, VERBS, Group
from ringzero.doors.tokens import Tokens
from tests.control.fake import start

LINE = (sys.executable, "-m", "ringzero")
# What arguments are called that name files of a host, by their metavar.
FILES = ("FILE", "PATH", "DIR", "KEY")
# Arguments whose metavar says so, and which name something else.
NO_FILES = {
    # The guest's own.
    ("exec", "workdir"), ("run", "workdir"), ("create", "workdir"), ("run", "init"),
    ("create", "init"), ("cp", "operands"),
    # Names of tags, images and ways that may be files, which `files` looks at.
    ("image build", "name"),
    # Only where it is a socket.
    ("run", "net"), ("create", "net"),
}  # fmt: skip


@pytest.fixture
def ask(way, tmp_path):
    """Run a command line about the other host; return what it printed."""
    environment = os.environ | {
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_RUNTIME_DIR": str(tmp_path / "r"),
        # What is done here by mistake shows.
        "RINGZERO_MACHINES_DIR": str(tmp_path / "mine"),
        "RINGZERO_DATA_DIR": str(tmp_path / "mine"),
        "RINGZERO_TOKEN": way.token or "",
        "ONLY_HERE": "of here",
    }
    (tmp_path / "r").mkdir(mode=0o700)
    flags = ["--host", way.url]
    if way.authorities:
        flags += ["--cacert", str(way.authorities)]

    def ask(*words, code=0, **how):
        line = [*LINE, *flags, *map(str, words)]
        how.setdefault("env", environment)
        done = subprocess.run(line, capture_output=True, timeout=60, **how)
        assert done.returncode == code, (words, done)
        return done.stdout.decode() if code == 0 else done.stderr.decode()

    ask.line, ask.environment = [*LINE, *flags], environment
    yield ask
    assert not (tmp_path / "mine").exists()


def leaves():
    """Yield every command with its name, itself and its group."""
    for name, verb in VERBS:
        if issubclass(verb, Group):
            for command, kind in verb().commands():
                yield f"{name} {command}", kind(), verb()
        else:
            yield name, verb(), verb()


def every_argument(parser):
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for sub in action.choices.values():
                yield from every_argument(sub)
        else:
            yield action


def test_every_command_says_what_becomes_of_it():
    for name, command, group in leaves():
        away = away_of(command, group)
        assert away.how in (AS_IS, STREAMS, CARRIED, HERE, REFUSED), name
        assert bool(away.why) == (away.how == REFUSED), name
        assert not (away.how in (HERE, REFUSED) and (away.actions or away.files)), name


def test_no_file_of_the_caller_is_taken_from_the_other_host():
    """Every argument that is called as files are is one that its command tells of."""
    missing = []
    for name, command, group in leaves():
        away = away_of(command, group)
        if away.how in (HERE, REFUSED):
            continue
        parser = Parser(prog=name)
        command.configure(parser)
        arguments = list(every_argument(parser))
        values = {action.dest: action.default for action in arguments}
        given = {"detach": True, "change": "add", "action": None}
        named = command.files(argparse.Namespace(**values | given))
        for action in arguments:
            told = str(action.metavar or "")
            if any(word in told for word in FILES) and (name, action.dest) not in NO_FILES:
                missing += [(name, action.dest)] if action.dest not in named else []
        assert set(named) <= {action.dest for action in arguments}, name
    assert missing == []


@pytest.mark.parametrize(
    "words, expected",
    [
        (["a", "--x", "b", "c"], [("x", 2, 0), ("one", 0, 0), ("many", 3, 0)]),
        (["--x=b", "a"], [("x", 0, 4), ("one", 1, 0)]),
        (["-fxb", "a"], [("x", 0, 3), ("one", 1, 0)]),
        (["-fx", "b", "a", "-", "c"], [("x", 1, 0), ("one", 2, 0), ("many", 3, 0), ("many", 4, 0)]),
    ],
)
def test_where_values_stand(words, expected):
    parser = argparse.ArgumentParser()
    parser.add_argument("--x", "-x")
    parser.add_argument("-f", action="store_true")
    parser.add_argument("one")
    parser.add_argument("many", nargs="*")
    assert [(at.argument, at.word, at.begin) for at in places(parser, words)] == expected


def test_machines(ask):
    assert json.loads(ask("ps", "-a", "--json")) == []
    start("web")
    assert ask("ps", "-q") == "web\n"
    assert ask("list", "-q") == "web\n"
    assert json.loads(ask("inspect", "web"))["status"] == "running"
    assert ask("pause", "web") == "web\n"
    assert ask("resume", "web") == "web\n"
    assert ask("fork", "web", "-n", "2") == "web-1\nweb-2\n"
    assert ask("port", "web") == ""
    assert ask("rename", "web", "other", code=11).startswith("ringzero: error: machine 'web'")
    assert "no machine called 'nobody'" in ask("stop", "nobody", code=3)
    assert json.loads(ask("stop", "nobody", "--json", code=3))["error"]["kind"] == "not-found"
    assert ask("kill", "web-1") == "web-1\n"
    ask("wait", "web-1", code=137)
    assert ask("stop", "web", "--timeout", "1") == "web\n"
    assert ask("rename", "web", "other") == "other\n"
    assert ask("rm", "other", "web-1") == "other\nweb-1\n"
    assert "said" not in ask("logs", "web-2")
    assert "SUBNET" in ask("network", "ls")
    assert isinstance(json.loads(ask("volume", "ls", "--json")), list)
    assert ask("snapshot", "save", "web-2", "ready") == "ready\n"
    assert ask("snapshot", "ls", "-q") == "ready\n"
    assert ask("snapshot", "revert", "web-2", "ready") == "web-2\n"
    assert ask("snapshot", "rm", "ready")


def test_commands_and_their_streams(ask):
    start("web")
    data = bytes(range(256)) * 1000
    done = subprocess.run(
        [*ask.line, "exec", "-i", "web", "cat"],
        env=ask.environment, input=data, capture_output=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, data), done.stderr
    ask("exec", "web", "--", "sh", "-c", "exit 7", code=7)
    # A variable without a value is the caller's.
    assert ask("exec", "-e", "ONLY_HERE", "web", "sh", "-c", 'echo "$ONLY_HERE"') == "of here\n"
    assert "NOWHERE" in ask("exec", "-e", "NOWHERE", "web", "env", code=2)


def test_what_is_the_callers_is_not_taken_from_there(ask, tmp_path):
    start("web")
    for words in (
        ["share", "web", "add", f"{tmp_path}:/x"],
        ["run", "--disk", "/dev/null", "--", "true"],
        ["run", "-v", "/:/host", "--", "true"],
        ["run", "--root", "/", "--", "true"],
        ["run", "-d", "--kernel", "/dev/null"],
        ["create", "--name", "x", "--initrd", "/dev/null", "--kernel", "/dev/null"],
        ["storage", "create", "fast", "relative"],
        ["disk", "info", "/dev/null"],
        ["image", "keygen"],
    ):
        assert "hint: " in ask(*words, code=2), words
    assert ask("share", "web") == ""
    assert ask("ps", "-q") == "web\n"


def test_hosts_have_names(ask, tmp_path):
    line, env = list(LINE), ask.environment

    def here(*words, code=0, **more):
        done = subprocess.run(
            [*line, *words], env=env | more, capture_output=True, timeout=60, text=True
        )
        assert done.returncode == code, done
        return done.stdout or done.stderr

    url, authorities = ask.line[4], ask.line[6:7]
    flags = ["--cacert", authorities[0]] if authorities else []
    if env["RINGZERO_TOKEN"]:
        (tmp_path / "token").write_text(env["RINGZERO_TOKEN"] + "\n")
        flags += ["--token-file", str(tmp_path / "token")]
        env = env | {"RINGZERO_TOKEN": ""}
    assert here("host", "add", "lab", url, *flags) == "lab\n"
    assert "already" in here("host", "add", "lab", url, code=11)
    start("web")
    assert here("--host", "lab", "ps", "-q") == "web\n"
    assert here("-H", "lab", "ps", "-q") == "web\n"
    assert here("--host=lab", "ps", "-q") == "web\n"
    assert here("ps", "-q", RINGZERO_HOST="lab") == "web\n"
    assert here("--host", "local", "host", "ls", "-q", RINGZERO_HOST="lab") == "lab\n"
    assert "usage" in here("run", "--help", RINGZERO_HOST="lab")
    assert here("host", "rm", "lab") == "lab\n"
    assert "no host is called 'lab'" in here("--host", "lab", "ps", code=3)
    if url.startswith("ssh:"):
        assert here("--host", url, "image", "ls", "--json").startswith("[")
    for wrong in ("ftp://x", "https://a/b", "https://u:p@a", "ssh://-oProxyCommand=x", "unix://x"):
        assert "error" in here("--host", wrong, "ps", code=2)
    assert "needs a value" in here("--host", code=2)


@pytest.mark.parametrize("way", ["ssh"], indirect=True)
def test_a_terminal_is_passed_on(ask):
    start("web")
    leader, follower = pty.openpty()
    os.set_blocking(leader, False)
    process = subprocess.Popen(
        [*ask.line, "console", "web"],
        env=ask.environment | {"TERM": "xterm"},
        stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
    )  # fmt: skip
    os.close(follower)

    def until(text):
        shown, end = b"", time.monotonic() + 30
        while text not in shown:
            assert time.monotonic() < end, shown
            if select.select([leader], [], [], 1)[0]:
                shown += os.read(leader, 65536)

    until(b"detaches")
    os.write(leader, b"typed")
    until(b"<typed>")
    os.write(leader, b"\x1dq")
    assert process.wait(30) == 0
    os.close(leader)


@pytest.mark.parametrize("way", ["ssh"], indirect=True)
def test_files_are_carried(ask, tmp_path):
    start("web")
    ask("snapshot", "save", "web", "ready")
    target = tmp_path / "out here.rzs"
    ask("snapshot", "export", "ready", target)
    assert target.stat().st_size
    ask("snapshot", "rm", "ready")
    assert "ready" in ask("snapshot", "import", target)
    assert ask("snapshot", "ls", "-q") == "ready\n"
    assert "does not exist" in ask("snapshot", "import", tmp_path / "none", code=3)
    # What is wrong with them is told by the other host, which has them.
    (tmp_path / "run.toml").write_text("colour = 1")
    assert "colour" in ask("deploy", "--dry-run", cwd=tmp_path, code=2)
    (tmp_path / "other.toml").write_text("flavour = 1")
    assert "flavour" in ask("deploy", f"--file={tmp_path}/other.toml", code=2)
    layout = tmp_path / "a layout"
    layout.mkdir()
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "9.9.9"}')
    assert "layout" in ask("image", "load", "a layout", cwd=tmp_path, code=5)
    assert "is there already" in ask("snapshot", "export", "ready", tmp_path, code=2)


@pytest.mark.parametrize("way", ["ssh"], indirect=True)
def test_a_host_without_ringzero(ask, way):
    line = [*LINE, "--host", way.url.partition("/ring")[0] + "/no/such/ringzero"]
    for words, code in ((["ps"], 127), (["cp", "/etc/hosts", "web:/tmp"], 10)):
        done = subprocess.run([*line, *words], env=ask.environment, capture_output=True, timeout=60)
        assert done.returncode == code, done
    assert b"has no ringzero" in done.stderr


@pytest.mark.parametrize("way", ["https"], indirect=True)
def test_who_is_not_let_in(ask, tmp_path):
    assert "a token is needed" in ask("ps", code=12, env=ask.environment | {"RINGZERO_TOKEN": "x"})
    tokens = Tokens(tmp_path / "serve")
    reader = ask.environment | {"RINGZERO_TOKEN": tokens.create("ci", reads=True)}
    start("web")
    assert ask("ps", "-q", env=reader) == "web\n"
    assert "may only read" in ask("stop", "web", code=12, env=reader)
    assert "may only read" in ask("exec", "web", "true", code=12, env=reader)
    tokens.remove("laptop")
    assert "a token is needed" in ask("ps", code=12)
    # A certificate of nobody that is known.
    line = [*LINE, *ask.line[3:5], "ps"]
    done = subprocess.run(line, env=ask.environment, capture_output=True, timeout=60, text=True)
    assert done.returncode == 4
    assert "--cacert" in done.stderr
    assert "ssh://" in ask("info", code=2)


@pytest.mark.parametrize("way", ["unix"], indirect=True)
def test_completion_asks_the_other_host(ask, tmp_path):
    start("web")
    python, env = sys.executable, ask.environment
    added = [*LINE, "host", "add", "lab", ask.line[4]]
    assert subprocess.run(added, env=env, capture_output=True, timeout=60).returncode == 0

    def code(shell):
        line = [*LINE, "completion", shell]
        return subprocess.run(line, env=env, capture_output=True, timeout=60, text=True).stdout

    script = f'ringzero() {{ {python} -m ringzero "$@"; }}\n{code("bash")}\n'
    url = ask.line[4].replace(":", " : ")
    for words, at in (
        ("--host l", 2),
        ("--host lab stop w", 4),
        ("--host = lab stop w", 5),
        (f"-H {url} --cacert x : y stop w", 10),
        (f"--host {url} sto", 5),
        ("stop w", 2),
    ):
        script += f"COMP_WORDS=(ringzero {words}) COMP_CWORD={at}; _ringzero; "
        script += 'echo "${COMPREPLY[@]}"\n'
    done = subprocess.run(
        ["bash", "-c", script], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == ["lab", "web", "web", "web", "stop storage", ""], done.stderr
    # What another host calls a machine is no shell's to run, nor is what stands behind --host.
    marks = [tmp_path / "name", tmp_path / "host"]
    script = f"{code('bash')}\nringzero() {{ echo '$(touch {marks[0]})' good; }}\n"
    script += "COMP_WORDS=(ringzero --host lab stop g) COMP_CWORD=4; _ringzero\n"
    script += f"COMP_WORDS=(ringzero --host '$(touch {marks[1]})' stop g) COMP_CWORD=4; _ringzero\n"
    subprocess.run(["bash", "-c", script], env=env, capture_output=True, timeout=60)
    assert not any(mark.exists() for mark in marks)
    if shutil.which("fish") is None:
        return
    script = f"function ringzero; {python} -m ringzero $argv; end\n{code('fish')}\n"
    for words in ("--host l", "--host lab sto", "-H lab stop --ti"):
        script += f"complete -C 'ringzero {words}' | cut -f 1\n"
    line = ["fish", "--no-config", "-c", script]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["lab", "stop", "storage", "--timeout"], done


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_command_for_nobody_ends(closed, tmp_path):
    """What sshd leaves of a command whose caller has gone."""
    environment = os.environ | {
        "RINGZERO_END_WITH_CALLER": "1",
        "RINGZERO_MACHINES_DIR": str(tmp_path / "machines"),
    }
    process = subprocess.Popen(
        [*LINE, "events"],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    getattr(process, closed).close()
    assert process.wait(20) == 129
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()
