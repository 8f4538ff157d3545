"""A machine without a guest: the agent's protocol is answered by processes of this host."""

from __future__ import annotations

import shlex
import subprocess
import threading
import time

from ringzero.vm.exit import Exit, ExitReason
from ringzero.vm.guest.agent import Agent
from ringzero.vm.guest.protocol import CONTROL, SIGNAL, STDERR, STDIN, STDOUT


class FakeLine:
    def __init__(self):
        self.on_output = None
        self.typed = bytearray()
        self.sizes = []

    def write(self, data):
        self.typed += data

    def resize(self, rows, columns):
        self.sizes.append((rows, columns))

    def say(self, data):
        if self.on_output is not None:
            self.on_output(data)


class FakeMachine:
    """Runs `run` requests as processes; special first words make the machine end.

    `machines` keeps all that were made.
    """

    machines: list[FakeMachine] = []  # noqa: RUF012 - shared on purpose, a test clears it
    boots = True
    ending = Exit(ExitReason.POWEROFF)
    serial_output = b""

    def __init__(self, config, *, boot=False):
        self.config = config
        self.boot = boot
        self.agent = Agent(self)
        self.serial = FakeLine()
        self.console = FakeLine()
        self.stopped = 0
        self._end = threading.Event()
        self._exit = None
        self._input = []
        self._input_end = threading.Event()
        FakeMachine.machines.append(self)

    def start(self):
        self.serial.say(self.serial_output)
        if self.boots:
            threading.Thread(
                target=self.agent.receive, args=(CONTROL, b"ready 1 fake\n"), daemon=True
            ).start()
        else:
            self.end(self.ending)

    def end(self, how):
        self._exit = how
        self._end.set()

    def wait(self, timeout=None):
        return self._exit if self._end.wait(timeout) else None

    def stop(self):
        self.stopped += 1
        if self._exit is None:
            self.end(Exit(ExitReason.STOPPED))

    def stats(self):
        return {"engine": {"name": "fake", "instructions": 1234567}, "seconds": 1.5}

    def send(self, port, data):
        if port == STDIN:
            self._input.append(data)
        elif port == SIGNAL and data == b"poweroff\n":
            self.end(Exit(ExitReason.POWEROFF))
        elif port == CONTROL:
            threading.Thread(target=self._control, args=(data.decode(),), daemon=True).start()

    def connect(self, port, connected):
        if connected:
            self._input_end.clear()
        else:
            self._input_end.set()

    def backlog(self, port):
        return 0

    def hold(self, port, held):
        pass

    def extend(self, slot):
        return False

    def _control(self, line):
        verb, *rest = line.split(maxsplit=6 if line.startswith("terminal") else 4)
        if verb == "terminal":
            self.console.say(f"terminal {rest[2:4]} {rest[5]}\r\n".encode())
            if "stay" not in rest[5]:
                self.agent.receive(CONTROL, f"exit {rest[0]} 4\n".encode())
        elif verb == "run":
            self._run(rest[0], rest[1] == "1", rest[2].encode(), shlex.split(rest[3]))

    def _run(self, number, takes_input, token, words):
        if words[0] == "switch-off":
            self.end(Exit(ExitReason.POWEROFF))
            return
        if words[0] == "panic":
            self.serial.say(b"Kernel panic - not syncing: at your service\n")
            self.end(Exit(ExitReason.PANIC))
            return
        data = b""
        if takes_input:
            reads = "cat" in " ".join(words[:3])
            while not self._input_end.wait(0.01) and reads:
                time.sleep(0.01)
            data = b"".join(self._input).partition(token + b"\n")[2]
        done = subprocess.run(words, input=data, capture_output=True)
        self.agent.receive(CONTROL, f"exit {number} {done.returncode}\n".encode())
        self.agent.receive(STDERR, done.stderr + token)
        self.agent.receive(STDOUT, done.stdout + token)
