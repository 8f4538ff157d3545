"""The program that runs the host's commands in a guest, run by the host's own Linux."""

import fcntl
import os
import platform
import pty
import select
import shutil
import socket
import struct
import subprocess
import sys
import termios
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.image.guest import relay, runner
from ringzero.image.guest.runner import child, memory
from ringzero.vm.guest import protocol

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="a program for x86-64 Linux"
)
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
PATH = "/usr/local/bin:/usr/bin:/bin"
PATIENCE = 20


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """The guest's own programs; the scripts beside the runner tell their words."""
    place = tmp_path_factory.mktemp("tools")
    for folder in ("bin", "sbin"):
        (place / folder).mkdir()
    files = {
        "sbin/runner": runner.build(),
        "sbin/relay": relay.build(),
        "bin/busybox": b'#!/bin/sh\necho "$0" "$@" "TERM=$TERM" "A=$A"\n',
        "bin/applet": b"",
    }
    for name, data in files.items():
        (place / name).write_bytes(data)
        (place / name).chmod(0o755)
    return place


class Slot:
    """The host's side of one slot."""

    def __init__(self, place, tmp_path, **told):
        self.record = tmp_path / "record"
        told = {"tools": "", "last": "", "agent": "", "user": "0", "groups": "0", "directory": "",
                "name": "", "networks": ""} | told  # fmt: skip
        environment = told.pop("environment", {"PATH": PATH})
        self.control, control = socket.socketpair()
        self.input, input_ = socket.socketpair()
        self.stdout, stdout = os.pipe()
        self.stderr, stderr = os.pipe()
        given = [control.fileno(), input_.fileno(), stdout, stderr]
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 50) for fd in given]
        # A shell puts them where they are to be, as `init` does.
        places = " ".join(f"{n}<&{fd} {fd}<&-" for n, fd in zip((3, 4, 5, 6), high, strict=True))
        words = [str(place / "sbin/runner"), str(self.record), *told.values()]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec env -u PWD -u SHLVL -u OLDPWD "$@" {places}', "sh", *words],
            pass_fds=high, env=environment, stdout=subprocess.PIPE,
        )  # fmt: skip
        for fd in (*high, stdout, stderr):
            os.close(fd)
        control.close()
        input_.close()
        self.control.settimeout(PATIENCE)
        self.lines = self.control.makefile("rb")
        self.count = 0
        self.ready = self.lines.readline()

    def begin(self, words, takes_input=False, token=None):
        self.count += 1
        token = token or protocol.make_token()
        line = protocol.run_line(words, takes_input=takes_input)
        self.control.sendall(protocol.complete_line(line, self.count, token=token))
        return token

    def until(self, fd, token):
        data = b""
        while token not in data:
            assert select.select([fd], [], [], PATIENCE)[0], data
            piece = os.read(fd, 65536)
            assert piece, data
            data += piece
        assert data.endswith(token)
        return data.removesuffix(token)

    def finish(self, token):
        out, err = (self.until(fd, token) for fd in (self.stdout, self.stderr))
        answer = protocol.parse(self.lines.readline().rstrip(b"\n"))
        assert answer.number == str(self.count)
        return answer.status, out, err

    def run(self, words):
        return self.finish(self.begin(words))

    def close(self):
        self.lines.close()
        self.control.close()
        self.input.close()
        status = self.process.wait(PATIENCE)
        said = self.process.stdout.read()
        self.process.stdout.close()
        os.close(self.stdout)
        os.close(self.stderr)
        return status, said


@pytest.fixture
def start(tools, tmp_path):
    slots = []

    def begin(**told):
        slots.append(Slot(tools, tmp_path, **told))
        return slots[-1]

    yield begin
    for slot in slots:
        if slot.process.returncode is None:
            slot.close()


@pytest.fixture
def slot(start):
    return start()


@pytest.fixture
def image(start, tools):
    environment = {"PATH": PATH, "A": "image", "B": "b"}
    return start(tools=str(tools), directory="/usr", environment=environment)


