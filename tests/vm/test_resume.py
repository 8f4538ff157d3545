"""Machines that go on from a template: what they are, and when they boot instead."""

import contextlib
import json
import os
import random
import re
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ringzero
from ringzero.config.machine import MachineConfig
from ringzero.config.tree import config_to_tree
from ringzero.core.clocks import read_together
from ringzero.devices.chips import rtc
from ringzero.engine import select
from ringzero.errors import GuestError, HostError, RingzeroError, StateError
from ringzero.image.guest import elf
from ringzero.image.guest.code import Code, system_call
from ringzero.vm import boot
from ringzero.vm.exit import ExitReason
from ringzero.vm.machine import Machine
from ringzero.vm.saved import making, templates
from ringzero.vm.saved.templates import Templates
from tests import chance
from tests.vm.guests import own_templates

pytestmark = [pytest.mark.boot, pytest.mark.engine]

FIELDS = {"memory": "128M", "engine": "soft"}
FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))
# As many machines' random numbers are compared; 10,000 in `make fuzz`.
# Processes that are killed; 500 in `make fuzz`.
KILLS = 10 if FUZZ == 1 else 10 * FUZZ
# One that does not wait for what an idle guest still does.
MAKER = """
import sys
from ringzero.vm.saved import making
making._SETTLE = 0.1
sys.exit(making.main(sys.argv[1:]))
"""
# What Linux says of time that went wrong.
ALARMS = r"throttling\|soft lockup\|stall\|hung\|unstable\|reset the"
ALIKE = 40 if FUZZ == 1 else 200 * FUZZ
RANDOM = "head -c 32 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid; mktemp -u"
CLOCK = "adjtimex | sed -n 's/.*time.tv_u*sec: *//p'; cut -d ' ' -f 1 /proc/uptime"
# How far a clock may be from the host's, in seconds: shared machines take their time to answer.
CLOSE = 1.0


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with own_templates(tmp_path_factory.mktemp("cache")) as place:
        yield place


@pytest.fixture(scope="module")
def store(cache):
    """The template of the machines here, made in this process."""
    try:
        config = boot.complete(None, "micro", dict(FIELDS))
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    store = Templates()
    assert making.make(config, select.choose("soft"), store)
    return store


def machine(**fields):
    return Machine(image="micro", **{**FIELDS, **fields})


def started(vm):
    return vm.stats()["started"]


def output(vm, command, **options):
    result = vm.run(command, timeout=60, **options)
    assert result.exit_code == 0, result
    return result.stdout.decode()


def test_a_second_machine_resumes(store):
    assert not making.make(boot.complete(None, "micro", dict(FIELDS)), select.choose("soft"), store)
    with machine(name="web") as vm:
        assert output(vm, "hostname; echo $((6 * 7))") == "web\n42\n"
        assert started(vm) == "resumed"
        assert output(vm, ["cat"], input=b"in") == "in"
    # It is good for any number of them.
    with machine() as vm:
        assert output(vm, "hostname") == "micro\n"


def test_two_at_a_time_are_apart(store):
    with machine() as one, machine() as two:
        one.run("echo one >/tmp/which", timeout=60)
        two.run("echo two >/tmp/which", timeout=60)
        assert [output(vm, "cat /tmp/which") for vm in (one, two)] == ["one\n", "two\n"]


def test_it_is_somebody_of_its_own(store):
    seen = []
    for _ in range(2):
        with machine() as vm:
            mac = output(vm, "cat /sys/class/net/eth0/address").strip()
            assert mac == vm.config.nets[0].mac
            seen.append((mac, vm.identity.generation, *output(vm, RANDOM).splitlines()))
    for values in zip(*seen, strict=True):
        assert len(set(values)) == 2, values


def test_random_numbers_are_never_alike(store):
    seen = set()
    for _ in range(ALIKE):
        with machine() as vm:
            drawn = output(vm, RANDOM).splitlines()
        assert seen.isdisjoint(drawn)
        seen.update(drawn)


def test_its_clock_is_the_hosts(store):
    with machine() as vm:
        seconds, micros, uptime = output(vm, CLOCK).splitlines()
        assert abs(int(seconds) + int(micros) / 1e6 - time.time()) < CLOSE
        # Monotonic time goes on where the template's stood.
        assert float(uptime) < 60
        assert output(vm, f"dmesg | grep -ci '{ALARMS}' || true") == "0\n"


def look_at_clocks():
    """A program that prints its time-stamp counter and, the next moment, the wall clock."""
    program = Code()
    program.add(
        b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0",  # rdtsc; shl rdx, 32; or rax, rdx
        b"\x48\x89\x04\x25" + struct.pack("<I", elf.ROOM),  # mov [ROOM], rax
        system_call(228, edi=0, esi=elf.ROOM + 8),  # clock_gettime
        system_call(1, edi=1, esi=elf.ROOM, edx=24),  # write
        system_call(60, edi=0),  # exit
    )
    return elf.program(program.build(), elf.body_address(), elf.PAGE)


