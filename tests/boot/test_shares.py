"""Real software on a shared folder in a guest, beside the same on the guest's own tmpfs."""

import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ringzero import Machine
from ringzero.image import micro
from ringzero.records import replace
from tests.vm import guests

pytestmark = [pytest.mark.boot, pytest.mark.engine]

PROGRAMS = Path(__file__).parent / "programs"
TOOLS = replace(guests.TOOLS, name="tools-git", packages=(*guests.TOOLS.packages, "git"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("shared")
    shutil.copy(PROGRAMS / "filesystem.py", made)
    return made


@pytest.fixture(scope="module")
def vm(folder):
    image = micro.ensure(TOOLS)
    with Machine(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=image.command_line,
        agent=True,
        memory="1G",
        engine="soft",
        share=f"{folder}:/m",
    ) as machine:
        machine.run("mkdir /control; mount -t tmpfs control /control", timeout=120, check=True)
        yield machine


def told(machine, command, timeout=300):
    return machine.run(command, timeout=timeout, text=True, check=True).stdout


def test_posix_and_random_work_as_on_a_file_system_of_the_guest_s_own(vm, folder):
    seed = random.SystemRandom().randrange(1 << 30)
    program = "python3 /m/filesystem.py"
    control = told(vm, f"mkdir /control/w; {program} /control/w {seed}")
    shared = told(vm, f"mkdir /m/w; {program} /m/w {seed}")
    mine, same = (
        [line for line in text.splitlines() if not line.startswith("user.*")]
        for text in (shared, control)
    )
    print(*(f"{a}   {b}" for a, b in zip(mine, same, strict=False) if a != b), sep="\n")
    assert mine == same, seed
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
with Machine(image="micro", memory="256M", engine="soft", share=sys.argv[1] + ":/m") as vm:
    # Each line is in the file, and at the medium, before it is told.
    vm.run("n=0; while :; do n=$((n + 1)); echo $n >>/m/log; sync /m/log; echo $n >/m/told; done")
"""


def test_what_was_synced_outlives_the_machine_s_violent_end(tmp_path):
    micro.ensure()
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
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
