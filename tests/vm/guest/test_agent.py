import shlex
import subprocess
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.errors import GuestError, InvalidValueError
from ringzero.vm.guest.agent import Agent
from ringzero.vm.guest.protocol import CONTROL, PORTS, SIGNAL, STDERR, STDIN, STDOUT, TTY, quote


class Recorder:
    """Channels that keep what was sent."""

    def __init__(self, slots=0):
        self.sent = []
        self.slots = slots

    def send(self, port, data):
        self.sent.append((port, data))

    def connect(self, port, connected):
        self.sent.append((port, connected))

    def backlog(self, port):
        return 7

    def hold(self, port, held):
        self.sent.append((port, ("hold", held)))

    def extend(self, slot):
        self.sent.append(("extend", slot))
        return slot <= self.slots

    def resize(self, port, rows, columns):
        self.sent.append((port, (rows, columns)))

    @property
    def control(self):
        lines = [data.decode() for port, data in self.sent if port == CONTROL]
        return [line.split(maxsplit=4) for line in lines]


@pytest.fixture
def channels():
    return Recorder()


@pytest.fixture
def agent(channels):
    agent = Agent(channels)
    agent.receive(CONTROL, b"ready 1 6.1.0-test\n")
    return agent


def test_requests_wait_until_the_guest_is_ready(channels):
    agent = Agent(channels)
    command = agent.run(["true"])
    assert channels.sent == []
    assert not agent.wait_ready(0)
    agent.receive(CONTROL, b"rea")
    agent.receive(CONTROL, b"dy 1 6.1.0\n")
    assert agent.release == "6.1.0"
    assert channels.control[0][:3] == ["run", "1", "0"]
    assert command.wait(0) is None


@settings(deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=200), st.data())
def test_outputs_are_exact_whatever_the_order(out, err, data):
    channels = Recorder()
    agent = Agent(channels)
    agent.receive(CONTROL, b"ready 1 x\n")
    got = {STDOUT: bytearray(), STDERR: bytearray()}
    command = agent.run(["x"], on_stdout=got[STDOUT].extend, on_stderr=got[STDERR].extend)
    token = channels.control[0][3].encode()
    streams = {STDOUT: out + token, STDERR: err + token, CONTROL: b"exit 1 42\n"}
    while any(streams.values()):
        port = data.draw(st.sampled_from([p for p, left in streams.items() if left]))
        count = data.draw(st.integers(1, len(streams[port])))
        assert command.status is None
        agent.receive(port, streams[port][:count])
        streams[port] = streams[port][count:]
    assert command.wait(0) == 42
    assert (bytes(got[STDOUT]), bytes(got[STDERR])) == (out, err)


def test_output_is_passed_on_at_once_but_for_what_may_be_the_token(agent, channels):
    got = bytearray()
    agent.run(["x"], on_stdout=got.extend)
    token = channels.control[0][3].encode()
    agent.receive(STDOUT, b"prompt> ")
    assert got == b"prompt> "
    agent.receive(STDOUT, token[:5])
    agent.receive(STDOUT, b"!")
    assert got == b"prompt> " + token[:5] + b"!"


def test_input_comes_between_go_and_disconnect(agent, channels):
    command = agent.run(["cat"], takes_input=True)
    token = channels.control[0][3].encode()
    command.write(b"abc")
    assert command.backlog == 7
    command.close_input()
    command.close_input()
    command.write(b"too late")
    about_input = [data for port, data in channels.sent if port == STDIN]
    assert about_input == [True, b"\ngo " + token + b"\n", b"abc", False]


def test_input_given_before_the_guest_is_ready(channels):
    agent = Agent(channels)
    command = agent.run(["cat"], takes_input=True)
    command.write(b"early")
    command.close_input()
    agent.receive(CONTROL, b"ready 1 x\n")
    assert [d for p, d in channels.sent if p == STDIN][2:] == [b"early", False]


