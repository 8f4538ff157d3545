"""Shared folders in real guests: both ways, read-only, and across forks and snapshots."""

import stat

import pytest

from ringzero import Machine
from ringzero.config.devices.share import ShareConfig
from ringzero.errors import ConfigError, ConflictError, GuestError, NotFoundError
from ringzero.image import micro
from ringzero.vm.saved.store import Store

pytestmark = [pytest.mark.boot, pytest.mark.engine]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def vm(folder):
    micro.ensure()
    (folder / "read only").mkdir()
    (folder / "file").write_text("one file")
    shares = [f"{folder}:/m", f"{folder}/read only:/a place/ro:ro", f"{folder}/file:/etc/one"]
    with Machine(image="micro", memory="256M", engine="soft", shares=shares) as machine:
        machine.run("true", timeout=120)
        yield machine


def told(machine, command):
    return machine.run(command, timeout=60, text=True, check=True).stdout.strip()


def test_files_go_both_ways(vm, folder):
    (folder / "a").write_text("from the host")
    assert told(vm, "cat /m/a; echo from the guest >/m/b; ln /m/a /m/c; mv /m/b /m/d") == (
        "from the host"
    )
    assert (folder / "d").read_text() == "from the guest\n"
    assert (folder / "c").stat().st_ino == (folder / "a").stat().st_ino
    assert told(vm, "cat /etc/one") == "one file"


def test_a_read_only_share(vm, folder):
    (folder / "read only" / "x").write_text("x")
    assert told(vm, "cat '/a place/ro/x'") == "x"
    done = vm.run("touch '/a place/ro/y'", timeout=60, text=True)
    assert "Read-only file system" in done.stderr
    assert "ro," in told(vm, "grep 'place' /proc/mounts")


def test_what_the_host_writes_is_seen_by_whoever_opens(vm, folder):
    for text in ("short", "a longer one", "s"):
        (folder / "changing").write_text(text)
        assert told(vm, "cat /m/changing; stat -c %s /m/changing") == f"{text}{len(text)}"
        (folder / "new").write_text(text * 2)
        (folder / "new").rename(folder / "changing")
        assert told(vm, "cat /m/changing") == text * 2
    (folder / "changing").unlink()
    assert vm.run("cat /m/changing", timeout=60).exit_code == 1


def test_set_id_bits_and_devices_are_the_guest_s_own(vm, folder):
    told(vm, "cp /bin/busybox /m/su; chmod 4755 /m/su; mknod /m/null c 1 3; mkfifo /m/fifo")
    told(vm, "chown 12:34 /m/su; chmod 4755 /m/su; echo nothing >/m/null")
    assert told(vm, "stat -c '%a %u %g' /m/su") == "4755 12 34"
    assert told(vm, "(echo through >/m/fifo) & cat /m/fifo") == "through"
    for name in ("su", "null", "fifo"):
        found = (folder / name).lstat()
        assert stat.S_ISREG(found.st_mode)
        assert not found.st_mode & 0o7000


def test_a_fork_goes_on_with_its_open_files(vm, folder):
    told(vm, "exec 9>/m/log; echo one >&9; (sleep 1.5; echo two >&9) & cd /m; echo $$ >/dev/null")
    (copy,) = vm.fork(start=True)
    with copy:
        assert told(copy, "cat /m/log")[:3] == "one"
        told(copy, "echo from the copy >/m/copied")
        assert (folder / "copied").read_text() == "from the copy\n"
        told(copy, "sleep 2")
    told(vm, "sleep 2")
    # Both wrote where the file ended for them.
    assert (folder / "log").read_text() == "one\ntwo\n"


def test_a_snapshot_comes_back_with_its_shares(vm, folder, tmp_path):
    store = Store(tmp_path)
    (folder / "s").write_text("before")
    told(vm, "cat /m/s; (while sleep 0.1; do cat /m/s >/tmp/seen; done) 2>/dev/null &")
    vm.snapshot("ready", store=store)
    (folder / "s").write_text("after")
    with store.get("ready").start() as copy:
        assert told(copy, "cat /m/s") == "after"
        assert told(copy, "ls '/a place/ro'") == "x"


