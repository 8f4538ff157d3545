"""Files copied into a guest and out of it: by the client, by the command, by `Machine`."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from ringzero.api.copying import PREFIX, Rule, absolute, rule
from ringzero.config.machine import MachineConfig
from ringzero.control.host import claims, client, transfer
from ringzero.control.host.launch import launch
from ringzero.errors import ControlError, GuestError, HostError, InvalidValueError, RingzeroError
from ringzero.host.progress import QUIET


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """A machine of its own process."""
    from ringzero.image.micro import ensure

    try:
        image = ensure()
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RINGZERO_MACHINES_DIR", str(tmp_path_factory.mktemp("machines") / "m"))
        config = MachineConfig.create(
            kernel=image.kernel,
            initrd=image.initrd,
            command_line=image.command_line,
            memory="256M",
            agent=True,
        )
        launch(claims.create("web", config), progress=QUIET)
        machine = client.machine("web")
        yield machine
        with contextlib.suppress(RingzeroError):
            machine.remove(force=True)


@pytest.fixture
def tree(tmp_path):
    where = tmp_path / "tree"
    (where / "sub").mkdir(parents=True)
    (where / "a").write_bytes(b"a")
    (where / "sub" / "b c").write_bytes(b"b")
    (where / ".hidden").write_bytes(b"h")
    (where / "a").chmod(0o750)
    (where / "link").symlink_to("a")
    return where


def said(machine, script):
    return machine.run(script, text=True, check=True).stdout


def ringzero(*words, **how):
    words = [sys.executable, "-m", "ringzero", *words]
    return subprocess.run(words, capture_output=True, timeout=60, check=False, **how)


def leftovers(machine):
    deadline = time.monotonic() + 10
    while found := said(machine, f"find / -xdev -name '{PREFIX}*'"):
        if time.monotonic() > deadline:
            return found
        time.sleep(0.1)
    return ""


@pytest.mark.boot
@pytest.mark.engine
def test_a_folder_goes_in_and_comes_back(web, tree, tmp_path):
    web.copy_in(tree, "/tmp")
    web.copy_in(tree, "/tmp/other")
    web.copy_in(f"{tree}/.", "/tmp/other")
    assert said(web, "stat -c '%a %u' /tmp/tree/a; readlink /tmp/other/link") == "750 0\na\n"
    assert said(web, "find /tmp/other | sort") == said(
        web, "find /tmp/tree | sed s,tmp/tree,tmp/other, | sort"
    )
    web.copy_out("/tmp/tree", tmp_path / "back")
    assert (tmp_path / "back" / "sub" / "b c").read_bytes() == b"b"
    assert (tmp_path / "back" / "a").stat().st_mode & 0o7777 == 0o750
    assert str((tmp_path / "back" / "link").readlink()) == "a"
    web.copy_out("/tmp/tree/.", tmp_path)
    assert (tmp_path / ".hidden").read_bytes() == b"h"
    assert not leftovers(web)


@pytest.mark.boot
@pytest.mark.engine
def test_the_rules_of_cp_in_the_guest(web, tree):
    said(web, "rm -rf /r; mkdir -p /r/folder; echo old >/r/file; echo keep >/r/folder/mine")
    web.copy_in(tree / "a", "/r/file")
    web.copy_in([tree / "a", tree / "sub"], "/r/folder")
    web.copy_in(tree / "a", "r/relative")
    assert said(web, "cat /r/file /r/relative; ls -A /r/folder; cat /r/folder/mine") == (
        "aaa\nmine\nsub\nkeep\n"
    )
    for source, target, fault in (
        (tree / "a", "/r/none/", "no folder"),
        (tree / "a", "/none/x", "no folder"),
        (tree, "/r/file", "is a file"),
        ([tree, tree / "a"], "/r/none", "no folder"),
        (tree / "sub", "/r/folder/sub/b c", "is a file"),
    ):
        with pytest.raises(GuestError, match=fault):
            web.copy_in(source, target)
    said(web, "mkdir -p /r/clash/a")
    with pytest.raises(GuestError, match="is a folder"):
        web.copy_in(tree / "a", "/r/clash")
    with pytest.raises(GuestError, match="there is no /nothing"):
        web.copy_out("/nothing", tree)
    assert not leftovers(web)


@pytest.mark.boot
@pytest.mark.engine
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_copy_that_is_broken_off_leaves_nothing(web, tmp_path, ending):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 32)
    said(web, "mkdir -p /b; echo old >/b/large")
    words = [sys.executable, "-m", "ringzero", "cp", "-q", "large", "web:/b"]
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL) as child:
        while not said(web, f"ls -A /b | grep '^{PREFIX}' || true"):
            assert child.poll() is None
        child.send_signal(ending)
    assert not leftovers(web)
    assert said(web, "cat /b/large") == "old\n"
    said(web, "head -c 100000000 /dev/zero >/b/large")
    words = [sys.executable, "-m", "ringzero", "cp", "-q", "web:/b/large", str(tmp_path / "out")]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as child:
        while not any(tmp_path.glob(f"{PREFIX}*/*")):
            if child.poll() is not None:
                break
        child.send_signal(ending)
    if ending == signal.SIGINT:
        assert not [name for name in os.listdir(tmp_path) if name.startswith(PREFIX)]
    assert child.returncode == 0 or not (tmp_path / "out").exists()


@pytest.mark.boot
@pytest.mark.engine
def test_archives_by_the_command(web, tree):
    made = subprocess.run(["tar", "cz", "tree"], cwd=tree.parent, capture_output=True, check=True)
    said(web, "rm -rf /s; mkdir /s")
    assert ringzero("cp", "-", "web:/s", input=made.stdout).returncode == 0
    assert said(web, "cat '/s/tree/sub/b c'") == "b"
    done = ringzero("cp", "web:/s/tree", "-")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        assert "./tree/sub/b c" in archive.getnames()
    done = ringzero("cp", "-", "web:/none", input=made.stdout)
    assert (done.returncode, done.stderr) == (
        125,
        b"ringzero: error: /none is no folder in the guest\n",
    )


@pytest.mark.boot
@pytest.mark.engine
def test_a_guest_without_room(web, tmp_path):
    said(web, "mkdir -p /small; mount -t tmpfs -o size=1m small /small")
    (tmp_path / "large").write_bytes(bytes(3 << 20))
    with pytest.raises(GuestError, match="No space left"):
        web.copy_in(tmp_path / "large", "/small")
    assert said(web, "ls -A /small; umount /small") == ""


@pytest.mark.boot
@pytest.mark.engine
def test_a_source_that_fails_midway(web, tmp_path):
    (tmp_path / "a").write_bytes(bytes(10 << 20))

    class Breaking:
        def __init__(self):
            self.left = 10

        def read(self, size):
            self.left -= 1
            if self.left == 0:
                raise HostError("it broke")
            return bytes(size)

    with pytest.raises(HostError, match="it broke"):
        transfer.put_stream(web, Breaking(), "/tmp", QUIET)
    with pytest.raises((GuestError, ControlError)):
        transfer.put_stream(web, io.BytesIO(b"no archive" * 1000), "/tmp", QUIET)
    assert not leftovers(web)


@pytest.mark.boot
@pytest.mark.engine
def test_a_machine_object_copies_as_well(tree, tmp_path):
    import ringzero

    try:
        machine = ringzero.Machine(image="micro", memory="256M", nets=())
    except HostError as fault:
        pytest.skip(fault.message)
    with machine:
        machine.copy_in(tree, "/tmp/in")
        machine.run("head -c 20000000 /dev/urandom >/tmp/in/large", check=True)
        machine.copy_out("/tmp/in", tmp_path / "out")
        assert (tmp_path / "out" / "large").stat().st_size == 20_000_000
        machine.copy_in(tmp_path / "out" / "large", "/tmp/again")
        assert machine.run("cmp /tmp/in/large /tmp/again").exit_code == 0
        with pytest.raises(GuestError, match="there is no"):
            machine.copy_out("/none", tmp_path)
        with pytest.raises(GuestError, match="is a file"):
            machine.copy_in(tree, "/tmp/again")


def test_words():
    assert absolute("a/b") == "/a/b"
    assert rule("into") is Rule.INTO
    with pytest.raises(InvalidValueError, match="no rule is called"):
        rule("onto")
    with pytest.raises(InvalidValueError):
        absolute("")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["a"], "one path only"),
        (["a", "b"], "no path is a machine's"),
        (["web:/a", "db:/b"], "both sides"),
        (["web:/a", "b", "db:/c"], "others the host's"),
        (["web:/a", "web:/b", "c"], "at a time"),
        (["a", "web:"], "has no path"),
    ],
)
def test_unclear_operands(words, fault):
    done = ringzero("cp", *words)
    assert done.returncode == 2
    assert fault in done.stderr.decode()