def test_input_is_disconnected_when_the_command_ends_first(agent, channels):
    agent.run(["true"], takes_input=True)
    token = channels.control[0][3].encode()
    agent.receive(STDOUT, token)
    agent.receive(STDERR, token)
    agent.receive(CONTROL, b"exit 1 0\n")
    assert channels.sent[-1] == (STDIN, False)


def test_commands_run_one_after_the_other(agent, channels):
    first, second = agent.run(["one"]), agent.run(["two"])
    assert len(channels.control) == 1
    token = channels.control[0][3].encode()
    for port in (STDOUT, STDERR):
        agent.receive(port, token + b"left behind")
    agent.receive(CONTROL, b"exit 1 0\n")
    assert first.wait(0) == 0
    assert second.status is None
    assert [words[1] for words in channels.control] == ["1", "2"]
    assert channels.control[1][3] != channels.control[0][3]


def test_commands_side_by_side():
    """A second slot is asked for once, and its command runs while the first one does."""
    channels = Recorder(slots=2)
    agent = Agent(channels)
    agent.receive(CONTROL, b"ready 1 x\n")
    got = []
    first = agent.run(["one"])
    second, third = (agent.run([n], on_stdout=got.append, takes_input=True) for n in ("two", "3"))
    asked = [sent for sent in channels.sent if sent[0] in ("extend", SIGNAL)]
    assert asked == [("extend", 1), (SIGNAL, b"slot 1\n")]
    agent.receive(f"{CONTROL}.1", b"ready 1 x\n")
    words = next(data.split() for port, data in channels.sent if port == f"{CONTROL}.1")
    assert words[:3] == [b"run", b"2", b"1"]
    assert channels.sent[-1] == (SIGNAL, b"slot 2\n")
    second.write(b"in")
    assert channels.sent[-1] == (f"{STDIN}.1", b"in")
    # What belongs to another slot's command changes nothing.
    agent.receive(STDOUT, b"of the first")
    agent.receive(CONTROL, b"exit 2 0\n")
    for base in (STDOUT, STDERR):
        agent.receive(f"{base}.1", b"out" + words[3])
    agent.receive(f"{CONTROL}.1", b"exit 2 6\n")
    assert (second.status, got, agent.faults) == (6, [b"out"], 1)
    assert (first.status, third.status) == (None, None)
    # The slot that is free takes the next one.
    assert [d.split()[1] for p, d in channels.sent if p == f"{CONTROL}.1"] == [b"2", b"3"]


def test_a_terminal_of_its_own():
    channels = Recorder(slots=5)
    agent = Agent(channels)
    agent.receive(CONTROL, b"ready 1 x\n")
    got = []
    command = agent.terminal(["vi"], rows=30, columns=90, on_output=got.append)
    command.write(b"early")
    agent.receive(f"{CONTROL}.1", b"ready 1 x\n")
    assert channels.sent[-3:] == [
        (f"{TTY}.1", (30, 90)),
        (f"{CONTROL}.1", b"terminal 1 hvc1 30 90 linux vi\n"),
        (f"{TTY}.1", b"early"),
    ]
    command.resize(50, 120)
    assert channels.sent[-1] == (f"{TTY}.1", (50, 120))
    command.hold_output(True)
    assert channels.sent[-1] == (f"{TTY}.1", ("hold", True))
    agent.receive(f"{TTY}.1", b"screen")
    agent.receive(f"{CONTROL}.1", b"exit 1 0\n")
    assert (got, command.status) == ([b"screen"], 0)
    assert channels.sent[-1] == (f"{TTY}.1", ("hold", False))


