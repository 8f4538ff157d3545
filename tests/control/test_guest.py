"""Machines in processes of their own with a real guest: commands, terminals, copies, the end."""

import os
import subprocess
import sys
import threading
import time

import pytest

from ringzero.api.table import get
from ringzero.config.devices.share import ShareConfig
from ringzero.config.machine import MachineConfig
from ringzero.control.host import claims, client
from ringzero.control.host.launch import launch
from ringzero.errors import ConflictError, GuestError, HostError
from ringzero.host.progress import QUIET
from ringzero.records import replace
from ringzero.settings import Jail
from tests.control.fake import Taker

# Some thousands of signals in `make fuzz`.
FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))
pytestmark = [pytest.mark.boot, pytest.mark.engine]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    where = tmp_path_factory.mktemp("machines")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RINGZERO_MACHINES_DIR", str(where / "m"))
        # A jailed machine's snapshots are in the store that it began with.
        patch.setenv("RINGZERO_DATA_DIR", str(where))
        yield where
        for machine in client.machines():
            machine.remove(force=True)


@pytest.fixture(scope="module")
def web(place):
    """A machine with a disk that it writes to, and a service that counts."""
    from ringzero.image.micro import ensure

    try:
        image = ensure()
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    disk = place / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    config = MachineConfig.create(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=image.command_line,
        memory="256M",
        engine="soft",
        agent=True,
        disks=[f"{disk},format=raw"],
    ).with_room_for_shares()
    service = "i=0; while :; do i=$((i+1)); echo tick $i; echo $i >/tmp/ticks; sleep 0.2; done"
    claim = claims.create("web", config, command=("sh", "-c", service))
    launch(claim, progress=QUIET)
    return client.machine("web")


def output(machine, script):
    done = machine.run(["sh", "-c", script])
    assert (done.stderr, done.exit_code) == (b"", 0)
    return done.stdout.decode()


def test_commands_run_beside_the_service_and_each_other(web):
    began = time.monotonic()
    slow = threading.Thread(target=web.run, args=(["sleep", "3"],), daemon=True)
    slow.start()
    assert output(web, "echo one; exit 0") == "one\n"
    assert web.run(["cat"], input=b"two\0\n").stdout == b"two\0\n"
    assert web.run(["sh", "-c", "exit 9"]).exit_code == 9
    assert time.monotonic() - began < 3 or slow.is_alive()
    slow.join()


def test_a_terminal_of_its_own(web):
    words = ["sh", "-c", "tty; stty size; read x; echo got $x; exit 6"]
    taker = Taker()
    typist = threading.Thread(
        target=lambda: taker.begun.wait() and taker.link.send(b"hello\r"), daemon=True
    )
    typist.start()
    answer = web.exec(taker, words, stdin=True, tty=True, rows=33, columns=99)
    typist.join()
    assert answer == {"status": 6}
    lines = taker.shown.decode().split()
    assert lines[0].startswith("/dev/hvc") or "hello" in lines[0]
    assert "33" in lines
    assert "99" in lines
    assert lines[-2:] == ["got", "hello"]


def test_a_client_that_goes_takes_its_command_with_it(web):
    with web.session() as session:
        session._request(get("exec"), {"words": ["sleep", "1234"]})
        deadline = time.monotonic() + 10
        while "sleep 1234" not in output(web, "ps"):
            assert time.monotonic() < deadline
    while "sleep 1234" in output(web, "ps"):
        assert time.monotonic() < deadline


def test_pause_stands_still(web):
    web.pause()
    log = web.directory.file("console.log")
    time.sleep(0.1)
    before = log.stat().st_size
    time.sleep(0.6)
    assert log.stat().st_size == before
    web.resume()
    deadline = time.monotonic() + 10
    while log.stat().st_size == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_copies_are_machines_of_their_own(web):
    output(web, "echo original | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null")
    copies = web.copies(3)
    output(web, "echo changed | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null")
    machines = [web, *copies]
    look = "echo 3 >/proc/sys/vm/drop_caches; head -n1 /dev/vda"
    assert [output(m, look) for m in machines] == ["changed\n", *["original\n"] * 3]
    for copy in copies:
        output(copy, f"echo {copy.name} | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null")
    assert [output(m, look) for m in machines[1:]] == [f"{c.name}\n" for c in copies]
    assert [output(m, "hostname") for m in copies] == [f"{c.name}\n" for c in copies]
    identities = [output(m, "cat /proc/sys/kernel/random/uuid") for m in machines]
    assert len(set(identities)) == 4
    behind = [time.time() - float(output(m, "date +%s")) for m in machines]
    assert max(map(abs, behind)) < 3, behind
    # The machine's own command goes on in each copy, and says so in its log.
    ticks = [int(output(m, "cat /tmp/ticks")) for m in machines]
    time.sleep(1)
    assert all(int(output(m, "cat /tmp/ticks")) > t for m, t in zip(machines, ticks, strict=True))
    for copy in copies:
        assert "tick" in copy.directory.tail("console.log", 100)
    assert output(copies[0], "dmesg -l err,crit,alert,emerg 2>/dev/null || true") == output(
        web, "dmesg -l err,crit,alert,emerg 2>/dev/null || true"
    )


