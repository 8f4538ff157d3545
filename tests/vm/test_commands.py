"""Commands in a real guest by `Machine.run`, and machines that fail or are forgotten."""

import gc
import pickle
import threading
import time

import pytest

from ringzero import CommandError, GuestError, Machine, TimeoutExpiredError
from ringzero.image import micro

pytestmark = [pytest.mark.boot, pytest.mark.engine]


@pytest.fixture(scope="module")
def vm():
    micro.ensure()
    with Machine(image="micro", memory="256M", engine="soft") as machine:
        machine.run("true", timeout=120)
        yield machine


def test_text_in_and_text_out(vm):
    assert vm.run("cat", input="grüße", timeout=60).stdout == "grüße".encode()
    assert vm.run("cat", input="grüße", text=True, timeout=60).stdout == "grüße"


def test_environment_directory_and_user(vm):
    where = vm.run('echo "$PWD $COLOR"', cwd="/tmp", env={"COLOR": "dark blue"}, text=True)
    assert where.stdout == "/tmp dark blue\n"
    who = vm.run(["sh", "-c", 'id -un; echo "$A"'], user="nobody", env={"A": "b"}, text=True)
    assert who.stdout == "nobody\nb\n"
    assert vm.run("true", cwd="/nowhere", timeout=60).exit_code == 126


def test_a_root_that_is_mounted_read_only_is_no_end(vm):
    """The init's own files are elsewhere: it is the first process, whose end is a panic."""
    (copy,) = vm.fork(start=True)
    with copy:
        for command, code in (("mount -o remount,ro /", 0), ("touch /x", 1), ("true", 0)):
            assert copy.run(command, timeout=60).exit_code == code
        with pytest.raises(TimeoutExpiredError):
            copy.run(["sleep", "31"], timeout=0.5)
        assert copy.run("while ps | grep -q '[s]leep 31'; do :; done", timeout=60).exit_code == 0


def test_check(vm):
    with pytest.raises(CommandError, match="status 4: bad luck"):
        vm.run("echo bad luck >&2; exit 4", check=True, timeout=60)


def test_a_machine_is_not_pickled(vm):
    with pytest.raises(TypeError, match=r"snapshot\(\) writes one down"):
        pickle.dumps(vm)


@pytest.fixture
def child(vm):
    (child,) = vm.fork()
    yield child
    child.stop()


def test_a_reader_that_raises_ends_the_machine_with_its_name(child):
    def reader(data):
        raise ZeroDivisionError("in the reader")

    child.start()
    command = child.agent.run("echo one; sleep 100", on_stdout=reader)
    with pytest.raises(GuestError, match=r"ZeroDivisionError.*in the reader"):
        command.wait(30)
    with pytest.raises(ZeroDivisionError):
        child.wait(10)
    with pytest.raises(GuestError, match="in the reader"):
        child.run("true", timeout=10)


def test_input_of_a_wrong_kind_is_the_callers_error(child):
    child.start()
    command = child.agent.run("cat", takes_input=True)
    with pytest.raises(TypeError):
        command.write("text")
    command.close_input()
    assert command.wait(60) == 0


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("poweroff -f", r"before the command ended: the guest ended \(poweroff\)"),
        ("echo c >/proc/sysrq-trigger", r"kernel panicked: .*sysrq"),
    ],
)
def test_the_error_tells_how_the_guest_ended(child, end, message):
    with pytest.raises(GuestError, match=message):
        child.run(f"{end}; sleep 100", timeout=60)


def test_a_command_of_a_stopped_machine(child):
    child.start()
    command = child.agent.run("sleep 100")
    threading.Timer(0.5, child.stop).start()
    with pytest.raises(GuestError, match=r"the guest ended \(stopped\)"):
        command.wait(30)


def test_a_forgotten_machine_is_stopped_and_told_of(vm):
    (child,) = vm.fork(start=True)
    control = child.control
    with pytest.warns(ResourceWarning, match="was forgotten before it was stopped"):
        del child
        gc.collect()
    deadline = time.monotonic() + 10
    while any(t.thread.is_alive() for t in control.threads) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert control.exit is not None and control.exit.reason.value == "stopped"


def test_commands_side_by_side_start_with_clean_signals(vm):
    script = "grep -E 'SigIgn|SigBlk|Umask' /proc/self/status; sleep 1"
    outputs = [bytearray() for _ in range(3)]
    commands = [vm.agent.run(script, on_stdout=output.extend) for output in outputs]
    assert [command.wait(60) for command in commands] == [0, 0, 0]
    clean = b"Umask:\t0022\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
    assert [bytes(output) for output in outputs] == [clean] * 3


def test_ctrl_c_on_a_terminal_of_its_own(vm):
    said, begun = bytearray(), threading.Event()

    def read(data):
        said.extend(data)
        if b"ready" in said:
            begun.set()

    command = vm.agent.terminal("tty; echo ready; sleep 100", on_output=read)
    assert begun.wait(60), said
    command.write(b"\x03")
    assert command.wait(30) == 130, said


def test_what_cannot_be_run(vm):
    assert vm.run(["/etc/passwd"], timeout=60).exit_code == 126
    result = vm.run(["/bin/none"], text=True, timeout=60)
    assert (result.exit_code, result.stderr) == (
        127,
        "ringzero: /bin/none: not found in the guest\n",
    )
    assert vm.run(["none"], timeout=60).exit_code == 127


def test_the_guest_is_called_as_its_machine(vm):
    assert vm.run("hostname", text=True).stdout == f"{vm.config.name}\n"
    with Machine(image="micro", name="web-1", memory="256M", engine="soft") as named:
        assert named.run("hostname", text=True, timeout=120).stdout == "web-1\n"
