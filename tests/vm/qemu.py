"""QEMU behind the interface of our own Machine: a real guest until, and beside, our engine.

It is also the peer that shows that the guest image and the agent's protocol
are not made for our own device models only.
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from ringzero.vm.exit import Exit, ExitReason
from ringzero.vm.guest.agent import Agent
from ringzero.vm.guest.ports import IDENTITY_PORT
from ringzero.vm.guest.protocol import PORTS, STDIN

QEMU = shutil.which("qemu-system-x86_64")


def _clock():
    """Kernel arguments that spare QEMU's guest the TSC calibration, which fails on a busy host."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("cpu MHz"):
            return f" tsc_early_khz={round(float(line.split(':')[1]) * 1000)}"
    return ""


class Line:
    """A chardev socket as a byte channel."""

    def __init__(self):
        self.on_output = None
        self.data = bytearray()
        self.socket = None
        self.size = None

    def receive(self, data):
        self.data += data
        if self.on_output is not None:
            self.on_output(data)

    def write(self, data):
        with contextlib.suppress(OSError):
            self.socket.sendall(data)

    def resize(self, rows, columns):
        self.size = (rows, columns)


class _Input:
    """Sends without blocking the caller; the end of file comes after all data."""

    def __init__(self, peer):
        self._peer = peer
        self._queue = queue.SimpleQueue()
        self.backlog = 0
        threading.Thread(target=self._pump, daemon=True).start()

    def put(self, data):
        self.backlog += len(data)
        self._queue.put(data)

    def end(self):
        self._queue.put(None)

    def abandon(self):
        with contextlib.suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)
        self._peer.close()

    def _pump(self):
        with contextlib.suppress(OSError):
            while (data := self._queue.get()) is not None:
                self._peer.sendall(data)
                self.backlog -= len(data)
            # Not both directions: at a hang-up QEMU drops what it has not read yet.
            self._peer.shutdown(socket.SHUT_WR)


class QemuMachine:
    """Boots the kernel and initrd of a MachineConfig in `qemu-system-x86_64 -M microvm`."""

    def __init__(self, config):
        self.config = config
        self.agent = Agent(self)
        self.serial = Line()
        self.console = Line()
        self.process = None
        # QEMU 7.2 gets the flags of CMPXCHG16B wrong now and then, and a kernel of
        # version 6.12 with it; without the instruction the kernel has its own way.
        self.cpu = "Nehalem,-cx16"
        # Further arguments of the command line.
        self.extra = []
        self._place = tempfile.TemporaryDirectory(prefix="rzq")
        self._sockets = {}
        self._threads = []
        self._input = None

    def start(self):
        place, config = Path(self._place.name), self.config
        arguments = [
            *(
                QEMU,
                "-accel",
                "tcg,thread=multi",
                "-M",
                "microvm,rtc=on,pcie=off",
                "-cpu",
                self.cpu,
            ),
            *("-m", f"{config.memory >> 20}M", "-smp", str(config.cpus)),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-kernel", str(config.kernel), "-append", config.command_line + _clock()),
        ]
        if config.initrd is not None:
            arguments += ["-initrd", str(config.initrd)]
        for number, disk in enumerate(config.disks):
            read_only = "on" if disk.read_only else "off"
            drive = f"if=none,id=d{number},file={disk.path},readonly={read_only},format=raw"
            arguments += [
                *("-drive", drive),
                *("-device", f"virtio-blk-device,drive=d{number}"),
            ]
        if config.agent:
            arguments += [
                *("-device", "virtio-serial-device,max_ports=8"),
                *("-chardev", f"socket,id=con,path={place}/console,server=on,wait=off"),
                *("-device", "virtconsole,chardev=con,nr=0"),
            ]
            # The guest waits for all of them, also for one that tells it nothing here.
            for number, name in enumerate((*PORTS, IDENTITY_PORT), start=1):
                path = f"{place}/{name}"
                arguments += ["-chardev", f"socket,id=c{number},path={path},server=on,wait=off"]
                device = f"virtserialport,chardev=c{number},nr={number},name={name}"
                arguments += ["-device", device]
        arguments += ["-chardev", f"socket,id=ser,path={place}/serial,server=on,wait=on"]
        arguments += ["-serial", "chardev:ser", *self.extra]
        with (place / "errors").open("wb") as errors:
            self.process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stderr=errors)
        # QEMU waits for the serial line's peer, so it is last.
        if config.agent:
            self.console.socket = self._open("console", self.console.receive)
            for name in PORTS:
                if name != STDIN:
                    self._open(name, lambda data, name=name: self.agent.receive(name, data))
        self.serial.socket = self._open("serial", self.serial.receive)

    def _open(self, name, sink):
        peer = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 10
        while True:
            try:
                peer.connect(f"{self._place.name}/{name}")
                break
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.01)
        self._sockets[name] = peer
        thread = threading.Thread(target=self._pump, args=(peer, sink), daemon=True)
        thread.start()
        self._threads.append(thread)
        return peer

    @staticmethod
    def _pump(peer, sink):
        with contextlib.suppress(OSError):
            while data := peer.recv(65536):
                sink(data)

    def wait(self, timeout=None):
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        for thread in self._threads:
            thread.join(5)
        self.agent.close()
        bad = b"Kernel panic" in self.serial.data
        return Exit(ExitReason.PANIC if bad else ExitReason.POWEROFF)

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for peer in self._sockets.values():
            peer.close()
        for thread in self._threads:
            thread.join(5)
        self.agent.close()
        self._place.cleanup()

    def stats(self):
        return {"engine": {"name": "qemu"}}

    # The agent's channels.

    def send(self, port, data):
        if port == STDIN:
            self._input.put(data)
        else:
            with contextlib.suppress(OSError):
                self._sockets[port].sendall(data)

    def connect(self, port, connected):
        if not connected:
            self._input.end()
            return
        if self._input is not None:
            self._input.abandon()
        self._input = _Input(self._open(port, lambda _: None))

    def backlog(self, port):
        return self._input.backlog if port == STDIN and self._input is not None else 0

    def hold(self, port, held):
        pass

    def extend(self, slot):
        return False

    # For tests.

    def run(self, words, data=None, timeout=60):
        out, err = bytearray(), bytearray()
        command = self.agent.run(
            words, takes_input=data is not None, on_stdout=out.extend, on_stderr=err.extend
        )
        if data is not None:
            command.write(data)
            command.close_input()
        return command.wait(timeout), bytes(out), bytes(err)

    @property
    def console_data(self):
        return self.console.data

    @property
    def serial_text(self):
        return self.serial.data.decode(errors="replace")

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()