def test_it_says_that_it_is_ready(slot):
    assert slot.ready == f"ready 1 {platform.release()}\n".encode()
    slot.control.sendall(b"ping 7\nnonsense\nping 8\n")
    assert [slot.lines.readline() for _ in range(3)] == [b"pong 7\n", b"unknown\n", b"pong 8\n"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["true"], (0, b"", b"")),
        (["sh", "-c", "echo out; echo err >&2; exit 7"], (7, b"out\n", b"err\n")),
        ("echo $((6 * 7))", (0, b"42\n", b"")),
        ("kill -9 $$", (137, b"", b"")),
        (["nothere"], (127, b"", b"ringzero: nothere: not found in the guest\n")),
        ([""], (127, b"", b"ringzero: : not found in the guest\n")),
        (["/none/x"], (127, b"", b"ringzero: /none/x: not found in the guest\n")),
        (["/etc"], (126, b"", b"ringzero: /etc: not a program\n")),
        (["/etc/passwd"], (126, b"", b"ringzero: /etc/passwd: not a program\n")),
        (["x" * 5000], (127, b"", b"ringzero: " + b"x" * 5000 + b": not found in the guest\n")),
        (["wc", "-c"], (0, b"0\n", b"")),
    ],
)
def test_commands_and_their_ends(slot, words, told):
    assert slot.run(words) == told
    assert slot.run(["echo", "next"]) == (0, b"next\n", b"")


def test_a_command_has_a_clean_state(slot):
    status = slot.run(["cat", "/proc/self/status"])[1].decode()
    facts = dict(line.split(":\t", 1) for line in status.splitlines())
    assert {facts[n] for n in ("SigIgn", "SigBlk", "SigCgt")} == {"0" * 16}
    assert facts["Umask"] == "0022"
    stat = slot.run(["cat", "/proc/self/stat"])[1].split()
    assert stat[0] == stat[4] == stat[5], "process, group and session are one"
    assert slot.run("cd /proc/self/fd; echo *")[1] == b"0 1 2 3\n"
    assert slot.run(["env"])[1].decode() == f"PATH={PATH}\nTERM=linux\n"


def test_the_record_says_who_runs(slot):
    token = slot.begin(f"cat {slot.record}; echo $$")
    group, number, again, twice, process = slot.finish(token)[1].split()
    assert (group, number) == (again, twice) == (process, b"1")
    assert slot.record.read_text().split() == ["-", "1", "-", "1"]
    assert len(slot.record.read_bytes()) == memory.NOTE_SIZE


def test_a_script_without_an_interpreter(slot, tmp_path):
    script = tmp_path / "script"
    script.write_text('echo "$0" "$@"; exit 7\n')
    script.chmod(0o755)
    assert slot.run([str(script), "one two"]) == (7, f"{script} one two\n".encode(), b"")
    script.write_bytes(b"\x7fELF")
    assert slot.run([str(script)])[0] in (126, 127)


def test_a_process_that_is_left_behind_keeps_nobody_waiting(slot):
    assert slot.run("(sleep 0.3; echo late) & echo first") == (0, b"first\n", b"")
    time.sleep(0.5)
    assert slot.run("echo second")[1] == b"late\nsecond\n"


# ---- words ------------------------------------------------------------------


def show(slot, words):
    """Return the words of a command as it gets them."""
    status, out, _ = slot.run(["/usr/bin/printf", "%s\\0", *words])
    assert status == 0
    return out.split(b"\0")[:-1]


WORDS = st.lists(
    st.binary(max_size=40).map(lambda b: b.replace(b"\0", b"\xff"))
    | st.text("abc '\"$\\\n\t()&;|<>*?[]~#=%!{}`", max_size=40).map(str.encode),
    min_size=1,
    max_size=8,
)


def test_words_arrive(tools, tmp_path_factory):
    slot = Slot(tools, tmp_path_factory.mktemp("words"))

    @settings(max_examples=150, deadline=None)
    @given(WORDS)
    def check(words):
        assert show(slot, words) == words

    check()
    assert slot.close()[0] == 0