def test_folders_come_and_go_while_the_machine_runs(folder, tmp_path):
    (tmp_path / "x").write_text("later")
    (tmp_path / "sub").mkdir()
    with Machine(image="micro", memory="256M", engine="soft", share="later") as machine:
        assert machine.run("grep virtiofs /proc/mounts", timeout=120).exit_code == 1
        machine.shares.add(ShareConfig.parse(f"{tmp_path}:/later:ro"))
        machine.shares.add(ShareConfig.parse(f"{tmp_path}/sub:/sub"))
        assert told(machine, "cat /later/x; echo y >/sub/y") == "later"
        assert (tmp_path / "sub" / "y").read_text() == "y\n"
        with pytest.raises(ConflictError, match="another folder"):
            machine.shares.add(ShareConfig.parse(f"{tmp_path}:/sub"))
        with pytest.raises(ConfigError, match="does not exist"):
            machine.shares.add(ShareConfig.parse(f"{tmp_path}/none:/none"))
        (copy,) = machine.fork(start=True)
        with copy:
            assert told(copy, "cat /later/x") == "later"
        told(machine, "exec sleep 60 </later/x >/dev/null 2>&1 &")
        with pytest.raises(ConflictError, match="does not let /later go"):
            machine.shares.remove("/later")
        machine.shares.remove("/later", force=True)
        with pytest.raises(NotFoundError, match="at /later"):
            machine.shares.remove("/later")
        assert machine.run("cat /later/x", timeout=60).exit_code == 1
        assert told(machine, "cat /sub/y") == "y"
        assert [share.target for share in machine.shares.all] == ["/sub"]
        # What is left keeps its number, in copies too.
        (copy,) = machine.fork(start=True)
        with copy:
            assert told(copy, "cat /sub/y") == "y"
        machine.shares.remove("/sub/")
        machine.shares.add(ShareConfig.parse(f"{tmp_path}:/again"))
        assert told(machine, "cat /again/x") == "later"


def test_a_kernel_without_virtio_fs_has_them_by_9p(tmp_path):
    """Which kernel it is nobody knows before it runs: it is no image's."""
    image = micro.ensure(micro.Recipe("full", kernel="linux-image-amd64"))
    (tmp_path / "vmlinuz").symlink_to(image.kernel)
    (tmp_path / "shared" / "sub").mkdir(parents=True)
    (tmp_path / "shared" / "x").write_text("by 9p")
    with Machine(
        kernel=tmp_path / "vmlinuz",
        initrd=image.initrd,
        command_line=f"{image.command_line} module_blacklist=virtiofs",
        agent=True,
        memory="512M",
        engine="soft",
        shares=[f"{tmp_path}/shared:/m", f"{tmp_path}/shared/sub:/s:ro"],
    ) as machine:
        assert told(machine, "cat /m/x; grep -c ' /m 9p ' /proc/mounts") == "by 9p1"
        told(machine, "mkdir /m/d; echo y >/m/y; mv /m/y /m/d; ln /m/d/y /m/z; cp -a /m/d /m/e")
        assert (tmp_path / "shared" / "e" / "y").read_text() == "y\n"
        assert machine.run("touch /s/no", timeout=60).exit_code == 1
        told(machine, "cp /bin/busybox /m/busybox; chown 5:6 /m/busybox; chmod 4755 /m/busybox")
        assert told(machine, "stat -c '%a %u %g' /m/busybox; /m/busybox true") == "4755 5 6"
        assert not (tmp_path / "shared" / "busybox").stat().st_mode & 0o7000
        told(machine, "exec 9>/m/log; echo one >&9; (sleep 1; echo two >&9) &")
        (copy,) = machine.fork(start=True)
        with copy:
            assert told(copy, "cat /m/x; echo >/m/copied") == "by 9p"
        assert (tmp_path / "shared" / "copied").exists()
        machine.shares.add(ShareConfig.parse(f"{tmp_path}/shared:/later:ro"))
        assert told(machine, "cat /later/x") == "by 9p"
        machine.shares.remove("/later")
        assert machine.run("cat /later/x", timeout=60).exit_code == 1
        told(machine, "until grep -q two /m/log; do sleep 0.1; done")


def test_a_folder_that_cannot_be_mounted_is_told_with_its_reason(tmp_path):
    micro.ensure()
    place = "/proc/nothing/here"
    with (
        Machine(image="micro", memory="256M", engine="soft", share=f"{tmp_path}:{place}") as vm,
        pytest.raises(GuestError, match=r"a shared folder cannot be mounted: .*/proc/nothing"),
    ):
        vm.run("true", timeout=120)


def test_a_folder_that_is_not_there(tmp_path):
    micro.ensure()
    with pytest.raises(ConfigError, match="does not exist"):
        Machine(image="micro", engine="soft", share=f"{tmp_path}/none:/m")
