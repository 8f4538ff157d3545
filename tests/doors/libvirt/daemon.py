"""`ringzero serve` as a process of its own, with machines, volumes and networks of its own."""

import json
import os
import signal
import subprocess
import sys
import time

from ringzero.settings import CACHE_DIR

_PLACES = {
    "RINGZERO_DATA_DIR": "data",
    "RINGZERO_MACHINES_DIR": "machines",
    "RINGZERO_NETWORKS_DIR": "networks",
    "RINGZERO_SERVE_DIR": "serve",
    "RINGZERO_STORAGE_DIR": "storage",
}


class Daemon:
    """`with Daemon(folder) as daemon:` serves libvirt's clients, which find it at `daemon.uri`."""

    def __init__(self, folder):
        socket = folder / "lv"
        self.uri = f"ringzero+unix:///session?socket={socket}"
        self.environment = {
            **os.environ,
            **{name: str(folder / place) for name, place in _PLACES.items()},
            "HOME": str(folder),
            "LIBVIRT_DEFAULT_URI": self.uri,
            # What is downloaded and compiled is everybody's.
            "RINGZERO_CACHE_DIR": str(CACHE_DIR.get()),
        }
        self.log = folder / "serve.log"
        self._words = ["serve", "--rest", "none", "--libvirt", str(socket)]

    def __enter__(self):
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ringzero", *self._words],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env=self.environment,
            )
        # The second line is that of the socket for who only reads.
        while self.log.read_text().count("libvirt:") < 2:
            assert self._process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        for name in self.ringzero("ps", "-aq").split():
            self.ringzero("rm", "-f", name)
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)

    def ringzero(self, *words, timeout=300):
        """Run a command of ours; return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "ringzero", *map(str, words)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.environment,
        )
        assert done.returncode == 0, done
        return done.stdout

    def networks(self):
        """Return all networks by name, as `ringzero network inspect` has them."""
        names = [found["name"] for found in json.loads(self.ringzero("network", "ls", "--json"))]
        return json.loads(self.ringzero("network", "inspect", *names)) if names else []
