"""An sshd of this user's on a free port of the loopback, with keys of its own."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Where Debian has it, for users whose PATH has no /usr/sbin.
PROGRAM = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
ROOT = Path(__file__).parents[2]
_RINGZERO = """\
#!{python}
import sys
sys.path[:0] = [{root!r}]
from ringzero.control.host import launch
from tests.control.fake import PROGRAM
launch.PROGRAM = PROGRAM
from ringzero.cli.entry import main
sys.exit(main())
"""
_REAL = """\
#!/bin/sh
exec {python} -m ringzero "$@"
"""


class Sshd:
    """`url` leads to it for the client in `path`; with `fakes`, machines have no guests."""

    def __init__(self, where, environment, *, fakes=True):
        for program in ("ssh", "ssh-keygen"):
            if shutil.which(program) is None or PROGRAM is None:
                pytest.skip("this host has no OpenSSH with a server")
        self.where = where
        where.mkdir(mode=0o700)
        for name in ("host", "mine"):
            self._call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(where / name))
        (where / "authorized").write_text((where / "mine.pub").read_text())
        (where / "authorized").chmod(0o600)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.program = where / "ring zero"
        text = _RINGZERO if fakes else _REAL
        self.program.write_text(text.format(python=sys.executable, root=str(ROOT)))
        self.program.chmod(0o755)
        pairs = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src"))), **environment}
        settings = "".join(f' {name}="{value}"' for name, value in pairs.items())
        self._write(
            "sshd_config",
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {where}/host",
            f"AuthorizedKeysFile {where}/authorized",
            f"PidFile {where}/pid",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            f"SetEnv{settings}",
        )
        key = (where / "host.pub").read_text().split()
        self._write("known", f"[127.0.0.1]:{self.port} {key[0]} {key[1]}")
        self._write(
            "config",
            "Host *",
            f"  IdentityFile {where}/mine",
            f"  UserKnownHostsFile {where}/known",
            "  GlobalKnownHostsFile /dev/null",
            "  StrictHostKeyChecking yes",
            "  IdentitiesOnly yes",
        )
        self.path = where / "bin"
        self.path.mkdir()
        self._write("bin/ssh", "#!/bin/sh", f'exec {shutil.which("ssh")} -F {where}/config "$@"')
        (self.path / "ssh").chmod(0o755)
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.said = (where / "log").open("wb")
        self.process = subprocess.Popen(
            [PROGRAM, "-D", "-e", "-f", str(where / "sshd_config")],
            stderr=self.said,
            stdin=subprocess.DEVNULL,
        )
        self._await()

    @property
    def url(self):
        return f"ssh://127.0.0.1:{self.port}{self.program}".replace(" ", "%20")

    def _await(self):
        end = time.monotonic() + 10
        while time.monotonic() < end and self.process.poll() is None:
            with socket.socket() as link:
                if link.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        self.close()
        pytest.skip(f"sshd does not start: {(self.where / 'log').read_text()[-500:]}")

    def close(self):
        self.process.kill()
        self.process.wait()
        self.said.close()

    def _write(self, name, *lines):
        (self.where / name).write_text("\n".join(lines) + "\n")

    def _call(self, *words):
        subprocess.run(words, check=True, timeout=20, stdin=subprocess.DEVNULL)
