"""Long work on several virtual CPUs of a guest, and then the kernel's own opinion.

`make stress` runs stress-ng for STRESS=600 seconds with one, two and four of them, and
programs that write machine code at run time (V8's and LuaJIT's compilers) with two.
"""

import contextlib
import os
from pathlib import Path

import pytest

import ringzero
from ringzero.errors import HostError
from ringzero.image.micro import Recipe, ensure
from tests.boot.test_soak import complaints

SECONDS = int(os.environ.get("RINGZERO_STRESS", "0"))
pytestmark = [
    pytest.mark.boot,
    pytest.mark.engine,
    pytest.mark.skipif(SECONDS == 0, reason="runs for RINGZERO_STRESS seconds: `make stress`"),
    pytest.mark.timeout(SECONDS * 4 + 600),
]
STRESS = Recipe("stress", packages=("stress-ng",))
COMPILERS = Recipe("compilers", packages=("nodejs", "luajit"))
PROGRAMS = Path(__file__).parent / "programs"
# Rounds of a program below, and how often each runs its loop.
ROUNDS, LOOPS = 40, 20_000
# A guest's own command line would switch off its work-arounds of faults: a user's does not.
COMMAND_LINE = "console=ttyS0 quiet panic=-1 reboot=a ringzero.agent"
KINDS = ("cpu", "vm", "switch", "futex")


@contextlib.contextmanager
def guest(recipe, cpus):
    """A machine that neither it nor its kernel has anything to complain of at the end."""
    try:
        image = ensure(recipe)
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    with ringzero.Machine(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=COMMAND_LINE,
        memory="1G",
        cpus=cpus,
        agent=True,
        engine="soft",
    ) as vm:
        yield vm
        log = vm.run("dmesg", timeout=60).stdout.decode(errors="replace")
        statistics = vm.stats()
    assert complaints(log) == []
    assert statistics["faults"] == {}
    assert all(statistics[f"cpu{n}"]["unknown"] == 0 for n in range(cpus))


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_no_warning_under_stress(cpus):
    words = ["stress-ng", "--timeout", f"{SECONDS}s", "--metrics-brief", "--verify"]
    for kind in KINDS:
        words += [f"--{kind}", str(cpus)]
    words += ["--vm-bytes", "64M", "--cpu-method", "all"]
    with guest(STRESS, cpus) as vm:
        done = vm.run(words, timeout=SECONDS * 4 + 300)
        print(done.stdout.decode(), done.stderr.decode())
        assert done.exit_code == 0


def expected(value):
    """What the programs make of a number: each round is a function that was not there before."""
    for number in range(ROUNDS):
        factor, addend, shift = 1664525 + 2 * number, 1013904223 + number, 1 + number % 15
        for _ in range(LOOPS):
            value = (value * factor + addend) & 0xFFFFFFFF
            value ^= value >> shift
        value = (1000 * value + 499500) & 0xFFFFFFFF
    return value


@pytest.mark.parametrize("program", ["node compilers.js", "luajit compilers.lua"])
def test_compilers_in_the_guest(program):
    """Two that compile, run and drop code on two vCPUs: every result is right."""
    results = [str(expected(seed)) for seed in (1, 2)]
    command, script = program.split()
    words = [command, f"/{script}", *map(str, (SECONDS, ROUNDS, LOOPS)), *results]
    with guest(COMPILERS, 2) as vm:
        vm.run(f"cat > /{script}", input=(PROGRAMS / script).read_bytes(), timeout=60)
        done = vm.run(words, timeout=SECONDS * 4 + 300)
        print(done.stdout.decode(), done.stderr.decode())
        assert done.exit_code == 0
        passes = [int(word) for word in done.stdout.split()]
        assert len(passes) == 2
        assert min(passes) > 0