def test_lines_of_any_kind_do_no_harm(tools, tmp_path_factory):
    """What the host never sends: it is a command of its words, or nothing; the next one runs."""
    slot = Slot(tools, tmp_path_factory.mktemp("lines"))
    text = st.text("ab 019'\\$\0\x7f\xff-=/", max_size=60).map(lambda t: t.encode("latin-1"))

    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from([b"", b"ping ", b"pin", b"run", b" ", b"\0"]), text)
    def check(verb, rest):
        slot.control.sendall(verb + rest + b"\nping 77\n")
        while not (said := slot.lines.readline()).endswith(b"pong 77\n"):
            assert said.startswith((b"unknown", b"pong", b"exit")), said
        # A command without a token is over at once; what it said is read by nobody.
        for fd in (slot.stdout, slot.stderr):
            while select.select([fd], [], [], 0)[0]:
                os.read(fd, 65536)

    check()
    assert slot.run(["echo", "well"]) == (0, b"well\n", b"")
    assert slot.close()[0] == 0


def test_long_commands(slot):
    words = ["x" * 100_000, "'" * 30_000, *["y"] * 500]
    assert show(slot, words) == [word.encode() for word in words]
    assert memory.LINE_SIZE >= protocol.MAX_COMMAND + 4096
    line = b"run 2 0 token " + b"z" * memory.LINE_SIZE + b"\nping 3\n"
    slot.control.sendall(line)
    assert [slot.lines.readline() for _ in range(2)] == [b"unknown\n", b"pong 3\n"]
    slot.count = 2
    assert slot.run(["echo", "well"]) == (0, b"well\n", b"")


def test_a_line_in_pieces(slot):
    token = protocol.make_token()
    line = protocol.complete_line(protocol.run_line(["echo", "a b"], takes_input=False), 1,
                                  token=token)  # fmt: skip
    for n in range(len(line)):
        slot.control.sendall(line[n : n + 1])
    slot.count = 1
    assert slot.finish(token) == (0, b"a b\n", b"")


# ---- input ------------------------------------------------------------------


@pytest.mark.parametrize(
    "before", [b"", b"left over\n", b"no end", b"\ngo other\n", b"\n\ngo go\n"]
)
def test_input_begins_behind_its_line(image, before):
    slot = image
    token = slot.begin(["cat"], takes_input=True)
    slot.input.sendall(before + protocol.go_line(token) + b"one\0two")
    slot.input.shutdown(socket.SHUT_WR)
    assert slot.finish(token) == (0, b"one\0two", b"")


def test_much_input_in_small_pieces(image):
    slot = image
    token = slot.begin(["sha1sum"], takes_input=True)
    for byte in protocol.go_line(token):
        slot.input.sendall(bytes((byte,)))
    data = os.urandom(1 << 20)
    slot.input.sendall(data)
    slot.input.shutdown(socket.SHUT_WR)
    known = subprocess.run(["sha1sum"], input=data, capture_output=True, check=True).stdout
    assert slot.finish(token) == (0, known, b"")


def test_input_that_nobody_reads_ends_with_the_command(image):
    slot = image
    for _ in range(3):
        token = slot.begin(["head", "-c", "2"], takes_input=True)
        slot.input.sendall(protocol.go_line(token) + b"two and more\n")
        assert slot.finish(token) == (0, b"tw", b"")
    assert slot.run(["wc", "-c"]) == (0, b"0\n", b"")


# ---- terminals --------------------------------------------------------------


def on_terminal(slot, words, rows=33, columns=77, term="vt220"):
    """Run a command on a terminal; return the status, what it printed, and the terminal's modes."""
    control, terminal = pty.openpty()
    attributes = termios.tcgetattr(terminal)
    attributes[0] = attributes[1] = attributes[3] = 0
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)
    slot.count += 1
    line = protocol.terminal_line(words, rows, columns, term)
    line = protocol.complete_line(line, slot.count, terminal=1)
    slot.control.sendall(line.replace(b"hvc1", os.ttyname(terminal).removeprefix("/dev/").encode()))
    answer = protocol.parse(slot.lines.readline().rstrip(b"\n"))
    modes = bytearray(child.TERMIOS_SIZE)
    fcntl.ioctl(terminal, child.TCGETS, modes)
    out = b""
    while select.select([control], [], [], 0.05)[0]:
        out += os.read(control, 65536)
    size = struct.unpack("4H", fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8)))[:2]
    os.close(control)
    os.close(terminal)
    return answer.status, out, bytes(modes), size


