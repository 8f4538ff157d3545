"""A real guest on another host, which is this one: commands, files, `run`."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ringzero.doors.tokens import Tokens
from ringzero.errors import GuestError, HostError, TimeoutExpiredError
from ringzero.remote import Client
from tests.doors.serving import Served
from tests.remote.conftest import Way

# How long what a caller has left may take to end, in seconds.
SOON = 20

pytestmark = [pytest.mark.boot, pytest.mark.engine]


@pytest.fixture(params=["https", "ssh"])
def real(request, root, tmp_path):
    """Ways to a host whose machines have guests."""
    from ringzero.image.micro import ensure

    try:
        ensure()
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    if request.param == "ssh":
        yield Way(request.getfixturevalue("real_sshd").url)
        return
    shown = request.getfixturevalue("certificate")
    token = Tokens(tmp_path / "serve").create("laptop", reads=False)
    with Served(tmp_path / "serve", shown, rest=["127.0.0.1:0"]) as served:
        yield Way(f"https://{served.path}", token, shown.certificate)


@pytest.fixture
def ask(real, tmp_path):
    """Run a command line about the other host; return the process."""
    environment = os.environ | {
        "RINGZERO_MACHINES_DIR": str(tmp_path / "mine"),
        "RINGZERO_TOKEN": real.token or "",
        "RINGZERO_HOST": real.url,
        "ONLY_HERE": "of here",
    }
    flags = ["--cacert", str(real.authorities)] if real.authorities else []

    def ask(*words, **how):
        line = [sys.executable, "-m", "ringzero", *flags, *words]
        return subprocess.run(line, env=environment, capture_output=True, timeout=100, **how)

    def begin(*words):
        line = [sys.executable, "-m", "ringzero", *flags, *words]
        return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE)

    ask.begin = begin
    yield ask
    assert not (tmp_path / "mine").exists()


def command_lines():
    """Yield those of all processes of this host."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes()


def test_a_guest(real, tmp_path):
    with real.client() as host:
        web = host.machine(host.define({"memory": "256M"}, name="web", image="micro"))
        web.start()
        data = b"\0\xff" * 1_000_000
        found = web.run(["sh", "-c", "cat; echo wrong >&2; exit 3"], input=data)
        assert (found.stdout, found.stderr) == (data, b"wrong\n")
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
        web.remove(force=True)


def test_run(real, ask, tmp_path):
    done = ask("run", "--", "sh", "-c", "cat; echo wrong >&2; exit 3", input=b"\0\xffhi\n" * 50_000)
    assert (done.returncode, done.stdout) == (3, b"\0\xffhi\n" * 50_000), done.stderr
    assert b"wrong\n" in done.stderr
    word = 'it\'s "so" $HOME `x`; \\ *\n\u2713 -- --host'
    done = ask("run", "-m", "256M", "micro", "--", "printf", "%s", word)
    assert done.stdout.decode() == word, done.stderr
    done = ask("run", "-e", "ONLY_HERE", "-w", "/tmp", "--", "sh", "-c", "pwd; echo $ONLY_HERE")
    assert done.stdout == b"/tmp\nof here\n", done.stderr
    assert ask("run", "no-such-image", "--", "true").returncode != 0
    # A Ctrl-C ends it there, too.
    mark = f"mark-{os.getpid()}"
    process = ask.begin("run", "--", "sh", "-c", f"echo up; sleep 90; : {mark}")
    assert process.stdout.read(3) == b"up\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    process.stdout.close()
    end = time.monotonic() + SOON
    while any(mark.encode() in line for line in command_lines()):
        assert time.monotonic() < end
        time.sleep(0.1)
    # None of them is left.
    assert ask("ps", "-aq").stdout == b""
    assert ask("run", "-d", "--name", "web", "-p", "0:80").stdout == b"web\n"
    (tmp_path / "a b").write_text("a")
    assert ask("cp", str(tmp_path / "a b"), "web:/tmp").returncode == 0
    assert ask("exec", "web", "cat", "/tmp/a b").stdout == b"a"
    assert b"-> 80/tcp" in ask("port", "web").stdout
    assert ask("create", "--name", "later", "--", "true").stdout == b"later\n"
    assert ask("start", "later").returncode == 0
    assert ask("wait", "later").returncode == 0
    assert ask("rm", "-f", "web", "later").returncode == 0
    with Client(real.url, token=real.token, authorities=real.authorities) as host:
        assert host.machines() == []
