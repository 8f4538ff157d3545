"""Real software on a shared folder in a guest, beside the same on the guest's own tmpfs."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ringzero import Machine
from ringzero.errors import HostError
from ringzero.image import micro
from ringzero.image.micro import Recipe
from ringzero.image.names import IMAGES
from ringzero.records import replace
from tests import chance
from tests.vm import guests

pytestmark = [pytest.mark.boot, pytest.mark.engine]

PROGRAMS = Path(__file__).parent / "programs"
# What the guest has to work with; for 9p with another kernel, since the cloud one has none.
FULL = "linux-image-amd64"
VIRTIOFS = replace(guests.TOOLS, name="tools-git", packages=(*guests.TOOLS.packages, "git"))
RECIPES = {"virtiofs": VIRTIOFS, "9p": replace(VIRTIOFS, name="tools-git-full", kernel=FULL)}
LONG = pytest.mark.skipif(not guests.FUZZING, reason="takes minutes; RINGZERO_FUZZ=2 has it")
NINEP = pytest.param("9p", marks=LONG)
BOTH = pytest.mark.parametrize("vm", ["virtiofs", NINEP], indirect=True, scope="module")
# Linux's 9p sets times in whole seconds, and none before 1970.
WHOLE_SECONDS = ["utime (None, 2000000000)", "before 1970 (None, 0.0)"]


def booted(folder, transport, recipe):
    """Return a machine that has the folder at /m."""
    try:
        image = micro.ensure(recipe)
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    return Machine(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=image.command_line,
        agent=True,
        memory="1G",
        engine="soft",
        share=f"{folder}:/m:transport={transport}",
    )


@pytest.fixture(scope="module", params=["virtiofs"])
def vm(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    shutil.copy(PROGRAMS / "filesystem.py", folder)
    with booted(folder, request.param, RECIPES[request.param]) as machine:
        machine.run("mkdir /control; mount -t tmpfs control /control", timeout=120, check=True)
        assert f" /m {request.param} " in told(machine, "cat /proc/mounts")
        yield machine


@pytest.fixture
def folder(vm):
    return vm.shares.all[0].path


def told(machine, command, timeout=300):
    return machine.run(command, timeout=timeout, text=True, check=True).stdout


@BOTH
def test_posix_and_random_work_as_on_a_file_system_of_the_guest_s_own(vm, folder):
    seed = chance.seed()
    program = "python3 /m/filesystem.py"
    control = told(vm, f"mkdir /control/w; {program} /control/w {seed}")
    shared = told(vm, f"mkdir /m/w; {program} /m/w {seed}")
    mine, same = (
        [line for line in text.splitlines() if not line.startswith("user.*")]
        for text in (shared, control)
    )
    assert len(mine) == len(same), seed
    other = [line for line, wanted in zip(mine, same, strict=True) if line != wanted]
    ninep = vm.shares.all[0].transport == "9p"
    assert other == (WHOLE_SECONDS if ninep else []), seed
    # A tmpfs has no such attributes before Linux 6.6.
    assert [line.partition(" ")[2] for line in shared.splitlines() if "user.*" in line] == [
        "set (None, b'1')",
        "twice EEXIST",
        "none ENODATA",
        "removed (None, False)",
    ]
    for path in (folder / "w").rglob("*"):
        found = path.lstat().st_mode
        assert not found & 0o6000
        assert stat.S_IFMT(found) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)


@BOTH
def test_git(vm, folder):
    subprocess.run(["git", "init", "-q", str(folder / "r")], check=True)
    for number in range(300):
        (folder / "r" / f"f{number}").write_text(f"{number}\n")
    told(vm, "git config --global --add safe.directory '*'; cd /m/r; git config user.name a")
    told(vm, "cd /m/r; git config user.email a@b; git add .; git commit -qm one; git gc -q")
    assert told(vm, "git clone -q /m/r /m/clone; ls /m/clone | wc -l").strip() == "300"
    (folder / "r" / "f7").write_text("changed on the host\n")
    time.sleep(1.1)
    assert told(vm, "git -C /m/r status --porcelain") == " M f7\n"
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", str(folder / "r"), "fsck"], check=False
    )
    assert done.returncode == 0


def test_a_hundred_thousand_names(vm, folder):
    (folder / "many").mkdir()
    place = os.open(folder / "many", os.O_PATH)
    for number in range(100_000):
        os.close(os.open(f"f{number}", os.O_CREAT | os.O_WRONLY, dir_fd=place))
    os.close(place)
    # Names that go while they are listed leave the others where they are.
    script = (
        "import os; n = 0\n"
        "for e in os.scandir('/m/many'):\n"
        "    n += 1\n"
        "    if n % 100 == 0: os.unlink(e.path)\n"
        "print(n, len(os.listdir('/m/many')))"
    )
    assert told(vm, f'python3 -c "{script}"').split() == ["100000", "99000"]


KILLED = """
import sys
from ringzero import Machine
with Machine(image=sys.argv[2], memory="256M", engine="soft", share=sys.argv[1]) as vm:
    # Each line is in the file, and at the medium, before it is told.
    vm.run("n=0; while :; do n=$((n + 1)); echo $n >>/m/log; sync /m/log; echo $n >/m/told; done")