def test_a_terminal(slot):
    script = 'test -t 0 && test -t 2 && tty && echo "$TERM" >/dev/tty; exit 3'
    status, out, _, size = on_terminal(slot, script)
    name, kind, _ = out.split(b"\r\n")
    assert (status, kind, size) == (3, b"vt220", (33, 77))
    assert name.startswith(b"/dev/pts/")
    assert slot.run(["env"])[1].endswith(b"TERM=linux\n")


@pytest.mark.skipif(not shutil.which("busybox"), reason="needs busybox")
def test_a_terminal_is_as_stty_would_have_it(slot):
    _, _, ours, _ = on_terminal(slot, ["true"])
    control, terminal = pty.openpty()
    attributes = termios.tcgetattr(terminal)
    attributes[0] = attributes[1] = attributes[3] = 0
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)
    subprocess.run(["busybox", "stty", "sane"], stdin=terminal, check=True)
    modes = bytearray(child.TERMIOS_SIZE)
    fcntl.ioctl(terminal, child.TCGETS, modes)
    assert ours == modes
    os.close(control)
    os.close(terminal)


# ---- images -----------------------------------------------------------------


def test_options_before_a_command(image):
    words = ["--env=A=1 2", "--env=_C9=", "--env=A=3", "--workdir=/etc", "--"]
    status, out, _ = image.run([*words, "sh", "-c", 'echo "$A|$B|${_C9-none}|$PWD|$TERM"; pwd'])
    assert (status, out) == (0, b"3|b||/etc|linux\n/etc\n")
    # Each command begins with the image's own.
    assert image.run("echo $A$_C9 $PWD")[1] == b"image /usr\n"
    assert image.run(["--env=PATH=/none", "--", "env"])[0] == 127
    assert image.run(["--workdir=/none", "--", "env"]) == (
        126, b"", b"ringzero: /none: no directory in the guest\n"
    )  # fmt: skip
    assert image.run(["--"])[0] == 127
    assert image.run(["--", "--env=A=1"])[0] == 127


@pytest.mark.parametrize(
    "words",
    [
        ["--user=nobody", "--", "id"],
        ["--env=A=1", "--user=0", "--", "id"],
        ["--env=A-B=1", "--", "id"],
        ["--env=9=1", "--", "id"],
        ["--env==", "--", "id"],
        ["--env=A", "--", "id"],
        ["--workdir=etc", "--", "id"],
        ["/sbin/ready"],
        ["/sbin/services"],
        ["/sbin/share", "1"],
    ],
)
def test_what_is_rare_is_done_by_a_script(image, tools, words):
    given = " ".join([str(tools / "bin/busybox"), f"{tools}/sbin/execute", *words])
    assert image.run(words) == (0, f"{given} TERM=linux A=image\n".encode(), b"")


def test_an_image_is_looked_into_with_the_guests_own_programs(image):
    status, out, _ = image.run(["applet", "word"])
    assert status == 0
    assert out.split()[1:] == [b"word", b"TERM=linux", b"A=image"]


@ROOT
def test_the_images_user(start, tools):
    slot = start(tools=str(tools), user="4321", groups="77,5,6", directory="/")
    facts = slot.run(["cat", "/proc/self/status"])[1].decode()
    told = dict(line.split(":\t", 1) for line in facts.splitlines())
    assert told["Uid"].split() == ["4321"] * 4
    assert told["Gid"].split() == ["77"] * 4
    assert told["Groups"].split() == ["5", "6", "77"]


# ---- the end ----------------------------------------------------------------


def test_when_the_host_is_gone_it_ends(start):
    assert start().close() == (0, b"")


@pytest.mark.parametrize("asked", [True, False])
def test_the_first_slot_becomes_the_script_that_switches_off(start, tools, asked):
    slot = start(tools=str(tools), last="halt", agent="yes")
    if asked:
        slot.control.sendall(b"poweroff\n")
    status, said = slot.close()
    assert (status, said.split()[:4]) == (
        0, [str(tools / "bin/busybox").encode(), f"{tools}/init".encode(), b"halt", b"yes"]
    )  # fmt: skip
