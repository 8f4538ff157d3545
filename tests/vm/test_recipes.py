"""Other kernels and other software than the default image's, booted."""

import os

import pytest

from ringzero.board.boot.kernel import load_kernel
from ringzero.config.machine import MachineConfig
from ringzero.errors import HostError
from ringzero.image.micro import Recipe, ensure
from tests.vm.guests import MACHINES, TOOLS, build, missing

pytestmark = [
    pytest.mark.boot,
    pytest.mark.peer,
    pytest.mark.engine,
    pytest.mark.skipif(
        os.environ.get("RINGZERO_FUZZ", "1") == "1",
        reason="fetches 150 MB and boots four guests: run by `make fuzz`",
    ),
]

KERNELS = {
    "full": Recipe("full", kernel="linux-image-amd64"),
    "backports": Recipe("backports", suite="bookworm-backports"),
    "trixie": Recipe("trixie", suite="trixie"),
}


@pytest.fixture(params=MACHINES)
def kind(request):
    reason = missing(request.param)
    if reason:
        pytest.skip(reason)
    return request.param


def booted(kind, recipe):
    try:
        image = ensure(recipe)
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    config = MachineConfig.create(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=image.command_line,
        memory="1G",
        agent=True,
    )
    return image, build(kind, config)


@pytest.mark.parametrize("name", KERNELS)
def test_other_kernels_come_up(kind, name):
    image, machine = booted(kind, KERNELS[name])
    with machine:
        assert machine.agent.wait_ready(120), machine.serial_text
        assert load_kernel(image.kernel).version == machine.agent.release
        assert machine.run(["cat"], b"x" * 10_000) == (0, b"x" * 10_000, b"")


def test_software_beside_other_kernels(kind):
    _, machine = booted(kind, TOOLS)
    commands = {
        "python3 -c 'print(2**100)'": b"1267650600228229401496703205376\n",
        "perl -e 'print join q(,), map { $_ ** 2 } 1..5'": b"1,4,9,16,25",
        "printf abc | openssl sha256 -r": (
            b"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad *stdin\n"
        ),
        "sqlite3 :memory: 'select 6 * 7'": b"42\n",
        "seq 100000 | xz | xz -dc | gzip | gzip -dc | tail -1": b"100000\n",
        "seq 10 | gawk '{ s += $1 } END { print s }'": b"55\n",
        "printf 'b\\na\\n' | sort": b"a\nb\n",
        "dpkg-query -W -f '${Status}' dpkg": b"install ok installed",
        "/opt/i386/bin/busybox echo i386": b"i386\n",
    }
    with machine:
        assert machine.agent.wait_ready(120), machine.serial_text
        for command, output in commands.items():
            assert machine.run(command) == (0, output, b""), command
