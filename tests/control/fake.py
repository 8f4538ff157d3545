"""Machines without a guest for the control layer, in this process and in processes of their own.

`python -m tests.control.fake DIRECTORY LOCK REPORT` is a machine's process that
runs a fake. Its kernel's name says what goes wrong with it.
"""

import contextlib
import functools
import os
import signal
import sys
import threading
import time

from ringzero.api.action import Stream
from ringzero.config.machine import MachineConfig
from ringzero.config.ports import parse_ports
from ringzero.control.host import claims
from ringzero.control.host.launch import launch
from ringzero.control.machine import vmm
from ringzero.errors import GuestImageError, StateError
from ringzero.host.progress import QUIET
from ringzero.records import replace
from ringzero.vm.exit import Exit, ExitReason
from tests.cli.fake import FakeMachine

PROGRAM = (sys.executable, "-m", "tests.control.fake")


class FakeNets:
    """Forwards ports by writing them down, and networks in the description."""

    def __init__(self, machine):
        self.machine = machine
        self.forwards = []

    def ports(self):
        return self.forwards

    def publish(self, text):
        made = parse_ports(text)
        self.forwards += made
        return made

    def connect(self, config, number=None):
        self.connected = config.network
        number = number or 0

        def plug(n, device):
            if (device.kind, n) != ("net", number):
                return device
            return replace(config, mac=device.mac)

        self.machine.config = self.machine.config.map_devices(plug)
        return number

    def unpublish(self, text):
        gone = [forward for forward in self.forwards if str(forward.port) == text]
        self.forwards = [forward for forward in self.forwards if forward not in gone]
        return gone


class FakeShares:
    """Shares folders by writing them down in the description."""

    def __init__(self, machine):
        self.machine = machine

    def add(self, share):
        config = self.machine.config
        self.machine.config = replace(config, devices=(*config.devices, share))
        return share

    def remove(self, target, *, force=False):
        config = self.machine.config
        (share,) = (s for s in config.shares if s.target == target)
        rest = tuple(device for device in config.devices if device is not share)
        self.machine.config = replace(config, devices=rest)
        return share


class Fake(FakeMachine):
    """A FakeMachine that can be paused and copied, and prints what is typed."""

    def __init__(self, config, *, boot=False):
        super().__init__(config)
        self.nets = FakeNets(self)
        self.shares = FakeShares(self)
        self.paused = False
        self.reverted = 0
        self.lineage = ()
        self.pressed = False
        self.failure = None
        self.stubborn = config.command_line.strip() == "stubborn"
        self.console.write = lambda data: self.console.say(b"<" + data + b">")
        self.serial.write = lambda data: self.serial.say(data)

    @functools.cached_property
    def disks(self):
        from ringzero.disk import open_disk
        from ringzero.disk.instant import LiveDisk

        return tuple(LiveDisk(open_disk(d.path, d.format)) for d in self.config.disks)

    @functools.cached_property
    def blocks(self):
        from ringzero.vm.blocks import Blocks

        return Blocks(self)

    def pause(self):
        self.paused = True

    def resume(self):
        self.paused = False

    def stop(self):
        if self._exit is None:
            self.end(Exit(ExitReason.STOPPED))
        for disk in vars(self).get("disks", ()):
            disk.close()
        self.agent.close()

    def end(self, how):
        if self.stubborn and how.reason is ExitReason.POWEROFF:
            return
        super().end(how)

    def press_power_button(self):
        self.pressed = True
        self.end(Exit(ExitReason.POWEROFF))
        return True

    def stats(self):
        counted = {"received_bytes": 3000, "received": 2, "sent_bytes": 64, "sent": 1, "dropped": 5}
        nets = {f"eth{number}": counted for number, _ in enumerate(self.config.nets)}
        return {"engine": "fake", "net": nets}

    def frozen(self):
        return contextlib.nullcontext()

    def seed(self, clones=1):
        return Seed(self.config)

    def grow(self, seed, identity):
        return Fake(seed.config)

    def prepare_confinement(self):
        pass

    def leave(self):
        pass

    def disks_still(self):
        return contextlib.nullcontext()

    def keep_from_children(self):
        pass

    def snapshot(self, name, *, memory=True, compress=False, store=None):
        from ringzero.disk import open_disk
        from ringzero.disk.instant import LiveDisk
        from ringzero.vm.seed import Seed
        from ringzero.vm.state import MachineState
        from tests.vm import seeds

        if self.config.command_line.strip() == "unsaved":
            raise StateError("the disk is full")
        instants = []
        for disk in self.config.disks:
            live = LiveDisk(open_disk(disk.path, format=disk.format, read_only=True))
            instants.append(live.instant())
            live.close()
        image = seeds.image({0x1000: b"fake"}, size=self.config.memory)
        state = MachineState({"version": 2, "devices": {}})
        with Seed(self.config, state, image, instants) as seed:
            saved = store.save_seed(
                seed, name, lineage=self.lineage, engine="soft", memory=memory, compress=compress
            )
        self.lineage = (saved.identifier, *saved.manifest.lineage)
        return saved

    def revert(self, snapshot, identity=None):
        match self.config.command_line.strip():
            case "unfit":
                raise StateError(f"{snapshot.name} does not fit")
            case "full":
                self.failure = StateError("the disk was taken back in part only")
                self.end(Exit(ExitReason.STOPPED))
                raise self.failure
            case "dies":
                os.kill(os.getpid(), signal.SIGKILL)
        self.reverted += 1
        self.lineage = (snapshot.identifier, *snapshot.manifest.lineage)
        self.agent.restore(replace(self.agent.save(), slots=self.agent.save().slots[:1]))
        name = identity.name if identity is not None else None
        text = f"reverted to {snapshot.name} as {name}\n".encode()
        if self.console.on_output is None:
            self.serial_output += text
        self.console.say(text)

    def wait(self, timeout=None):
        found = super().wait(timeout)
        if found is not None and self.failure is not None:
            raise self.failure
        return found


class Taker(Stream):
    """Keeps what a streaming action sends; `begun` is set when input may be sent."""

    def __init__(self):
        self.shown = bytearray()
        self.begun = threading.Event()
        self.link = None

    def begin(self, link):
        self.link = link
        self.begun.set()

    def data(self, number, content):
        self.shown.extend(content)


class Seed:
    def __init__(self, config):
        self.config = config

    def share(self):
        return []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def close(self):
        pass


def build(config, reporter, *, boot=False):
    match config.command_line.strip():
        case "bad":
            raise GuestImageError("not a kernel", hint="give a kernel")
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "silent":
            os.kill(os.getpid(), signal.SIGKILL)
        case "slow":
            reporter.say(step="slowly")
            time.sleep(60)
        case "panic":
            machine = Fake(config)
            machine.boots = False
            machine.serial_output = b"Kernel panic - not syncing: no init\n"
            machine.ending = Exit(ExitReason.PANIC)
            return machine
        case "brief":
            machine = Fake(config)
            threading.Timer(0.3, machine.end, (Exit(ExitReason.POWEROFF),)).start()
            return machine
    return Fake(config)


def config(line="", **more):
    return MachineConfig.create(kernel="/dev/null", command_line=line, agent=True, **more)


def start(name, line="", *, wait=True, disks=(), **more):
    """Start a fake machine's process; return its directory."""
    claim = claims.create(name, config(line, disks=disks), **more)
    return launch(claim, wait=wait, progress=QUIET, program=PROGRAM)


if __name__ == "__main__":
    sys.exit(vmm.main(sys.argv[1:], build))
