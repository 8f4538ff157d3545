"""Unmodified virt-manager on a screen that nobody sees, and virt-viewer, against the door."""

import contextlib
import os
import shutil
import subprocess
import time

import pytest

from tests.doors.libvirt.daemon import Daemon

NEEDED = ("virt-manager", "Xvfb", "dbus-run-session", "xdotool", "import")
_MISSING = [name for name in NEEDED if shutil.which(name) is None]
pytestmark = [
    pytest.mark.doors,
    pytest.mark.peer,
    pytest.mark.boot,
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}"),
]
MANAGER = ("virt-manager", "--no-fork")
# Where pictures of the screen are kept beyond the test.
KEPT = os.environ.get("RINGZERO_TEST_PICTURES", "")

# Tells which bus it has, and becomes the program.
_SESSION = 'echo "$DBUS_SESSION_BUS_ADDRESS" >"$0"; exec "$@"'
# Prints the names of all that is shown (AT-SPI), a line each.
READER = """
import gi
gi.require_version("Atspi", "2.0")
from gi.repository import Atspi

def tell(node, depth=0):
    if node is None or depth > 20:
        return
    print(" ".join((node.get_name() or "").split()))
    for number in range(min(node.get_child_count(), 200)):
        tell(node.get_child_at_index(number), depth + 1)

tell(Atspi.get_desktop(0))
"""


@pytest.fixture
def daemon(tmp_path):
    with Daemon(tmp_path) as daemon:
        daemon.ringzero("run", "-d", "--name", "web", "--", "sleep", "1000")
        daemon.ringzero("create", "--name", "idle", "--memory", "64M")
        yield daemon


class Screen:
    """A screen, with a program on it."""

    def __init__(self, daemon, folder, *words):
        self.folder, self.log = folder, folder / "screen.log"
        self._bus = folder / "bus"
        self.environment = {**daemon.environment, "GDK_BACKEND": "x11", "LANG": "C.UTF-8"}
        ours, theirs = os.pipe()
        screen = ["Xvfb", "-displayfd", str(theirs), "-screen", "0", "1280x900x24"]
        self._server = subprocess.Popen(
            screen, pass_fds=[theirs], stderr=subprocess.DEVNULL, env=self.environment
        )
        os.close(theirs)
        with os.fdopen(ours) as told:
            self.environment["DISPLAY"] = f":{told.readline().strip()}"
        with self.log.open("wb") as log:
            self._program = subprocess.Popen(
                [
                    *("dbus-run-session", "--", "sh", "-c", _SESSION, str(self._bus)),
                    *(*words, "--debug", "--connect", daemon.uri),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment,
                start_new_session=True,
            )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in (self._program, self._server):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait(10)

    def run(self, *words):
        """Run a program on the screen; return what it printed."""
        done = subprocess.run(
            list(map(str, words)), capture_output=True, text=True, timeout=60, env=self.environment
        )
        return done.stdout

    def titles(self):
        """Return the titles of all windows."""
        found = self.run("xdotool", "search", "--onlyvisible", "--name", ".+")
        return [self.run("xdotool", "getwindowname", number).strip() for number in found.split()]

    def wait(self, condition, seconds=60):
        """Wait until something holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._program.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, (self.titles(), self.log.read_text()[-3000:])
            time.sleep(0.5)

    def names(self):
        """Return what a reader for the blind finds on the screen; nothing before it has a bus."""
        if not self._bus.exists():
            return []
        session = {**self.environment, "DBUS_SESSION_BUS_ADDRESS": self._bus.read_text().strip()}
        words = ["/usr/bin/python3", "-c", READER]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=session)
        return done.stdout.splitlines()

    def picture(self, name):
        """Keep what is on the screen; return how many colours it has."""
        path = self.folder / name
        self.run("import", "-window", "root", path)
        if KEPT:
            shutil.copy(path, KEPT)
        return int(self.run("identify", "-format", "%k", path))


def test_the_list_of_machines(daemon, tmp_path):
    with Screen(daemon, tmp_path, *MANAGER) as screen:
        screen.wait(lambda: "Virtual Machine Manager" in screen.titles())
        screen.wait(lambda: {"web Running", "idle Shutoff"} <= set(screen.names()))
        assert screen.picture("machines.png") > 16
        assert "Traceback" not in screen.log.read_text()


def test_details_of_a_machine(daemon, tmp_path):
    with Screen(daemon, tmp_path, *MANAGER, "--show-domain-editor", "web") as screen:
        screen.wait(lambda: any(title.startswith("web on") for title in screen.titles()))
        shown = {"Serial 1", "RNG /dev/urandom", "Memory", "Running (Booted)"}
        screen.wait(lambda: shown <= set(screen.names()))
        assert screen.picture("details.png") > 16
        assert "Traceback" not in screen.log.read_text()


def test_what_is_typed_into_the_console_reaches_the_guest(daemon, tmp_path):
    with Screen(daemon, tmp_path, *MANAGER, "--show-domain-console", "web") as screen:
        screen.wait(lambda: "Opening console stream" in screen.log.read_text())

        def typed():
            # The first click gives the console the keyboard.
            screen.run("xdotool", "mousemove", 500, 400, "click", 1)
            screen.run("xdotool", "type", "--delay", "50", "echo hello >/tmp/typed\n")
            said = daemon.ringzero("exec", "web", "sh", "-c", "cat /tmp/typed || true")
            return said == "hello\n"

        screen.wait(typed)
        assert screen.picture("console.png") > 1
        assert "Traceback" not in screen.log.read_text()


@pytest.mark.skipif(shutil.which("virt-viewer") is None, reason="virt-viewer is Debian's")
def test_virt_viewer_is_told_that_there_is_no_screen(daemon, tmp_path):
    with Screen(daemon, tmp_path, "virt-viewer", "web") as screen:
        # It asks by a box, which is closed by hand.
        screen.wait(lambda: any("graphic" in name.lower() for name in screen.names()))
        assert "Traceback" not in daemon.log.read_text()
