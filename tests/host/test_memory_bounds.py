"""Guest memory on hosts that limit it or do not tell of it."""

import resource
import subprocess
import sys

from ringzero.host import memory
from ringzero.host.memory import HostMemory
from tests.boot.process import ENVIRONMENT

MIB = 1 << 20


def test_limit_of_file_sizes_is_named():
    """In a process of its own, as the limit cannot be raised again."""
    code = (
        "from ringzero.errors import HostError\n"
        "from ringzero.host.memory import HostMemory\n"
        "try: HostMemory('ram', 64 << 20)\n"
        "except HostError as fault: print(fault.message, '|', fault.hint)\n"
    )
    limit = (10 * MIB, 10 * MIB)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert "64 MiB of memory for ram: more than the limit of file sizes here" in done.stdout
    assert "10 MiB" in done.stdout and "ulimit -f" in done.stdout


def test_copies_without_proc_are_whole(monkeypatch):
    """Where the host does not say which pages were written, all of them are taken."""
    monkeypatch.setattr(memory, "_PAGEMAP", "/nonexistent/pagemap")
    first = HostMemory("ram", 4 * MIB)
    first.view[:3] = b"one"
    first.freeze().close()
    first.view[MIB : MIB + 3] = b"two"
    image = first.freeze()
    copy = HostMemory("ram", 4 * MIB, image)
    assert bytes(copy.view[:3]) == b"one" and bytes(copy.view[MIB : MIB + 3]) == b"two"
    assert first.touched() == [(0, 4 * MIB)]
    for part in (image, copy, first):
        part.close()
