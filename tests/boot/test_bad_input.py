"""Bad input through the real command line: a clear message and exit code, nothing left behind.

docs/testing.md maps what can go wrong to its test.
"""

import os
import random
import re
import shutil
import subprocess

import pytest

from ringzero.settings import CACHE_DIR
from tests.board.kernels import bzimage, elf
from tests.boot.process import COMMAND, ENVIRONMENT, WAIT, check, run

pytestmark = [pytest.mark.boot, pytest.mark.engine]
ENTRY = 0x1000000
# `make fuzz` has the time for all of them.
LONG = int(os.environ.get("RINGZERO_FUZZ", "1") != "1")


def kernel_of(tmp_path, code):
    """A kernel file that is nothing but `code`, run in 64-bit mode without an IDT."""
    path = tmp_path / "vmlinux"
    path.write_bytes(elf([(ENTRY, code + bytes(64), 4096)], ENTRY))
    return path


# --- files ---------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 616, -1, *LONG * [0, 511, 5000]])
def test_truncated_kernel(tmp_path, image, keep):
    whole = image.kernel.read_bytes()
    path = tmp_path / "vmlinuz"
    # A kernel's file ends in padding: one byte off its payload is what hurts.
    end = whole.rstrip(b"\0")
    path.write_bytes(end[: len(end) // 2] if keep == -1 else whole[:keep])
    check(run("--kernel", path), 5, str(path), "hint:")


@pytest.mark.parametrize("start", [0, 4, 0x300])
def test_random_kernel(tmp_path, image, start):
    """Noise; noise behind an ELF magic; noise behind a whole setup header."""
    noise = random.Random(start).randbytes(100_000)
    head = {0: b"", 4: b"\x7fELF", 0x300: image.kernel.read_bytes()[:0x300]}[start]
    path = tmp_path / "vmlinuz"
    path.write_bytes(head + noise)
    check(run("--kernel", path), 5, str(path))


def test_random_code_in_a_whole_kernel(tmp_path):
    """It runs, whatever it is, until the time is over or the CPU gives up."""
    for seed in range(4 + 100 * LONG):
        path = kernel_of(tmp_path, random.Random(seed).randbytes(4000))
        done = run("--kernel", path, "--timeout", "2")
        check(done, done.returncode)
        assert done.returncode in (0, 3, 124, 125)


def test_initrd_that_does_not_fit(tmp_path, image):
    path = tmp_path / "initrd"
    for size in (40 << 20, 1 << 34):
        with path.open("wb") as file:
            file.truncate(size)
        done = run("--kernel", image.kernel, "--initrd", path, "--memory", "96M")
        check(done, 5, "does not fit", "--memory")


@pytest.mark.parametrize(
    ("memory", "code", "text"), [("1M", 2, "memory of 1 MiB"), ("32M", 5, "the kernel needs")]
)
def test_memory_too_small(image, memory, code, text):
    done = run("--kernel", image.kernel, "--memory", memory)
    check(done, code, text)


def test_memory_that_the_host_has_not(tmp_path):
    done = run("--kernel", kernel_of(tmp_path, b"\xf4"), "--memory", "1T", "--timeout", "2")
    assert done.returncode in (4, 124, 125)
    check(done, done.returncode)


@pytest.mark.parametrize("flag", ["--disk", "--kernel", "--initrd"])
def test_missing_file(image, tmp_path, flag):
    words = ["--kernel", image.kernel] if flag != "--kernel" else []
    check(run(*words, flag, tmp_path / "none"), 3, "none does not exist")


def test_read_only_disk_written_to(image, tmp_path):
    disk = tmp_path / "disk"
    content = os.urandom(1 << 20)
    disk.write_bytes(content)
    script = "cat /sys/block/vda/ro; echo x > /dev/vda || dd if=/dev/zero of=/dev/vda count=1"
    done = run("--disk", f"{disk},ro", "--", "sh", "-c", script)
    assert done.stdout == b"1\n"
    assert done.returncode == 1
    assert b"not permitted" in done.stderr
    assert disk.read_bytes() == content


def test_directory_for_a_disk(tmp_path):
    check(run("--disk", f"{tmp_path},format=raw", "--", "true"), 2, "is a directory")


# --- the cache -----------------------------------------------------------------------


def test_neither_apt_nor_gpgv_on_the_host(tmp_path):
    done = run("--", "true", env={"PATH": "/nonexistent", "RINGZERO_CACHE_DIR": str(tmp_path)})
    check(done, 4, "Debian's archive cannot be checked", "gpgv", "--kernel FILE")


def linked_cache(place):
    """Make a cache that has packages and engine, but no image, kernel or translation yet."""
    for name in ("apt", "debs", "engine", "objects"):
        (place / name).symlink_to(CACHE_DIR.get() / name)
    for path in CACHE_DIR.get().glob("tsc-*"):
        shutil.copy(path, place)


SMALL_DISK = """
mount -t tmpfs -o size=$1,mode=700 none "$2" || exit 99
for name in "$3"/*; do
    case $name in *images | *kernels | *translations) ;; *) ln -s "$name" "$2" ;; esac
done
shift 3
exec "$@"
"""


@pytest.mark.parametrize("size", ["64k", "24m", *LONG * ["1m", "6m", "15m", "19m"]])
def test_full_disk_while_caching(image, tmp_path, size):
    """A file system with less room than image, kernel and translations take, in steps."""
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode != 0:
        pytest.skip("needs user namespaces for a small file system")
    command = ["unshare", "-Urm", "sh", "-c", SMALL_DISK, "-", size, tmp_path, CACHE_DIR.get()]
    done = subprocess.run(
        [*command, *COMMAND, "--", "echo", "here"],
        env=ENVIRONMENT | {"RINGZERO_CACHE_DIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WAIT,
    )
    if size in ("19m", "24m"):
        # The image fits. Without the kernel unpacked and translations kept it works all the same.
        assert (done.returncode, done.stdout) == (0, b"here\n"), done.stderr
    else:
        check(done, 4, "RINGZERO_CACHE_DIR")
        assert b"No space left" in done.stderr or b" left\n" in done.stderr


def test_file_size_limit_while_caching(image, tmp_path):
    """As a full disk, for every file on its own: `ulimit -f`, in 512-byte blocks."""
    linked_cache(tmp_path)
    environment = {"RINGZERO_CACHE_DIR": str(tmp_path)}
    command = ["sh", "-c", 'ulimit -f 4096; exec "$@"', "-", *COMMAND, "--", "echo", "here"]
    done = subprocess.run(
        command, env=ENVIRONMENT | environment, stdin=subprocess.DEVNULL, capture_output=True
    )
    check(done, 4, "cannot write")
    assert not list(tmp_path.glob("images/.partial-*"))
    if LONG:
        # And with room, the next start works.
        assert run("--", "echo", "here", env=environment).stdout == b"here\n"


# --- guests that end badly -----------------------------------------------------------


def test_triple_fault(tmp_path):
    # mov eax, 0x12345678; ud2, where no exception can be delivered.
    path = kernel_of(tmp_path, bytes.fromhex("b878563412 0f0b"))
    done = run("--kernel", path)
    check(done, 125, "triple fault", "rax=0x0000000012345678", f"rip={ENTRY + 5:#018x}")
    assert re.search(r"code: .*b8 78 56 34 12 <0f> 0b", done.stderr.decode())


def test_triple_fault_of_a_guest_that_jumped_away(tmp_path):
    # mov rax, 0x7fffffff0000; jmp rax: nothing is mapped there, so no code is to be shown.
    path = kernel_of(tmp_path, bytes.fromhex("48b80000ffffff7f0000 ffe0"))
    check(run("--kernel", path), 125, "triple fault", "code: not in memory")


def test_panic(image):
    done = run("--", "sh", "-c", "echo c > /proc/sysrq-trigger")
    check(done, 125, "the guest's kernel panicked: sysrq triggered crash", "last words")


def test_panic_on_the_users_serial_line(image):
    """Where the user has seen the panic, it is not said again."""
    done = run("--kernel", image.kernel, "--append", "console=ttyS0 panic=-1")
    check(done, 125, "panicked: VFS: Unable to mount root fs")
    assert b"Kernel panic - not syncing: VFS" in done.stdout
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("code", ["ebfe", "faebfe", "f4ebfd", "fbebfe"])
def test_guest_that_spins(tmp_path, code):
    """jmp $; the same with interrupts off; hlt in a loop; with interrupts on."""
    check(run("--kernel", kernel_of(tmp_path, bytes.fromhex(code)), "--timeout", "1"), 124)


def test_linux_that_spins(image):
    done = run("--timeout", "3", "--", "sh", "-c", "while :; do :; done")
    check(done, 124, "--timeout")


def test_reboot_is_no_triple_fault(image):
    done = run("--stats", "--", "reboot", "-f")
    assert done.returncode == 125
    assert b"the guest ended (reboot)" in done.stderr
    # Through the reset register, and not by the last resort.
    assert re.search(r"power:\s+reads\s+\d+\s+writes\s+1\n", done.stderr.decode())


def test_compressed_kernel_that_is_none(tmp_path):
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage(b"\x1f\x8b" + bytes(5000)))
    check(run("--kernel", path), 5, "gzip payload")
