"""Programs of Debian packages in the guest, byte for byte beside the same programs on the host.

Where host and guest have other versions of a program and it does not print the same, the test
is skipped and says so.
"""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

import ringzero
from ringzero.errors import HostError
from ringzero.image.micro import ensure
from tests.vm.guests import TOOLS

pytestmark = [pytest.mark.boot, pytest.mark.engine, pytest.mark.peer]
WAIT = 120
LONG = os.environ.get("RINGZERO_FUZZ", "1") != "1"
SCRIPTS = Path(__file__).parent / "programs"
# The same environment on both sides.
CLEAN = ["env", "-i", "PATH=/usr/bin:/bin", "LC_ALL=C", "HOME=/tmp", "TZ=UTC"]
# Program: how it is started, in a directory with the scripts and two files, `corpus` and `text`.
PROGRAMS = {
    "python3": "python3 -I python3.py",
    "perl": "perl perl.pl",
    "openssl": "sh openssl.sh",
    "sqlite3": "sqlite3 -init /dev/null :memory: < sqlite3.sql",
    "xz": "sh xz.sh",
    "gzip": "sh gzip.sh",
    "gawk": "gawk -f awk.awk text",
    "mawk": "mawk -f awk.awk text",
    "sort": "sh sort.sh",
    "od": "sh coreutils.sh",
    "dpkg": "sh dpkg.sh",
}


def corpus():
    """Lines like text's, and then noise; the same every time."""
    generator = random.Random(2026)
    letters = b"etaoinshrdlu"
    words = [bytes(generator.choices(letters, k=generator.randrange(1, 9))) for _ in range(800)]
    lines = [b" ".join(generator.choices(words, k=7)) + b" %d" % n for n in range(8_000)]
    text = b"\n".join(lines) + b"\n"
    return text, text + generator.randbytes(40_000)


@pytest.fixture(scope="module")
def guest():
    try:
        image = ensure(TOOLS)
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    with ringzero.Machine(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=image.command_line,
        memory="1G",
        agent=True,
        engine="soft",
    ) as vm:
        yield vm
        assert vm.stats()["cpu0"]["unknown"] == 0


@pytest.fixture(scope="module")
def places(guest, tmp_path_factory):
    """The same files in a directory of the host and in one of the guest."""
    host = tmp_path_factory.mktemp("host")
    text, everything = corpus()
    files = {path.name: path.read_bytes() for path in SCRIPTS.iterdir() if path.is_file()}
    files |= {"text": text, "corpus": everything}
    for name, data in files.items():
        (host / name).write_bytes(data)
        made = guest.run(f"mkdir -p /work; cat > /work/{name}", input=data, timeout=WAIT)
        assert made.exit_code == 0, made.stderr
    return host


def version(text):
    """Return the first line that has a digit."""
    lines = text.decode(errors="replace").splitlines()
    return next((line for line in lines if any(c.isdigit() for c in line)), "")


QUICK = ("python3", "sqlite3", "gzip", "mawk", "sort")


@pytest.mark.parametrize("program", PROGRAMS if LONG else QUICK)
def test_same_bytes_as_on_the_host(guest, places, program):
    path = shutil.which(program, path="/usr/bin:/bin")
    if path is None:
        pytest.skip(f"the host has no {program}")

    def here(command):
        words = [*CLEAN, "sh", "-c", command]
        done = subprocess.run(
            words, cwd=places, stdin=subprocess.DEVNULL, capture_output=True, timeout=WAIT
        )
        return done.returncode, done.stdout

    def there(command):
        done = guest.run([*CLEAN, "sh", "-c", f"cd /work; {command}"], timeout=WAIT)
        return done.exit_code, done.stdout

    ours, theirs = there(PROGRAMS[program]), here(PROGRAMS[program])
    if ours != theirs:
        ask = f"{program} {'version' if program == 'openssl' else '--version'}"
        versions = [version(run(ask)[1]) for run in (there, here)]
        if versions[0] != versions[1]:
            pytest.skip(f"other versions: {versions}")
    assert theirs[0] == 0
    assert theirs[1]
    assert ours == theirs
