"""The first five minutes: other programs' names and flags, faults of a command line, output."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ringzero
from ringzero.cli import codes, habits
from ringzero.cli.command_flags import advise_quoting
from ringzero.cli.main import main
from ringzero.cli.verb import VERBS
from ringzero.cli.verbs.exec import Exec
from ringzero.cli.verbs.run import Run
from ringzero.errors import HostError, RingzeroError

SOURCE = str(Path(ringzero.__file__).parents[1])
DOCS = Path(__file__).parents[2] / "docs"


def tree(kind):
    yield kind
    for child in kind.__subclasses__():
        yield from tree(child)


def program(*words, **options):
    environment = os.environ | {"PYTHONPATH": SOURCE}
    command = [sys.executable, "-m", "ringzero", *words]
    return subprocess.run(
        command, stderr=subprocess.PIPE, text=True, timeout=60, env=environment, **options
    )


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """No machines, no snapshots, no images."""
    for name in ("MACHINES", "DATA", "CACHE"):
        monkeypatch.setenv(f"RINGZERO_{name}_DIR", str(tmp_path / name.lower()))


# ---- exit codes -------------------------------------------------------------


def test_every_exit_code_is_in_the_table_and_the_page():
    page = (DOCS / "run.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    told = {int(code): text for code, text in re.findall(r"^\| (\d+) \| (.*) \|$", page, re.M)}
    assert told == codes.TABLE
    used = {kind.exit_code for kind in tree(RingzeroError)} | {codes.INTERNAL, codes.INTERRUPTED}
    assert used <= set(codes.TABLE)


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--kernel", "/nonexistent/k"],
        ["run", "--disk", "/nonexistent/d,ro", "--", "true"],
        ["disk", "info", "/nonexistent/d"],
        ["disk", "check", "/nonexistent/d"],
        ["disk", "convert", "/nonexistent/d", "/tmp/none"],
        ["disk", "compare", "/nonexistent/d", "/nonexistent/e"],
        ["snapshot", "import", "/nonexistent/s"],
        ["snapshot", "check", "nothing"],
        ["inspect", "nothing"],
        ["image", "rm", "nothing"],
        ["run", "nothing"],
        ["run", "--image", "nothing"],
        ["nothing"],
    ],
    ids=" ".join,
)
def test_what_does_not_exist_is_3(nobody, words, capfd):
    assert main(words) == 3
    assert "hint:" in capfd.readouterr().err


# ---- JSON -------------------------------------------------------------------


@pytest.mark.parametrize("name", [*VERBS.names(), "nonsense"])
def test_faults_of_the_command_line_are_json_where_that_is_wanted(nobody, name, capfd):
    assert main([name, "--json", "--nonsense"]) in (2, 3)
    out, err = capfd.readouterr()
    told = json.loads(err)["error"]
    assert told["message"]
    assert told["hint"]
    assert out == ""


def test_internal_faults_too(monkeypatch, capfd):
    monkeypatch.delenv("RINGZERO_DEBUG", raising=False)
    monkeypatch.setattr(VERBS.get("version"), "execute", lambda *_: 1 // 0)
    assert main(["version", "--json"]) == 70
    assert json.loads(capfd.readouterr().err)["error"]["kind"] == "internal"


def test_json_behind_the_command_is_the_commands(nobody, capfd):
    assert main(["exec", "web", "ls", "--json"]) == 3
    assert capfd.readouterr().err.startswith("ringzero: error:")


# ---- output that cannot be written ------------------------------------------

SILENT = {"run", "exec", "start", "stop", "restart", "kill", "pause", "resume", "rm", "rename"}
SILENT |= {
    "console",
    "create",
    "logs",
    "wait",
    "fork",
    "inspect",
    "events",
    "port",
    "share",
    "cp",
    "gdb",
    "pull",
    "push",
    "ssh",
}
PRINTING = {
    **{name: [name] for name in VERBS.names() if name not in SILENT},
    "completion": ["completion", "bash"],
    "deploy": ["deploy", "ls", "--json"],
    "disk": ["disk", "info", "DISK"],
    "engine": ["engine", "status"],
    "firecracker": ["firecracker", "--version"],
    "host": ["host", "ls"],
    "image": ["image", "ls", "--json"],
    "network": ["network", "ls"],
    "pool": ["pool", "status", "--json"],
    "serve": ["serve", "openapi"],
    "snapshot": ["snapshot", "ls", "--json"],
    "storage": ["storage", "ls", "--json"],
    "volume": ["volume", "ls", "--json"],
    "stats": ["stats", "--json"],
    "template": ["template", "ls", "--json"],
    **{f"{name} --help": [name, "--help"] for name in VERBS.names()},
    "--version": ["--version"],
    "": [],
}


@pytest.mark.parametrize("words", PRINTING.values(), ids=PRINTING)
def test_output_that_cannot_be_written_is_4(nobody, words, tmp_path):
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(4096))
    words = [str(disk) if word == "DISK" else word for word in words]
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a descriptor is needed
        done = program(*words, stdout=full)
    assert done.returncode == 4
    assert "cannot write the output: No space left" in done.stderr
    assert done.stderr.startswith('{"error"' if "--json" in words else "ringzero: error: ")
    reader, writer = os.pipe()
    os.close(reader)
    done = program(*words, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (4, "")


@pytest.mark.parametrize("words", [["ps"], ["ps", "--json"], ["--help"], ["info"]], ids=" ".join)
def test_closed_output_is_4(nobody, words):
    command = [sys.executable, "-m", "ringzero", *words]
    environment = os.environ | {"PYTHONPATH": SOURCE}
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "-", *command], capture_output=True, timeout=60, env=environment
    )
    assert done.returncode == 4
    assert b"cannot write the output" in done.stderr


def test_nobody_to_tell(nobody):
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a descriptor is needed
        environment = os.environ | {"PYTHONPATH": SOURCE}
        command = [sys.executable, "-m", "ringzero", "inspect", "nobody"]
        done = subprocess.run(command, stdout=full, stderr=full, timeout=60, env=environment)
    assert done.returncode == 3


# ---- words ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "own", "command"),
    [
        ("web ls -l", "web", "ls -l"),
        ("web -- ls -l", "web", "ls -l"),
        ("-it web sh", "-it web", "sh"),
        ("-i -t web -- sh", "-i -t web", "sh"),
        ("web -it -- sh", "web -it", "sh"),
        ("web -i cat", "web -i", "cat"),
        ("web grep -- -x file", "web", "grep -- -x file"),
        ("web sh -c true --json", "web", "sh -c true --json"),
        ("--json web env", "--json web", "env"),
        ("web -- -- x", "web", "-- x"),
        ("-e A=b -w /tmp -u nobody web env", "-e A=b -w /tmp -u nobody web", "env"),
        ("--env=A=b web env", "--env=A=b web", "env"),
        ("-iu root web id", "-iu root web", "id"),
    ],
)
def test_where_the_command_of_exec_begins(words, own, command):
    assert Exec().split(words.split()) == (own.split(), command.split())


def test_exec_without_a_command():
    assert Exec().split(["web"]) == (["web"], None)
    assert Exec().split([]) == ([], None)
    assert Exec().split(["--help"]) == (["--help"], None)


@pytest.mark.parametrize(
    ("words", "own", "command"),
    [
        ("", "", None),
        ("micro", "--image micro", None),
        ("--memory 1G micro --cpus 2", "--memory 1G --cpus 2 --image micro", None),
        ("-it full -- sh -c x", "-it --image full", "sh -c x"),
        ("-m 1G -- micro", "-m 1G", "micro"),
        ("--memory=1G full", "--memory=1G --image full", None),
    ],
)
def test_a_word_of_run_is_an_image(words, own, command):
    given = None if command is None else command.split()
    assert Run().split(words.split()) == (own.split(), given)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["uname", "-a"], ["no image is called 'uname'", "ringzero run -- uname -a"]),
        (["-m", "1G", "ls", "-l"], ["ringzero run -m 1G -- ls -l"]),
        (["sh", "-c", "a b"], ["ringzero run -- sh -c 'a b'"]),
        (["micro", "uname", "-a"], ["ringzero run micro -- uname -a"]),
        (["micro", "-m", "1G", "sh"], ["'sh' stands", "ringzero run micro -m 1G -- sh"]),
        (["--rm", "-it", "micro", "sh"], ["ringzero run --rm -it micro -- sh"]),
        (["-it", "alpine", "sh"], ["'sh' stands", "ringzero run -it alpine -- sh"]),
        (["x.org/tool:1", "a"], ["ringzero run x.org/tool:1 -- a"]),
        (["a.qcow2"], ["a disk is attached: --disk a.qcow2"]),
        (["micro", "--memry", "512M"], ["no flag --memry; did you mean --memory?"]),
        (["--memry", "512M", "micro"], ["no flag --memry; did you mean --memory?"]),
        (["-itx", "--", "true"], ["no flag -x"]),
        (["-m", "512", "-p", "x"], ["was 512M meant? --memory 512M", "no ports in 'x'"]),
    ],
)
def test_a_command_without_its_dashes(machines, words, told, capfd):
    assert main(["run", *words]) in (2, 3)
    err = capfd.readouterr().err
    for text in told:
        assert text in err
    assert not machines


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """References of which a registry is asked, which is not there; nothing is in the store."""
    found = []

    def pull(reference, **_):
        found.append(reference.familiar)
        raise HostError("cannot reach the registry", hint="is there a network?")

    monkeypatch.setattr("ringzero.image.oci.pull.pull", pull)
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(tmp_path))
    return found


def test_a_command_alone_is_told_before_a_registry_is_asked(machines, asked, capfd):
    assert main(["run", "uname"]) == 3
    err = capfd.readouterr().err
    assert "no image is called 'uname' here; it is a command" in err
    assert "ringzero run -- uname" in err and "ringzero pull uname" in err
    assert not asked and not machines


@pytest.mark.parametrize("word", ["nothing-of-this-name", "uname:latest", "x.org/uname"])
def test_another_word_is_asked_of_a_registry_which_is_told_first(machines, asked, word, capfd):
    assert main(["run", word]) != 0
    err = capfd.readouterr().err
    assert len(asked) == 1
    bare = word.isidentifier() or "-" in word
    first = "no image is called 'nothing-of-this-name' here, a registry is asked for one"
    assert (first in err.splitlines()[0]) == bare
    assert "cannot reach the registry" in err


def test_programs_hear_of_the_fault_alone(machines, asked, capfd):
    assert main(["run", "--json", "nothing-of-this-name"]) != 0
    assert json.loads(capfd.readouterr().err)["error"]["message"]


def test_an_image_by_its_word(machines):
    assert main(["run", "micro", "--cpus", "2", "--", "true"]) == 0
    assert machines[0].config.cpus == 2
    assert machines[0].config.name == "micro"


@pytest.mark.parametrize(
    "flag",
    [
        "-P",
        "--cdrom x.iso",
        "--smp 2",
        "--network none",
        "--privileged",
    ],
)
def test_flags_of_other_programs_say_what_to_write_instead(machines, flag, capfd):
    assert main(["run", *flag.split(), "micro"]) == 2
    err = capfd.readouterr().err
    name = flag.split()[0].partition("=")[0]
    assert f"error: {name}: " in err
    assert not machines


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        ("logs --tail 5 web", 2, "--tail: it is called `-n N`"),
        ("logs --raww web", 2, "no flag --raww; did you mean --raw?"),
        ("stop -t 3 web", 2, "-t: it is called `--timeout S`"),
        ("stop --all", 2, "`ringzero stop $(ringzero ps -q)`"),
        ("stop --tiemout 3 web", 2, "no flag --tiemout; did you mean --timeout?"),
        ("ps --filter status=running", 2, "`--status STATE`"),
        ("disk convert --frce a b", 2, "`ringzero disk convert --help`"),
        ("disk create --size 1G a", 2, "no flag --size\n"),
        ("disk ls", 3, "`ringzero disk` has no command 'ls'"),
        ("disk covnert", 3, "did you mean 'convert'?"),
        ("snapshot create", 2, "`ringzero snapshot save --help`"),
        ("image lst", 3, "did you mean 'ls'?"),
        ("port web 80", 3, "`ringzero port` has no command '80'"),
        ("-v", 2, "`ringzero --version`"),
        ("comit web", 3, "`ringzero snapshot save NAME SNAPSHOT`"),
    ],
)
def test_habits_of_other_commands(nobody, line, code, told, capfd):
    assert main(line.split()) == code
    assert told in capfd.readouterr().err


def test_commands_of_groups_by_other_names(nobody, capfd):
    for line in ("image list", "snapshot list", "network list"):
        assert main([*line.split(), "--json"]) == 0
        assert json.loads(capfd.readouterr().out) == []


def test_a_line_of_the_shell_in_one_word(machines, capfd):
    def status(words, code):
        advise_quoting(words, code)
        return capfd.readouterr().err

    assert "-- sh -c 'ls -l'" in status(["ls -l"], 127)
    assert status(["ls -l"], 1) == status(["ls"], 127) == status(["a b", "c"], 127) == ""


def test_rm_without_a_name_is_what_happens_anyway(machines):
    assert main(["run", "--rm", "micro", "--", "true"]) == 0


def test_several_of_them_are_told_together(capfd):
    assert main(["run", "-P", "--smp", "2", "nginx"]) == 2
    err = capfd.readouterr().err
    assert "  - -P: " in err
    assert "  - --smp: " in err


def test_aliases(nobody, capfd):
    for words in (["list"], ["ls"]):
        assert main(words) == 0
        assert capfd.readouterr().out.startswith("NAME")
    assert main(["images", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == []
    for name in ("shutdown", "reboot", "suspend", "attach", "undefine", "remove"):
        assert main([name, "web"]) == 3
        assert "no machine called 'web'" in capfd.readouterr().err
    for ours in habits.ALIASES.values():
        assert ours[0] in VERBS
    assert not set(habits.ALIASES) & set(VERBS.names())
    assert not set(habits.ADVICE) & set(VERBS.names())


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("destroy", "`ringzero kill NAME` cuts the power"),
        ("runn", "did you mean 'run'?"),
        ("stpo", "did you mean 'stop'?"),
        ("imgaes", "did you mean 'images'?"),
        ("xyzzy", "known: "),
    ],
)
def test_what_may_have_been_meant(word, told, capfd):
    assert main([word]) == 3
    assert told in capfd.readouterr().err


def test_help_and_version(capfd):
    assert main(["help", "stop"]) == 0
    assert "--timeout" in capfd.readouterr().out
    assert main(["help"]) == 0
    assert "commands:" in capfd.readouterr().out
    assert main(["version"]) == 0
    assert capfd.readouterr().out == f"ringzero {ringzero.__version__}\n"
    assert main(["version", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["ringzero"] == ringzero.__version__


# ---- faults -----------------------------------------------------------------


def test_all_faults_of_a_command_line_are_told_together(machines, capfd):
    words = ["--memory", "abc", "--cpus", "0", "--disk", "/nonexistent", "--timeout", "-1"]
    assert main(["run", *words, "--no-wait", "--engine", "kvm,", "--nonsense", "--", "true"]) == 2
    err = capfd.readouterr().err
    for text in ("abc", "CPUs", "/nonexistent", "timeout", "--no-wait", "--nonsense"):
        assert text in err
    assert main(["run", "--cpus", "many", "--timeout", "soon", "--memory", "512"]) == 2
    err = capfd.readouterr().err
    for text in ("many", "soon", "512 bytes"):
        assert text in err
    assert not machines


def test_environment_directory_and_user_of_a_command(machines, monkeypatch, capfd):
    monkeypatch.setenv("HERE", "from the host")
    words = ["-e", "A=b c", "--env", "HERE", "-w", "/", "--", "sh", "-c", "echo $A, $HERE, $PWD"]
    assert main(["run", *words]) == 0
    assert capfd.readouterr().out == "b c, from the host, /\n"
    for wrong in (["-e", "=x"], ["-e", "NO_SUCH_THING"], ["-u", "-x"], ["--kernel", "/dev/null"]):
        assert main(["run", *wrong, "-w", "/", "--", "true"]) == 2
    assert len(machines) == 1


def test_memory_without_a_unit(machines, capfd):
    assert main(["run", "--memory", "512", "--", "true"]) == 2
    assert "was 512M meant? --memory 512M" in capfd.readouterr().err
    assert main(["run", "--memory", str(64 << 20), "--", "true"]) == 0


def test_no_home(monkeypatch):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": SOURCE}
    code = (
        "import os, pwd, sys\n"
        "def gone(*_): raise KeyError\n"
        "pwd.getpwuid = gone\n"
        "from ringzero.cli.main import main; sys.exit(main(['ps']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "no home directory" in done.stderr
    assert "set HOME" in done.stderr
