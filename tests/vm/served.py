"""A guest image's programs without a virtual machine: on the host, and in User-Mode Linux.

Limits and neighbours for the speed of one: `Native` runs the image's root in a chroot on one of
the host's CPUs, `UserModeLinux` boots it in Debian's `linux.uml`. Both have a shell that takes
commands by its standard input, in base64, and answers with status and what was printed.
"""

from __future__ import annotations

import base64
import contextlib
import os
import select
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from pathlib import Path

from ringzero.image import cpio

UML = shutil.which("linux.uml")
SERVER = "serve"
READY, DONE = "served: ready", "served: done"
SCRIPT = f"""#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
[ -e /proc/self ] || mount -t proc proc /proc
[ -e /dev/zero ] || mount -t devtmpfs dev /dev
stty -echo 2>/dev/null
echo '{READY}'
while read -r command; do
    printf %s "$command" | base64 -d > /tmp/.command
    sh /tmp/.command > /tmp/.out 2> /tmp/.err < /dev/null
    printf '{DONE} %s %s %s.\\n' $? "$(base64 -w 0 < /tmp/.out)" "$(base64 -w 0 < /tmp/.err)"
done
[ $$ != 1 ] || poweroff -f
"""
# Enters a root with /proc and /dev, in namespaces of its own, which end with it.
ENTER = 'mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc" && exec chroot "$0" /' + SERVER


class Served:
    """A process that runs SCRIPT, by `arguments`; made and ended by `with`."""

    def __init__(self, place: Path, arguments: list[str], cpus: set[int] | None = None) -> None:
        self._place, self._arguments, self._cpus = place, arguments, cpus
        self._seen = b""

    def __enter__(self) -> Served:
        with (self._place / "messages").open("wb") as messages:
            self.process = subprocess.Popen(
                self._arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages,
                start_new_session=True, env=os.environ | {"TMPDIR": str(self._place)},
            )  # fmt: skip
        if self._cpus is not None:
            os.sched_setaffinity(self.process.pid, self._cpus)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process.stdout.close()
        shutil.rmtree(self._place, ignore_errors=True)

    def wait_ready(self, timeout: float) -> bool:
        """Wait for the shell; tell whether it came in `timeout` seconds."""
        return self._await(READY, timeout) is not None

    def run(self, command: str, timeout: float) -> tuple[int, bytes, bytes]:
        """Run a command; return its status and what it printed. Raises RuntimeError for silence."""
        self.process.stdin.write(base64.b64encode(command.encode()) + b"\n")
        self.process.stdin.flush()
        line = self._await(DONE, timeout)
        if line is None:
            messages = (self._place / "messages").read_text(errors="replace")
            raise RuntimeError(f"no answer to {command!r}: {messages[-500:]}")
        status, out, err = line.rstrip().rstrip(".").split(" ")
        return int(status), base64.b64decode(out), base64.b64decode(err)

    def _await(self, head: str, timeout: float) -> str | None:
        """Return what follows `head` at the start of a line; None when the time is over."""
        end = time.monotonic() + timeout
        output = self.process.stdout.fileno()
        while True:
            line, found, rest = self._seen.partition(b"\n")
            if found:
                self._seen = rest
                text = line.decode(errors="replace").rstrip("\r")
                if text.startswith(head):
                    return text[len(head) + 1 :]
                continue
            if not select.select([output], [], [], max(0, end - time.monotonic()))[0]:
                return None
            data = os.read(output, 1 << 16)
            if not data:
                return None
            self._seen += data


def missing_native() -> str | None:
    """Return why an image's programs cannot run on the host, or None."""
    if shutil.which("unshare") is None:
        return "native: needs unshare (package util-linux)"
    probe = subprocess.run([*_namespaces(), "true"], capture_output=True, text=True, timeout=20)
    return f"native: {probe.stderr.strip()}" if probe.returncode else None


def missing_uml() -> str | None:
    """Return why there is no User-Mode Linux, or None."""
    return None if UML else "uml: needs linux.uml (package user-mode-linux)"


def _namespaces() -> list[str]:
    own = [] if os.getuid() == 0 else ["--map-root-user"]
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", *own]


def native(initrd: Path) -> Served:
    """Return the root of an image on the host, on the first CPU that this process may use."""
    place = Path(tempfile.mkdtemp(prefix="native"))
    root = place / "root"
    root.mkdir()
    for entry in cpio.read(initrd.read_bytes()):
        _unpack(root, entry)
    (root / SERVER).write_text(SCRIPT)
    (root / SERVER).chmod(0o755)
    arguments = [*_namespaces(), "sh", "-c", ENTER, str(root)]
    return Served(place, arguments, {min(os.sched_getaffinity(0))})


def _unpack(root: Path, entry: cpio.Entry) -> None:
    """Make a file of an archive that is our own: names are not looked at."""
    path = root / entry.name.strip("/")
    if stat.S_ISDIR(entry.mode):
        path.mkdir(parents=True, exist_ok=True)
    elif stat.S_ISLNK(entry.mode):
        path.symlink_to(entry.data.decode())
        return
    elif stat.S_ISREG(entry.mode):
        path.write_bytes(entry.data)
    else:
        return
    path.chmod(stat.S_IMODE(entry.mode))


def user_mode_linux(initrd: Path, memory: int) -> Served:
    """Return a User-Mode Linux with the root of an image and so many bytes of memory."""
    place = Path(tempfile.mkdtemp(prefix="uml"))
    whole = place / "initrd"
    shutil.copyfile(initrd, whole)
    with whole.open("ab") as file:
        cpio.write([cpio.Entry(SERVER, stat.S_IFREG | 0o755, SCRIPT.encode())], file)
    arguments = [
        *(str(UML), f"mem={memory >> 20}M", f"initrd={whole}", f"rdinit=/{SERVER}", "quiet"),
        *("con0=fd:0,fd:1", "con=null", "ssl=null", f"uml_dir={place}/"),
    ]
    return Served(place, arguments)