@pytest.mark.parametrize("number", range(3))
def test_its_clock_is_right_to_a_millisecond(store, number):
    with machine() as vm:
        hertz = vm.parts.vm.counter_hz
        install = ["sh", "-c", "cat >/tmp/look; chmod +x /tmp/look"]
        vm.run(install, input=look_at_clocks(), timeout=60, check=True)
        apart = []
        for _ in range(6):
            said = vm.run(["/tmp/look"], timeout=60, check=True).stdout
            then, seconds, nanoseconds = struct.unpack("<QQQ", said)
            counter, now = read_together(
                vm.parts.vm.read_counter, vm.parts.vm.counter_hz, time.time_ns
            )
            passed = (counter - then) * 1_000_000_000 // hertz
            apart.append(abs(seconds * 1_000_000_000 + nanoseconds - (now - passed)))
        # Whoever is interrupted between its two looks finds more.
        assert min(apart) < 1_000_000, apart


def test_its_network_is_there(store):
    with machine(nets=["user,host=no"]) as vm:
        assert output(vm, "ip -4 addr show eth0 | grep -o 'inet [0-9.]*'") == "inet 10.0.2.15\n"
        assert output(vm, "ping -c 1 -w 20 10.0.2.2 >/dev/null && echo there") == "there\n"
        assert started(vm) == "resumed"


def test_ports_come_in_afterwards(store):
    with machine(nets=["user,port=0:7"]) as vm:
        (forward,) = vm.nets.ports()
        vm.run("nc -l -p 7 -e echo heard &", timeout=60)
        import socket

        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            # One that comes too early is closed, or reset.
            with (
                contextlib.suppress(ConnectionError),
                socket.create_connection(("127.0.0.1", forward.port), timeout=20) as caller,
            ):
                if caller.recv(10) == b"heard\n":
                    break
            time.sleep(0.05)
        else:
            pytest.fail("nobody was heard")
        assert started(vm) == "resumed"


def test_folders_come_in_afterwards(store, tmp_path):
    (tmp_path / "file").write_text("here\n")
    config = boot.complete(None, "micro", {**FIELDS, "shares": ["later"]})
    assert making.make(config, select.choose("soft"), store)
    shares = [f"{tmp_path}:/src", f"{tmp_path / 'file'}:/etc/one:ro"]
    with machine(shares=shares) as vm:
        # It waited for the start, and finds the folders.
        command = vm.agent.run(["cat", "/src/file", "/etc/one"], on_stdout=(said := []).append)
        vm.start()
        assert (command.wait(60), b"".join(said)) == (0, b"here\nhere\n")
        output(vm, "echo back >/src/made; ! echo x >>/etc/one")
        assert started(vm) == "resumed"
        assert [share.target for share in vm.shares.all] == ["/src", "/etc/one"]
    assert (tmp_path / "made").read_text() == "back\n"
    with machine(shares=["later"]) as vm:
        vm.start()
        from ringzero.config.devices.share import ShareConfig

        vm.shares.add(ShareConfig.parse(f"{tmp_path}:/late"))
        assert output(vm, "cat /late/file") == "here\n"
        assert started(vm) == "resumed"


def test_a_folder_that_cannot_be_mounted_is_told_with_its_reason(store, tmp_path):
    fields = {**FIELDS, "shares": [f"{tmp_path}:/proc/nothing/here"]}
    making.make(boot.complete(None, "micro", fields), select.choose("soft"), store)
    vm = machine(shares=fields["shares"])
    command = vm.agent.run(["true"])
    reason = r"a shared folder cannot be mounted: .*/proc/nothing"
    with pytest.raises(GuestError, match=reason):
        vm.start()
    with pytest.raises(GuestError, match=reason):
        command.wait(60)
    assert vm.wait(60).reason is ExitReason.STOPPED


def test_the_consoles_size_was_given_before_its_start(store):
    with machine() as vm:
        vm.console.resize(33, 99)
        vm.start()
        deadline = time.monotonic() + 30
        while (size := output(vm, "stty size </dev/hvc0")) != "33 99\n":
            assert time.monotonic() < deadline, size
        assert started(vm) == "resumed"


