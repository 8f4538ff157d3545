"""The machines that guest tests run on, behind one interface.

`MACHINES` names them: QEMU as the peer, and our own Machine. The tests ask for
`wait_ready`, `run`, `console_data`, `serial_text` and what both machines have.
"""

from __future__ import annotations

from ringzero.image.micro import Recipe
from tests.vm.qemu import QEMU, QemuMachine

MACHINES = ["qemu", "ringzero"]
# Real software for the guest, with all that it depends on.
TOOLS = Recipe(
    "tools",
    packages=(
        *("python3", "perl", "openssl", "sqlite3", "xz-utils", "gzip", "gawk", "mawk", "coreutils"),
        *("dpkg", "libc-bin"),
    ),
    foreign=("busybox-static:i386",),
)


class OurMachine:
    """Our own Machine with the few things that the tests add."""

    def __init__(self, config):
        from ringzero.vm.machine import Machine

        self._machine = Machine(config)
        self.agent = self._machine.agent
        self.console_data = bytearray()
        self._serial = bytearray()
        self._machine.console.on_output = self.console_data.extend
        self._machine.serial.on_output = self._serial.extend

    @property
    def serial_text(self):
        return self._serial.decode(errors="replace")

    def run(self, words, data=None, timeout=120):
        out, err = bytearray(), bytearray()
        command = self.agent.run(
            words, takes_input=data is not None, on_stdout=out.extend, on_stderr=err.extend
        )
        if data is not None:
            command.write(data)
            command.close_input()
        return command.wait(timeout), bytes(out), bytes(err)

    def wait(self, timeout=None):
        return self._machine.wait(timeout)

    def __enter__(self):
        self._machine.start()
        return self

    def __exit__(self, *_):
        self._machine.stop()


def missing(name):
    """Return why the machine `name` cannot run here, or None."""
    if name == "qemu" and QEMU is None:
        return "needs qemu-system-x86_64 (package qemu-system-x86)"
    return None


def build(name, config):
    """Return a machine, to be started by `with`."""
    return {"qemu": QemuMachine, "ringzero": OurMachine}[name](config)