def test_a_copy_ends_the_commands_of_the_original_but_for_those_that_it_keeps():
    channels = Recorder(slots=5)
    agent = Agent(channels)
    agent.receive(CONTROL, b"ready 1 x\n")
    agent.run(["server"], kept=True)
    agent.run(["session"])
    agent.receive(f"{CONTROL}.1", b"ready 1 x\n")
    copy = Agent(Recorder(slots=5))
    copy.restore(agent.save())
    assert copy.save() == agent.save()
    assert copy.channels.sent == [(SIGNAL, b"KILL 2\n")]
    (kept,) = copy.kept
    out, ends = [], []
    kept.redirect(on_stdout=out.append, on_exit=ends.append)
    token = channels.control[0][3].encode()
    copy.receive(STDOUT, b"served" + token)
    copy.receive(STDERR, token)
    copy.receive(CONTROL, b"exit 1 0\n")
    assert (out, ends) == ([b"served"], [0])
    copy.close()


def test_terminal(agent, channels):
    done = []
    agent.terminal(rows=40, columns=100, term="xterm;reboot", on_exit=done.append)
    assert channels.sent[0][1] == b"terminal 1 hvc0 40 100 linux sh -l\n"
    agent.receive(CONTROL, b"exit 1 3\n")
    assert done == [3]


def test_signals(agent, channels):
    command = agent.run(["sleep", "9"])
    command.signal("TERM")
    assert channels.sent[-1] == (SIGNAL, b"TERM 1\n")
    with pytest.raises(InvalidValueError):
        command.signal("TERM; reboot")


def test_a_guest_that_takes_the_time_late_is_told_again(agent, channels, monkeypatch):
    now, told = [100.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    agent.listens = lambda: True
    agent.await_adoption(lambda: told.append(now[0]))
    agent.run(["date"])
    for late in (3, 1, 0.01):
        assert not any(data.startswith(b"run") for _, data in channels.sent if data is not True)
        now[0] += late
        agent.receive(CONTROL, b"adopted\n")
    assert told == [103.0, 104.0]
    assert channels.sent[-1][1].startswith(b"run 1 ")


def test_a_guest_that_is_always_late_runs_commands(agent, channels, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    agent.listens = lambda: True
    agent.await_adoption(lambda: None)
    agent.run(["date"])
    for _ in range(6):
        now[0] += 9
        agent.receive(CONTROL, b"adopted\n")
    assert channels.sent[-1][1].startswith(b"run 1 ")


def test_whether_the_guest_has_taken_its_identity_can_be_waited_for(agent, channels):
    assert agent.idle
    agent.listens = lambda: True
    assert agent.wait_adopted(0)
    agent.await_adoption()
    assert not agent.wait_adopted(0)
    agent.run(["date"])
    assert not agent.idle
    threading.Timer(0.05, agent.receive, [CONTROL, b"adopted\n"]).start()
    assert agent.wait_adopted(10)
    assert channels.sent[-1][1].startswith(b"run 1 ")
    assert not agent.idle


def test_a_signal_waits_for_its_command(agent, channels):
    first = agent.run(["sleep", "9"])
    second = agent.run(["true"])
    assert first.slot == 0
    assert second.slot == -1
    second.signal("TERM")
    assert not any(data == b"TERM 2\n" for _, data in channels.sent)
    agent.receive(CONTROL, b"exit 1 0\n")
    agent.receive(STDOUT, first._token)
    agent.receive(STDERR, first._token)
    assert channels.sent[-2][0] == CONTROL
    assert channels.sent[-1] == (SIGNAL, b"TERM 2\n")


def test_a_guest_that_goes_away(agent):
    active, waiting = agent.run(["x"]), agent.run(["y"])
    agent.close()
    for command in (active, waiting, agent.run(["z"])):
        with pytest.raises(GuestError):
            command.wait(0)
    with pytest.raises(GuestError):
        agent.wait_ready(0)


@pytest.mark.parametrize(
    "line",
    [
        b"ready 1 again\n",
        b"exit 1 99999999\n",
        b"exit 1 -1\n",
        b"exit 7 0\n",
        b"exit 1 \xd9\xa3\n",
        b"exit\n",
        b"\xff\xfe\0\n",
        b"x" * 5000,
        b"unknown verb\n",
    ],
)
def test_senseless_lines_are_counted_and_ignored(agent, line):
    command = agent.run(["x"])
    agent.receive(CONTROL, line)
    assert agent.faults == 1
    assert command.status is None


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*PORTS, f"{CONTROL}.1", f"{STDOUT}.1", f"{TTY}.1", f"{TTY}.9", "?"]),
            st.binary(),
        )
    )
)
def test_a_hostile_guest_breaks_nothing(messages):
    agent = Agent(Recorder(slots=3))
    agent.receive(CONTROL, b"ready 1 x\n")
    agent.run(["x"], takes_input=True)
    agent.terminal(on_output=lambda data: None)
    for port, data in messages:
        agent.receive(port, data)