def test_commands_that_waited_for_its_start_run_in_order(store):
    with machine() as vm:
        said = []
        commands = [
            vm.agent.run(["echo", str(number)], on_stdout=said.append) for number in range(3)
        ]
        told = vm.agent.run(["sleep", "100"])
        told.signal("TERM")
        vm.start()
        assert [command.wait(60) for command in commands] == [0, 0, 0]
        assert sorted(said) == [b"0\n", b"1\n", b"2\n"]
        assert told.wait(60) == 128 + 15
        assert started(vm) == "resumed"


def test_it_is_forked_saved_and_taken_back_like_any_other(store, tmp_path):
    from ringzero.vm.saved.store import Store

    with machine(name="origin") as vm:
        vm.run("echo kept >/tmp/file", timeout=60)
        (child,) = vm.fork()
        with child:
            assert output(child, "cat /tmp/file") == "kept\n"
            assert started(child) == "copied"
        saved = vm.snapshot("now", store=Store(tmp_path))
        vm.run("rm /tmp/file", timeout=60)
        vm.revert(saved)
        assert output(vm, "cat /tmp/file") == "kept\n"
        with saved.start() as copy:
            assert output(copy, "cat /tmp/file") == "kept\n"


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (lambda vm: vm.attach("own", rtc.Rtc(), mmio=0xE0000000, size=64), "a device was attached"),
        (lambda vm: vm.memory.__setitem__(0x8000000 - 4096, 1), "its memory was written to"),
        (lambda vm: vm.debugger.hook(0xFFFFFFFF00000000, print), "breakpoint or hook"),
    ],
    ids=["device", "memory", "hook"],
)
def test_what_was_done_to_it_before_its_start_has_it_boot(store, prepare, why):
    with machine() as vm:
        prepare(vm)
        vm.start()
        assert why in started(vm)
        assert not vm.agent.ready


def test_boot_has_it_boot(store):
    with machine(boot=True) as vm:
        assert output(vm, "echo up") == "up\n"
        assert started(vm) == "booted (asked for)"


def test_another_description_boots(store):
    with machine(memory="130M") as vm:
        assert output(vm, "echo up") == "up\n"
        assert started(vm) == "booted (the first of its description)"
        vm._start.give_up("")


def test_what_does_not_fit_has_it_boot(store, monkeypatch):
    """A counter of another frequency: a template of this host before its last boot."""
    from ringzero.vm.state import ProcessorKind

    def refuse(self, here):
        raise StateError("the saved machine's counter has another frequency")

    said = []
    monkeypatch.setattr(ProcessorKind, "check", refuse)
    removed = []
    monkeypatch.setattr(Templates, "remove", lambda _, name: removed.append(name))
    with machine() as vm:
        vm._start._tell = said.append
        assert output(vm, "echo up") == "up\n"
        assert "another frequency" in started(vm)
        vm._start.give_up("")
    assert len(said) == len(removed) == 1


def test_a_state_that_is_half_restored_has_it_boot(store, monkeypatch):
    """Whatever goes wrong behind the checks leaves a machine that boots."""
    from ringzero.vm.guest.agent import Agent

    def refuse(self, state):
        raise StateError("no such slot")

    monkeypatch.setattr(Agent, "restore", refuse)
    monkeypatch.setattr(Templates, "remove", lambda *_: None)
    with machine() as vm:
        assert output(vm, "echo up") == "up\n"
        assert started(vm) == "booted (no such slot)"
        vm._start.give_up("")


# ---- processes ----------------------------------------------------------------------


