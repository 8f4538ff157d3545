"""Long work on several virtual CPUs of a guest, and then the kernel's own opinion.

`make stress` runs stress-ng for STRESS=600 seconds with one, two and four of them, Linux's
own tests of locks and of RCU with two and four, and programs that write machine code at run
time (V8's and LuaJIT's compilers) with two.
"""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import ringzero
from ringzero.errors import HostError
from ringzero.image.micro import Recipe, ensure
from tests.boot.test_soak import complaints
from tests.vm.kernel_packages import unpack_headers, unpack_source

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
# Linux's own tests. Debian's kernels have none of them; they are built from its source, as
# modules of another place, which see less of the kernel.
SOURCES = (
    *("kernel/torture.c", "kernel/locking/locktorture.c"),
    *("kernel/rcu/rcutorture.c", "kernel/rcu/rcu.h"),
)
NOT_SEEN = {
    '"rcu/rcu.h"': '"rcu.h"',
    "rcutorture_sched_setaffinity(current->pid, ": "set_cpus_allowed_ptr(current, ",
}
LOCKS = ("spin_lock", "spin_lock_irq", "rw_lock", "mutex_lock", "rtmutex_lock", "rwsem_lock")
FLAVOURS = ("rcu", "srcu", "tasks")


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
    # A line of parameters is no complaint.
    assert [line for line in complaints(log) if " stall_cpu=" not in line] == []
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


@pytest.fixture(scope="module")
def torture(tmp_path_factory):
    """Builds the modules for a release of Debian's kernel; returns their folder."""
    built = {}

    def build(release):
        if release not in built:
            built[release] = tmp_path_factory.mktemp("torture")
            build_torture(release, built[release])
        return built[release]

    return build


def build_torture(release, place):
    unpack_headers(release, place)
    headers = place / "usr/src" / f"linux-headers-{release}"
    makefile = headers / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{headers.parent}/"))
    source = unpack_source(release, place)
    names = [f"{source.name.removesuffix('.tar.xz')}/{name}" for name in SOURCES]
    command = ["tar", "-xJf", source, "-C", place, "--strip-components=1", *names]
    subprocess.run(command, check=True, timeout=600)
    for name in SOURCES:
        text = (place / name).read_text()
        for word, other in NOT_SEEN.items():
            text = text.replace(word, other)
        (place / Path(name).name).write_text(text)
    (place / "Makefile").write_text("obj-m := torture.o locktorture.o rcutorture.o\n")
    make = ["make", "-C", headers, f"M={place}", "modules"]
    subprocess.run(make, check=True, capture_output=True, timeout=600)


@pytest.mark.skipif(not all(map(shutil.which, ("make", "gcc", "xz"))), reason="needs gcc and make")
@pytest.mark.parametrize("cpus", [2, 4])
def test_locks_and_rcu(torture, cpus):
    """Linux's locktorture and rcutorture find nothing."""
    runs = [("locktorture", kind) for kind in LOCKS] + [("rcutorture", kind) for kind in FLAVOURS]
    with guest(STRESS, cpus) as vm:
        place = torture(vm.run("uname -r", text=True, timeout=60).stdout.strip())
        for name in ("torture", "locktorture", "rcutorture"):
            module = (place / f"{name}.ko").read_bytes()
            assert vm.run(f"cat > /{name}.ko", input=module, timeout=60).exit_code == 0
        assert vm.run("insmod /torture.ko", timeout=60).exit_code == 0
        for name, kind in runs:
            command = (
                f"insmod /{name}.ko torture_type={kind} && sleep {SECONDS / len(runs)}"
                f" && rmmod {name} && dmesg | grep 'End of test' | tail -n 1"
            )
            done = vm.run(command, timeout=SECONDS * 4 + 300, text=True)
            print(kind, done.stdout, done.stderr)
            assert done.stdout.count("End of test: SUCCESS") == 1, kind
            assert f"{kind}-torture:" in done.stdout


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
