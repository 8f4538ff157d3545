"""`ringzero serve` killed in the middle of what libvirt's clients ask: nothing is half there.

RINGZERO_KILLS=N has it killed N times; the default is two.
"""

import itertools
import os
import random
import signal
import subprocess
import sys
import time

from ringzero.control.host import client
from tests.doors.libvirt.test_virsh import DOMAIN, Virsh, pytestmark

__all__ = ["pytestmark"]
KILLS = int(os.environ.get("RINGZERO_KILLS", "2"))
# The daemon with machines without guests, as `ringzero serve` is otherwise.
SERVE = """
import sys
from ringzero.control.host import launch
from tests.control.fake import PROGRAM
launch.PROGRAM = PROGRAM
from ringzero.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
ALIVE = ("running", "paused", "starting", "stopping")
STEPS = (
    "define",
    "start",
    "suspend",
    "resume",
    "attach",
    "setmem",
    "destroy",
    "detach",
    "undefine",
)


def serve(where, socket):
    """Start a daemon; return its process when it listens."""
    words = ["serve", "--rest", "none", "--libvirt", str(socket)]
    environment = {**os.environ, "RINGZERO_SERVE_DIR": str(where)}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, *words],
        stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    while "libvirt:" not in process.stderr.readline():
        assert process.poll() is None
    return process


def test_the_daemon_is_killed_and_nothing_is_half_there(fakes, root, tmp_path):
    socket, xml, disk = tmp_path / "lv", tmp_path / "d.xml", tmp_path / "a.img"
    xml.write_text(DOMAIN.format(name="d1", more="<title>one</title>", type="qemu"))
    disk.write_bytes(bytes(1 << 20))
    commands = {
        "define": ("define", xml),
        "setmem": ("setmem", "d1", "96M", "--config"),
        "attach": ("attach-disk", "d1", disk, "vdb", "--config"),
        "detach": ("detach-disk", "d1", "vdb", "--config"),
    }
    asking = Virsh(socket)
    steps = itertools.cycle(STEPS)
    chance = random.Random(19)
    for _ in range(KILLS):
        daemon = serve(tmp_path / "serve", socket)
        under_way = None
        try:
            # What comes before the one that is broken off is done in peace.
            for step in itertools.islice(steps, chance.randrange(len(STEPS))):
                words = commands.get(step, (step, "d1"))
                subprocess.run([*asking.words, *map(str, words)], capture_output=True, timeout=60)
            words = commands.get(step := next(steps), (step, "d1"))
            under_way = subprocess.Popen(
                [*asking.words, *map(str, words)],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            time.sleep(chance.random() * 0.08)
        finally:
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()
            daemon.stderr.close()
            if under_way is not None:
                under_way.wait(60)
        _check(tmp_path, socket, asking, disk)


def _check(tmp_path, socket, asking, disk):
    """The next daemon says what is true, and what is there is whole."""
    daemon = serve(tmp_path / "serve", socket)
    try:
        # What was asked of a machine's own process goes on without the daemon, to its end.
        deadline = time.monotonic() + 30
        while fault := _fault(asking, disk):
            assert time.monotonic() < deadline, fault
    finally:
        daemon.terminate()
        daemon.wait(20)
        daemon.stderr.close()


def _fault(asking, disk):
    """Return what is not as it should be, or None."""
    found = client.host().machines()
    if [row[1] for row in asking.table("list", "--all")] != [facts["name"] for facts in found]:
        return "the list is not that of the machines"
    for facts in found:
        machine = client.machine(facts["name"])
        coming, told = machine.next(), asking("dumpxml", "d1", "--inactive")
        there = any(device.get("path") == str(disk) for device in coming["devices"])
        if (str(disk) in told) is not there:
            return f"the disk is in one place only: {told}"
        if asking("domuuid", "d1") != machine.metadata()["uuid"]:
            return "its UUID is not its UUID"
        if coming["memory"] not in (64 << 20, 96 << 20):
            return f"its memory is {coming['memory']}"
        if machine.directory.alive is not (facts["status"] in ALIVE):
            return f"it is {facts['status']}, and alive: {machine.directory.alive}"
    return None