def test_folders_come_to_a_machine_that_began_with_none(web, place):
    shared = place / "shared"
    shared.mkdir()
    (shared / "x").write_text("shared")
    with pytest.raises(ConflictError, match="is jailed"):
        web.share(f"{shared}:/shared")
    config = replace(web.directory.machine().machine_config(), devices=())
    launch(claims.create("free", config.with_room_for_shares(), jail=Jail.NONE), progress=QUIET)
    free = client.machine("free")
    assert free.shares() == []
    free.share(f"{shared}:/shared")
    assert output(free, "cat /shared/x; echo y >/shared/y") == "shared"
    assert (shared / "y").read_text() == "y\n"
    (copy,) = free.copies(1)
    assert output(copy, "cat /shared/y") == "y\n"
    copy.remove(force=True)
    free.unshare("/shared")
    assert free.run(["cat", "/shared/x"]).exit_code == 1
    free.remove(force=True)


def test_a_folder_that_cannot_be_mounted_ends_the_start_with_its_reason(web, place):
    share = ShareConfig(place, "/proc/nothing/here")
    config = replace(web.directory.machine().machine_config(), devices=(share,))
    reason = r"a shared folder cannot be mounted: .*/proc/nothing"
    with pytest.raises(GuestError, match=reason) as told:
        launch(claims.create("broken", config), progress=QUIET)
    assert told.value.exit_code == 125
    broken = client.machine("broken")
    broken.wait()
    broken.remove()


def test_memory_of_a_copy_is_not_changed_by_later_copies(web):
    """The original freezes again and again while copies in other processes look at its pages."""
    fill = "head -c 3000000 /dev/urandom | dd of=/tmp/data conv=notrunc 2>/dev/null"
    look, made = "md5sum </tmp/data", []
    for number in range(3):
        output(web, fill)
        seen = output(web, look)
        made.append((seen, web.copies(name=f"memory-{number}")[0]))
    assert len({seen for seen, _ in made}) == 3
    assert [output(copy, look) for _, copy in made] == [seen for seen, _ in made]
    for _, copy in made:
        copy.kill()
        copy.remove()


def test_sessions_stay_with_the_original(web):
    """What somebody runs in the original is ended in a copy, and goes on in the original."""
    ends = []

    def session():
        try:
            ends.append(web.run(["sh", "-c", "sleep 4; echo whole"]).stdout)
        except GuestError as fault:
            ends.append(fault)

    thread = threading.Thread(target=session, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while "sleep 4" not in output(web, "ps"):
        assert time.monotonic() < deadline
    (copy,) = web.copies(name="copy")
    while "sleep 4" in output(copy, "ps"):
        assert time.monotonic() < deadline
    thread.join()
    assert ends == [b"whole\n"]


def test_taken_back_it_goes_on_with_its_service(web, place):
    from ringzero.vm.saved.store import Store

    store = Store(place / "snapshots")
    output(web, "echo then | tee /tmp/text | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null")
    web.snapshot("then", str(store.root))
    output(web, "echo now | tee /tmp/text | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null")
    web.revert(str(store.get("then").path))
    look = "echo 3 >/proc/sys/vm/drop_caches; cat /tmp/text; head -n1 /dev/vda"
    assert output(web, look) == "then\nthen\n"
    ticks = int(output(web, "cat /tmp/ticks"))
    deadline = time.monotonic() + 10
    while f"tick {ticks + 2}\n" not in web.directory.tail("console.log", 100):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    output(web, "echo changed | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null")


def test_stop_is_orderly_whatever_runs(web):
    for machine in list(client.machines()):
        assert machine.directory.alive, machine.directory.tail("console.log", 6000)
        assert machine.stop().reason == "poweroff"
        assert "tick" in machine.directory.tail("console.log", 1000)
    # The first machine's disk has what it was told to keep.
    assert (web.directory.path.parent.parent / "disk.img").read_bytes()[:8] == b"changed\n"


def test_after_its_end_it_is_started_again_and_taken_back(web, place):
    from ringzero.vm.saved.store import Store

    web.start()
    look = "echo 3 >/proc/sys/vm/drop_caches; cat /tmp/text 2>&1; head -n1 /dev/vda"
    assert output(web, look).endswith("No such file or directory\nchanged\n")
    web.kill()
    web.revert(str(Store(place / "snapshots").get("then").path))
    assert output(web, look) == "then\nthen\n"
    assert web.stop().reason == "poweroff"
    assert (place / "disk.img").read_bytes()[:5] == b"then\n"


@pytest.mark.parametrize("flags", [[], ["-it"]], ids=["plain", "terminal"])
def test_signals_at_random_moments_end_exec_and_its_command(web, flags):
    if not web.directory.alive:
        web.start()
    rounds = 25 if FUZZ == 1 else 500 * FUZZ
    seed = str(os.getpid())
    words = ["exec", *flags, "web", "sleep", "31"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.signalled", str(rounds), seed, *words],
        capture_output=True,
        text=True,
        timeout=280 * FUZZ,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]
    # None of the commands is left in the guest.
    left = "ps | grep -c '[s]leep 31' || true"
    assert output(web, left).strip() == "0"
