"""The agent in guests of other systems: brought by an initrd, alive after their change of root."""

import io
import subprocess

import pytest

from ringzero import Machine
from ringzero.errors import GuestImageError
from ringzero.image import agent, cpio, micro
from ringzero.image.cpio import Entry

# What an initrd of a distribution does, in short: it finds the root and becomes its init.
_INIT = b"""#!/bin/busybox sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o noexec run /run
sleep 0.3
mkdir /newroot
mount -t tmpfs root /newroot
cd /newroot
mkdir dev proc sys run root etc tmp
cp -a /usr /bin /lib /sbin .
echo foreign >etc/hostname
cat >usr/sbin/init <<.
#!/bin/busybox sh
hostname theirs
trap 'echo asked; poweroff -f' USR2
while :; do sleep 0.1; done
.
chmod +x usr/sbin/init
for place in dev proc sys run; do mount -o move /$place /newroot/$place; done
exec switch_root /newroot /sbin/init
"""


# What sysvinit does: its scripts make the root writable, then it tells its runlevel.
_SCRIPTS = b"""
mount -t tmpfs -o remount,ro root /newroot
exec switch_root /newroot /sbin/init
"""
_SYSVINIT = b"""cat >usr/sbin/init <<.
#!/bin/busybox sh
sleep 1
mount -o remount,rw /
echo N 2 >/run/level
while :; do sleep 0.1; done
.
echo '#!/bin/busybox sh' >usr/sbin/runlevel
echo 'cat /run/level || echo unknown' >>usr/sbin/runlevel
chmod +x usr/sbin/runlevel
echo id:2:initdefault: >etc/inittab
chmod +x usr/sbin/init
"""


# What runit does: its first stage makes the root writable, its second starts services.
_RUNIT = b"""cat >usr/sbin/init <<.
#!/bin/busybox sh
exec /sbin/runit
.
cat >usr/sbin/runit <<.
#!/bin/busybox sh
mount -o remount,rw /
sleep 1
echo N 2 >/run/level
/sbin/runsvdir &
while :; do sleep 0.1; done
.
cat >usr/sbin/runsvdir <<.
#!/bin/busybox sh
while :; do sleep 0.1; done
.
chmod +x usr/sbin/init usr/sbin/runit usr/sbin/runsvdir
"""


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Kernel and initrd of a system that knows nothing of ringzero."""
    return made(tmp_path_factory.mktemp("foreign"), _INIT)


def made(folder, script, more=()):
    """Return kernel and initrd of a system with such a first process, and `more` entries."""
    image = micro.ensure()
    ours = ("init", "sbin/launch", "sbin/relay", "sbin/identity", "sbin/share", "sbin/become")
    entries = [
        entry
        for entry in cpio.read(image.initrd.read_bytes())
        if entry.name not in {*ours, *(f"usr/{name}" for name in ours)}
    ]
    entries += [Entry("init", 0o100755, script), *more]
    out = io.BytesIO()
    cpio.write(entries, out)
    where = folder / "initrd"
    # As distributions have it: compressed, and of any length.
    packed = subprocess.run(["gzip", "-1"], input=out.getvalue(), capture_output=True, check=True)
    where.write_bytes(packed.stdout)
    line = image.command_line.replace(" ringzero.agent", "")
    return {"kernel": image.kernel, "initrd": where, "command_line": line, "memory": "512M"}


@pytest.mark.boot
@pytest.mark.engine
def test_commands_and_files_in_another_systems_guest(foreign, tmp_path):
    with Machine(**foreign, agent=True) as vm:
        done = vm.run(
            "hostname; cat /etc/hostname; pwd; cat /proc/1/cmdline", text=True, timeout=90
        )
        assert done.stdout.startswith("theirs\nforeign\n/\n"), done
        assert "/sbin/init" in done.stdout
        done = vm.run(["sh", "-c", "cat; exit 3"], input="in", text=True, timeout=60)
        assert (done.stdout, done.exit_code) == ("in", 3)
        (tmp_path / "a").write_bytes(b"a")
        vm.copy_in(tmp_path / "a", "/root")
        vm.copy_out("/root/a", tmp_path / "b")
        assert (tmp_path / "b").read_bytes() == b"a"
        (copy,) = vm.fork(start=True)
        with copy:
            assert copy.run("echo alive; head -c 8 /dev/urandom | od -x", timeout=60).exit_code == 0


@pytest.mark.boot
@pytest.mark.engine
@pytest.mark.parametrize("first", [_SYSVINIT, _RUNIT], ids=["sysvinit", "runit"])
def test_commands_wait_for_the_scripts_of_the_boot(tmp_path, first):
    script = _INIT.replace(b"chmod +x usr/sbin/init\n", b"chmod +x usr/sbin/init\n" + first)
    script = script.replace(b"exec switch_root /newroot /sbin/init\n", _SCRIPTS)
    with Machine(**made(tmp_path, script), agent=True) as vm:
        done = vm.run("cat /run/level && echo here >/root/file && cat /root/file", timeout=90)
        assert done.stdout == b"N 2\nhere\n", done


@pytest.mark.boot
@pytest.mark.engine
def test_an_initrd_without_a_run_of_its_own(tmp_path):
    """Alpine's (mkinitfs): it takes along what is mounted."""
    script = _INIT.replace(b"mount -t tmpfs -o noexec run /run\n", b"")
    before, _, after = script.partition(b"for place in dev")
    moves = b"""cat /proc/mounts >/mounts
while read -r _ place _; do
    case $place in
    / | /newroot) ;;
    *) [ ! -d $place ] || { mkdir -p /newroot$place; mount -o move $place /newroot$place; } ;;
    esac
done </mounts
"""
    script = before + moves + after.partition(b"\n")[2]
    mark = Entry("usr/sbin/nlplug-findfs", 0o100755, b"")
    with Machine(**made(tmp_path, script, [mark]), agent=True) as vm:
        done = vm.run("cat /etc/hostname; ls -d /ringzero", text=True, timeout=90)
        assert (done.stdout, done.exit_code) == ("foreign\n", 1), done


def test_no_initrd_no_agent(foreign):
    with pytest.raises(GuestImageError, match="this kernel has none"):
        agent.brought(memoryview(b""), "quiet")
    with pytest.raises(GuestImageError, match="rdinit="):
        agent.brought(memoryview(b"x"), "quiet rdinit=/mine")


def test_the_archive_begins_where_the_kernel_looks(foreign):
    whole, line = agent.brought(memoryview(b"12345"), "quiet")
    assert line == f"quiet {agent.PARAMETER}"
    assert bytes(whole[:8]) == b"12345\0\0\0"
    names = [entry.name for entry in cpio.read(bytes(whole[8:]))]
    assert names[0] == "ringzero"
    assert {"ringzero/start", "ringzero/init", "ringzero/bin/busybox", "ringzero/sbin/relay"} <= {
        *names
    }