"""


@pytest.mark.parametrize(("transport", "image"), [("virtiofs", "micro"), ("9p", "full")])
def test_what_was_synced_outlives_the_machine_s_violent_end(tmp_path, transport, image):
    IMAGES.get(image)()
    share = f"{tmp_path}:/m:transport={transport}"
    process = subprocess.Popen([sys.executable, "-c", KILLED, share, image])
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "told").exists() or (tmp_path / "log").stat().st_size < 200:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    told_last = int((tmp_path / "told").read_text() or 0)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[:told_last] == [str(number) for number in range(1, told_last + 1)]


# What Linux's 9p client asks no server for, and what programs get in place of it.
UNASKED = """
import ctypes, errno, os
def refused(action, *arguments):
    try:
        action(*arguments)
    except OSError as fault:
        return errno.errorcode[fault.errno]
os.chdir("/m")
print(refused(os.open, ".", os.O_TMPFILE | os.O_RDWR))
fd = os.open("a", os.O_RDWR | os.O_CREAT)
os.posix_fallocate(fd, 0, 10000)
print(os.fstat(fd).st_size, os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE))
print(os.copy_file_range(fd, os.open("b", os.O_RDWR | os.O_CREAT), 10000, 0))
libc = ctypes.CDLL(None, use_errno=True)
print(libc.renameat2(-100, b"a", -100, b"b", 2), errno.errorcode[ctypes.get_errno()])
"""


@pytest.mark.parametrize("vm", [NINEP], indirect=True, scope="module")
def test_what_programs_get_where_linux_asks_9p_for_nothing(vm, folder):
    (folder / "ask.py").write_text(UNASKED)
    assert told(vm, "python3 /m/ask.py").split() == [
        *("ENOTSUP", "10000", "0", "10000", "10000", "-1", "EINVAL"),
    ]
    assert (folder / "b").read_bytes() == bytes(10000)


# Linux from 6.4 on keeps with cache=mmap what is written, too.
NEWER = Recipe("newer", kernel=FULL, suite="bookworm-backports")
# Somebody has both files open meanwhile.
OPEN = "exec 8</m/a 9>/m/b; cat /m/a; echo written >&9; touch /tmp/done; sleep 1000"


@LONG
def test_9p_of_a_newer_kernel_has_the_host_s_files_of_now(tmp_path):
    (tmp_path / "a").write_text("one\n")
    with booted(tmp_path, "9p", NEWER) as machine:
        told(machine, f"({OPEN}) >/dev/null 2>&1 & until [ -e /tmp/done ]; do sleep 0.1; done")
        assert (tmp_path / "b").read_text() == "written\n"
        (tmp_path / "a").write_text("two\n")
        assert told(machine, "cat /m/a") == "two\n"