def run(*words, check=0, **more):
    done = subprocess.run(
        [sys.executable, "-m", "ringzero", "run", "--engine", "soft", "-m", "128M", *words],
        env=os.environ | {"PYTHONPATH": str(Path(ringzero.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
        **more,
    )
    assert done.returncode == check, done
    return done


def test_run_resumes(store):
    done = run("--stats", "--", "sh", "-c", "echo out; echo err >&2; exit 3", check=3)
    assert done.stdout == "out\n"
    assert re.search(r"^started +resumed$", done.stderr, re.MULTILINE)
    assert run("--", "cat", input="in").stdout == "in"
    assert run("-e", "A=b c", "-w", "/tmp", "--", "sh", "-c", "echo $A $PWD").stdout == "b c /tmp\n"


def test_run_boots_where_that_is_asked_for(store, tmp_path):
    assert "booted (asked for)" in run("--boot", "--stats", "--", "true").stderr
    log = tmp_path / "boot.log"
    run("--serial", str(log), "--append", "loglevel=7", "--", "true")
    assert b"Linux version" in log.read_bytes()


def test_the_first_run_leaves_one_behind(cache, store):
    before = {entry.name for entry in store.entries()}
    done = run("--memory", "136M", "--stats", "--", "true")
    assert "booted (the first of its description)" in done.stderr
    deadline = time.monotonic() + 240
    while {entry.name for entry in store.entries()} <= before:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert "resumed" in run("--memory", "136M", "--stats", "--", "true").stderr


def test_nothing_of_a_run_is_in_what_it_leaves_behind(cache, store):
    secret = "zebra-4711"
    before = {entry.name for entry in store.entries()}
    run("-m", "148M", "--name", secret, "--rm", "-e", f"SECRET={secret}", "--", "echo", secret)
    deadline = time.monotonic() + 240
    while not (made := {entry.name for entry in store.entries()} - before):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (name,) = made
    for path in (store.root / name).iterdir():
        assert secret.encode() not in path.read_bytes()


def test_many_at_once(store):
    count = 20 if FUZZ == 1 else 200
    with ThreadPoolExecutor(count) as pool:
        done = list(pool.map(lambda n: run("--", "echo", str(n)).stdout, range(count)))
    assert done == [f"{number}\n" for number in range(count)]


def test_a_cache_that_cannot_be_written_to_boots_and_says_why(cache, store):
    store.root.chmod(0o755)
    try:
        done = run("--memory", "140M", "--stats", "--", "echo", "up")
    finally:
        store.root.chmod(0o700)
    assert done.stdout == "up\n"
    lines = [line for line in done.stderr.splitlines() if line.startswith("ringzero: ")]
    assert len(lines) == 1
    assert "this start boots" in lines[0]
    assert "others than its owner may use it" in lines[0]


def test_a_damaged_one_boots_and_is_made_again(store):
    found = [e for e in store.entries() if e.description["memory"] == 128 << 20]
    assert found
    for entry in found:
        os.utime(store.root / entry.name / templates.MEMORY)
    done = run("--stats", "--", "echo", "up")
    assert done.stdout == "up\n"
    assert "its memory is not what was written" in done.stderr
    deadline = time.monotonic() + 240
    while "resumed" not in run("--stats", "--", "true").stderr:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_maker_that_cannot_make_one_says_why_to_the_next(store, monkeypatch):
    config = boot.complete(None, "micro", {**FIELDS, "memory": "144M"})
    with monkeypatch.context() as patched:
        patched.setattr(templates, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            making.make(config, select.choose("soft"), store)
    with monkeypatch.context() as patched:

        def full(*_):
            raise RingzeroError("the disk is full")

        patched.setattr(templates, "write", full)
        with pytest.raises(RingzeroError):
            making.make(config, select.choose("soft"), store)
    with machine(memory="144M") as vm:
        assert output(vm, "echo up") == "up\n"
        assert started(vm) == "booted (no template could be made: the disk is full)"


def test_a_config_resumes_where_that_is_wanted(store):
    config = boot.complete(None, "micro", dict(FIELDS))
    assert isinstance(config, MachineConfig)
    for wanted, how in ((False, "resumed"), (None, "booted (asked for)")):
        with Machine(config, boot=wanted) as vm:
            assert output(vm, "echo up") == "up\n"
            assert started(vm) == how


def test_kills_at_random_moments_leave_what_works(store):
    """Makers, runs and removals end by SIGKILL; the next run answers right, resumed or booted."""
    config = boot.complete(None, "micro", {**FIELDS, "memory": "152M"})
    description = json.dumps(config_to_tree(config)).encode()
    environment = os.environ | {"PYTHONPATH": str(Path(ringzero.__file__).parents[1])}
    ringzero_of = [sys.executable, "-m", "ringzero"]
    acts = {
        "make": ([sys.executable, "-c", MAKER, str(store.root)], 2.0),
        "run": ([*ringzero_of, "run", "--engine", "soft", "-m", "152M", "--", "true"], 0.8),
        "prune": ([*ringzero_of, "template", "prune", "--all"], 0.3),
    }
    seed = chance.seed()
    rng, ends = random.Random(seed), {}
    for number in range(KILLS):
        name = rng.choice(list(acts))
        command, life = acts[name]
        victim = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        victim.stdin.write(description if name == "make" else b"")
        victim.stdin.close()
        time.sleep(rng.random() * life)
        victim.kill()
        victim.wait()
        done = run("-m", "152M", "--stats", "--", "echo", str(number))
        assert done.stdout == f"{number}\n", (seed, done)
        # What was killed damaged nothing that is then found so.
        assert "this start boots" not in done.stderr, (seed, done)
        how = "resumed" if "resumed" in done.stderr else "booted"
        ends[name, how] = ends.get((name, how), 0) + 1
    print(seed, ends)
    deadline = time.monotonic() + 120
    while "resumed" not in run("-m", "152M", "--stats", "--", "true").stderr:
        assert time.monotonic() < deadline, seed
        time.sleep(0.5)
    with store._locked() as held:
        if held:
            store._sweep()
            assert not list(store.root.glob(".partial-*"))
