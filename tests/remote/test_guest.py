"""A real guest on another host, which is this one by ssh: commands, files, a terminal, `run`."""

import subprocess
import sys

import pytest

from ringzero.errors import GuestError, HostError, TimeoutExpiredError
from ringzero.remote import Client

pytestmark = [pytest.mark.boot, pytest.mark.engine]


@pytest.fixture
def web(real_sshd):
    from ringzero.image.micro import ensure

    try:
        ensure()
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    with Client(real_sshd.url) as host:
        machine = host.machine(host.define({"memory": "256M"}, name="web", image="micro"))
        machine.start()
        yield machine
        machine.remove(force=True)


def test_a_guest(web, real_sshd, tmp_path):
    found = web.run(["sh", "-c", "cat; echo wrong >&2; exit 3"], input=b"\0\xff" * 1_000_000)
    assert (found.stdout, found.stderr) == (b"\0\xff" * 1_000_000, b"wrong\n")
    assert found.exit_code == 3
    with pytest.raises(TimeoutExpiredError):
        web.run(["sleep", "60"], timeout=0.5)
    source = tmp_path / "some thing"
    source.mkdir()
    (source / "large").write_bytes(bytes(range(256)) * 50_000)
    (source / "run").write_text("#!/bin/sh\n")
    (source / "run").chmod(0o755)
    assert web.copy_in(source, "/tmp") == []
    web.copy_out("/tmp/some thing", tmp_path / "back")
    assert (tmp_path / "back/large").read_bytes() == (source / "large").read_bytes()
    assert (tmp_path / "back/run").stat().st_mode & 0o777 == 0o755
    with pytest.raises(GuestError, match="no /nowhere in the guest"):
        web.copy_out("/nowhere", tmp_path / "none")
    word = 'it\'s "so" $HOME; \\ *\n\u2713'
    line = [sys.executable, "-m", "ringzero", "--host", real_sshd.url, "exec", "web", "--"]
    done = subprocess.run([*line, "printf", "%s", word], capture_output=True, timeout=60)
    assert done.stdout.decode() == word, done.stderr
