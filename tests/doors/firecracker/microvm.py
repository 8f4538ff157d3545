"""A process of `ringzero firecracker`, a client of it that is not ours, and a guest for it.

The guest is the default image's kernel and tools, with a first process that says `UP` on the
serial line and then gives a shell there, as a Firecracker user's root file system would.
"""

import contextlib
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

from ringzero.image import cpio, micro
from tests.doors.serving import Client

UP = b"MICROVM-UP"
BOOT_ARGS = "console=ttyS0 reboot=k panic=1 pci=off quiet rdinit=/microvm"
WAIT = 120
_INIT = b"""#!/bin/busybox sh
export PATH=/bin:/sbin
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox modprobe -a virtio_mmio virtio_blk virtio_net virtio_balloon 2>/dev/null
exec </dev/ttyS0 >/dev/ttyS0 2>&1
/bin/busybox stty -echo
echo MICROVM-UP
while :; do /bin/busybox sh; done
"""


def guest(place, init=_INIT, more=()):
    """Return (kernel, initrd) of the guest; the initrd is written to `place`.

    `init` is its first process; it has `more` entries besides.
    """
    image = micro.ensure()
    initrd = place / "initrd"
    with initrd.open("wb") as file:
        data = image.initrd.read_bytes()
        file.write(data + bytes(-len(data) % 4))
        cpio.write([cpio.Entry("microvm", stat.S_IFREG | 0o755, init), *more], file)
    return image.kernel, initrd


class MicroVm:
    """One process; `with` ends it. `console` is what it has said on standard output."""

    def __init__(self, place, *flags, program=None, api=True, **environment):
        self.socket = place / "api.sock"
        words = program or [sys.executable, "-m", "ringzero.cli.firecracker"]
        named = ["--api-sock", str(self.socket), "--log-path", str(place / "log")]
        self.words = [*words, *(named if api else []), *flags]
        self._environment = {**os.environ, "RINGZERO_ENGINE": "soft", **environment}
        self._place = place
        self.console = b""

    def __enter__(self):
        self._errors = (self._place / "errors").open("w+b")
        self.process = subprocess.Popen(
            self.words,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        if "--no-api" not in self.words:
            self.until(lambda: self._listens() or self.process.poll() is not None)
        return self

    def _listens(self):
        with socket.socket(socket.AF_UNIX) as link, contextlib.suppress(OSError):
            link.connect(str(self.socket))
            return True
        return False

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self._errors.close()

    @property
    def errors(self):
        self._errors.seek(0)
        return self._errors.read().decode()

    def until(self, condition, timeout=WAIT):
        """Wait until it holds; what the guest says meanwhile is kept."""
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, (self.console[-2000:], self.errors)
            if select.select([self.process.stdout], [], [], 0.02)[0]:
                data = os.read(self.process.stdout.fileno(), 1 << 16)
                if not data:
                    time.sleep(0.02)
                self.console += data

    def expect(self, pattern, timeout=WAIT):
        """Wait until the guest has said what matches, and forget it; return the match."""
        found = []
        self.until(lambda: found.append(re.search(pattern, self.console)) or found[-1], timeout)
        self.console = self.console[found[-1].end() :]
        return found[-1]

    def shell(self, command):
        """Return what a command in the guest says."""
        self.process.stdin.write(f"echo 'BE''GIN'; {command}; echo 'E''ND'\n".encode())
        self.process.stdin.flush()
        return self.expect(rb"(?s)BEGIN\r?\n(.*?)END\r?\n").group(1).replace(b"\r", b"").decode()

    def ask(self, method, path, body=None):
        """Return (status, JSON) of a request."""
        client = Client(str(self.socket))
        try:
            return client.ask(method, path, body)[:2]
        finally:
            client.close()

    def put(self, path, **body):
        """Have something set; it must be taken."""
        answer = self.ask("PUT", path, body)
        assert answer == (204, b""), answer

    def patch(self, path, **body):
        answer = self.ask("PATCH", path, body)
        assert answer == (204, b""), answer

    def boot(self, kernel, initrd, **drive):
        """Describe the guest, start it and wait until it is up."""
        self.put("/machine-config", vcpu_count=1, mem_size_mib=256)
        self.put(
            "/boot-source",
            kernel_image_path=str(kernel),
            initrd_path=str(initrd),
            boot_args=BOOT_ARGS,
        )
        for name, path in drive.items():
            # Others may have it, too.
            self.put(
                *(f"/drives/{name}",),
                drive_id=name,
                path_on_host=str(path),
                is_root_device=False,
                is_read_only=True,
            )
        self.put("/actions", action_type="InstanceStart")
        self.expect(UP)

    @property
    def memory(self):
        """Private memory of the process beyond the guest's, in KiB."""
        rollup = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return sum(int(n) for n in re.findall(r"Private_(?:Clean|Dirty):\s+(\d+)", rollup))

    @property
    def resident(self):
        """Memory of the process that the host has, in KiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1))
