"""The machines that guest tests run on, behind one interface.

`MACHINES` names them: QEMU as the peer, our own Machine, and our own Machine
that is another one at every step: before each use of its agent it is forked
(or saved, and restored into a new one) and given up, or taken back to a snapshot
of that moment after it has gone on for a while. The tests ask for
`wait_ready`, `run`, `console_data`, `serial_text` and what all machines have.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import tempfile
import time
from pathlib import Path

import pytest

from ringzero.image.micro import Recipe
from ringzero.settings import CACHE_DIR
from tests.vm.qemu import QEMU, QemuMachine

FUZZING = os.environ.get("RINGZERO_FUZZ", "1") != "1"
FURTHER = ("restored", "reverted", "snapshotted")
# How long a machine goes on, at most, before it is taken back, in seconds.
LONGEST_FUTURE = 0.1
MACHINES = ["qemu", "ringzero", "forked", *(FURTHER if FUZZING else ())]
# Real software for the guest, with all that it depends on.
TOOLS = Recipe(
    "tools",
    packages=(
        *("python3", "perl", "openssl", "sqlite3", "xz-utils", "gzip", "gawk", "mawk", "coreutils"),
        *("dpkg", "libc-bin"),
    ),
    foreign=("busybox-static:i386",),
)


@contextlib.contextmanager
def own_templates(place):
    """Have, for the block, a cache in `place` with all of the user's but for templates."""
    own = CACHE_DIR.get()
    own.mkdir(parents=True, exist_ok=True)
    for entry in own.iterdir():
        if entry.name != "templates":
            (place / entry.name).symlink_to(entry)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RINGZERO_CACHE_DIR", str(place))
        patched.setenv("RINGZERO_TEMPLATES", "1G")
        yield place


class OurMachine:
    """Our own Machine with the few things that the tests add."""

    def __init__(self, config):
        from ringzero.vm.machine import Machine

        self.console_data = bytearray()
        self.serial_data = bytearray()
        self._take(Machine(config))

    def _take(self, machine):
        self._machine = machine
        machine.console.on_output = self.console_data.extend
        machine.serial.on_output = self.serial_data.extend

    @property
    def agent(self):
        return self._machine.agent

    @property
    def nets(self):
        return self._machine.nets

    @property
    def serial_text(self):
        return self.serial_data.decode(errors="replace")

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


class RelayedMachine(OurMachine):
    """Goes on in a copy of itself, made by `follow(machine)`, at every use of the agent."""

    def __init__(self, config, follow):
        super().__init__(config)
        self._follow = follow
        self.hops = 0

    def hop(self):
        """Give the machine up for a copy of it."""
        successor = self._follow(self._machine)
        self._take(successor)
        successor.start()
        if not successor.running:
            successor.resume()
        self.hops += 1

    @property
    def agent(self):
        if self._machine.running:
            self.hop()
        return self._machine.agent


def forked(machine):
    """Return a fork of `machine`, which is stopped."""
    machine.pause()
    (child,) = machine.fork()
    machine.stop()
    return child


def restored(machine):
    """Return a new machine with the state of `machine`, as JSON, and its memory; stop that one."""
    from ringzero.vm.machine import Machine
    from ringzero.vm.state import MachineState

    machine.pause()
    tree = json.dumps(machine.save().tree)
    memory = [(base, machine.memory[base : base + size]) for base, size in machine.memory.regions]
    machine.stop()
    successor = Machine(machine.config)
    for base, data in memory:
        successor.memory[base : base + len(data)] = data
    successor.restore(MachineState(json.loads(tree)))
    return successor


def snapshotted(machine):
    """Return a machine that goes on from a snapshot of `machine`, which is stopped."""
    from ringzero.vm.saved.store import Store

    with tempfile.TemporaryDirectory() as place:
        store = Store(Path(place))
        machine.pause()
        snapshot = machine.snapshot("hop", store=store)
        machine.stop()
        # The files are gone before the machine runs: what it needs of them is open.
        return snapshot.restore()


def reverted(machine):
    """Return `machine` itself, taken back from a future that it never had."""
    from ringzero.vm.saved.store import Store

    with tempfile.TemporaryDirectory() as place:
        _stand_still(machine)
        snapshot = machine.snapshot("hop", store=Store(Path(place)))
        machine.console.on_output = machine.serial.on_output = lambda data: None
        machine.resume()
        time.sleep(random.random() * LONGEST_FUTURE)
        _stand_still(machine)
        machine.revert(snapshot)
    return machine


def _stand_still(machine):
    machine.pause()
    machine.parts.lines.flush()


FOLLOW = {
    "forked": forked,
    "restored": restored,
    "reverted": reverted,
    "snapshotted": snapshotted,
}


def missing(name):
    """Return why the machine `name` cannot run here, or None."""
    if name == "qemu" and QEMU is None:
        return "needs qemu-system-x86_64 (package qemu-system-x86)"
    return None


def build(name, config):
    """Return a machine, to be started by `with`."""
    if name in FOLLOW:
        return RelayedMachine(config, FOLLOW[name])
    return {"qemu": QemuMachine, "ringzero": OurMachine}[name](config)