def test_commands_that_cannot_be_sent(agent):
    with pytest.raises(InvalidValueError, match="too long"):
        agent.run(["x" * 300_000])
    with pytest.raises(InvalidValueError, match="NUL"):
        agent.run(["a\0b"])
    with pytest.raises(InvalidValueError, match="empty"):
        agent.run([])


@given(st.lists(st.binary().filter(lambda b: b"\0" not in b), min_size=1, max_size=4))
@settings(deadline=None, max_examples=50)
def test_quoting_is_read_back_by_a_shell(words):
    line = " ".join(map(quote, words))
    assert line.isascii()
    assert line.isprintable()
    # bash and busybox both know $'...'; what is in the image is busybox.
    script = f"set -- {line}; for w; do printf '%s\\0' \"$w\"; done"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, timeout=20)
    assert done.stdout == b"".join(word + b"\0" for word in words)


def test_plain_words_are_sent_as_a_person_writes_them():
    assert quote("uname") == "uname"
    assert shlex.split(quote("it's")) == ["it's"]
    assert quote("é\n") == "$'\\303\\251\\012'"


def test_commands_wait_for_the_identity_that_a_booting_guest_is_given(channels):
    agent = Agent(channels)
    listens = False
    agent.listens = lambda: listens
    agent.await_adoption()
    agent.run(["true"])
    restored = Agent(channels)
    restored.listens = lambda: listens
    restored.restore(agent.save())
    restored.run(["true"])
    listens = True
    for each in (agent, restored):
        each.receive(CONTROL, b"ready 1 6.1.0-test\n")
        assert not channels.control
        each.receive(CONTROL, b"adopted\n")
        assert channels.control
        channels.sent.clear()


def test_an_identity_that_was_taken_before_the_guest_is_ready(channels):
    agent = Agent(channels)
    agent.await_adoption()
    agent.listens = lambda: True
    agent.run(["true"])
    agent.receive(CONTROL, b"adopted\nready 1 6.1.0-test\n")
    assert channels.control


def test_a_guest_that_knows_nothing_of_identities_is_not_waited_for(channels):
    agent = Agent(channels)
    agent.await_adoption()
    agent.run(["true"])
    agent.receive(CONTROL, b"ready 1 6.1.0-test\n")
    assert channels.control
    agent.await_adoption()
    agent.run(["true"])
    agent.receive(CONTROL, b"exit 1 0\n")
    assert agent.save().adoptions == 0


def test_a_guest_that_says_why_it_takes_no_commands(channels):
    agent = Agent(channels)
    command = agent.run(["true"])
    agent.receive(CONTROL, b"fault a shared folder cannot be mounted: no such device\n")
    with pytest.raises(GuestError, match="before the guest took commands: a shared folder cannot"):
        agent.wait_ready(1)
    with pytest.raises(GuestError, match="no such device"):
        command.wait(1)
    assert agent.fault.exit_code == 125


def test_a_guest_that_takes_commands_has_no_fault_any_more(channels):
    agent = Agent(channels)
    agent.receive(CONTROL, b"ready 1 6.1.0-test\nfault late\nfault\n")
    assert agent.fault is None
    assert agent.faults == 2
