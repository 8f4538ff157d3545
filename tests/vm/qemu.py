"""A QEMU microvm as peer: boots our guests until, and beside, our own engine."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from ringzero.vm.agent import PORTS, Agent

QEMU = shutil.which("qemu-system-x86_64")


class QemuGuest:
    """Boots kernel and initrd; `agent` speaks with the guest over chardev sockets."""

    def __init__(self, kernel, initrd, command_line, *, extra=(), memory="256M"):
        self._place = tempfile.TemporaryDirectory(prefix="rzq")
        place = Path(self._place.name)
        arguments = [
            *(QEMU, "-accel", "tcg", "-M", "microvm,rtc=on,pcie=off", "-cpu", "max"),
            *("-m", memory, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-kernel", str(kernel), "-initrd", str(initrd), "-append", command_line),
            *("-serial", f"file:{place}/serial"),
            *("-device", "virtio-serial-device,max_ports=8"),
            *("-chardev", f"socket,id=con,path={place}/con,server=on,wait=off"),
            *("-device", "virtconsole,chardev=con,nr=0"),
        ]
        for number, name in enumerate(PORTS, start=1):
            path = f"{place}/p{number}"
            arguments += ["-chardev", f"socket,id=c{number},path={path},server=on,wait=off"]
            arguments += ["-device", f"virtserialport,chardev=c{number},nr={number},name={name}"]
        self.process = subprocess.Popen([*arguments, *extra], stdin=subprocess.DEVNULL)
        self.console = bytearray()
        self._sockets: dict[str, socket.socket] = {}
        self._threads: list[threading.Thread] = []
        self.agent = Agent(self)
        for number, name in enumerate(PORTS, start=1):
            if not name.endswith("stdin"):
                self._open(name, place / f"p{number}", self.agent.receive)
        self._open("console", place / "con", lambda _, data: self.console.extend(data))
        self._stdin = place / "p3"

    def _open(self, name, path, sink=None):
        peer = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 10
        while True:
            try:
                peer.connect(str(path))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self._sockets[name] = peer
        if sink is not None:

            def pump():
                with contextlib.suppress(OSError):
                    while data := peer.recv(65536):
                        sink(name, data)

            thread = threading.Thread(target=pump, daemon=True)
            thread.start()
            self._threads.append(thread)

    def send(self, port, data):
        with contextlib.suppress(BrokenPipeError):
            self._sockets[port].sendall(data)

    def connect(self, port, connected):
        if connected:
            self._open(port, self._stdin)
        else:
            self._sockets.pop(port).close()

    def backlog(self, port):
        return 0

    @property
    def serial(self):
        return (Path(self._place.name) / "serial").read_text(errors="replace")

    def run(self, words, data=None, timeout=60):
        out, err = bytearray(), bytearray()
        command = self.agent.run(
            words, takes_input=data is not None, on_stdout=out.extend, on_stderr=err.extend
        )
        if data is not None:
            command.write(data)
            command.close_input()
        return command.wait(timeout), bytes(out), bytes(err)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for peer in self._sockets.values():
            peer.close()
        for thread in self._threads:
            thread.join(5)
        self._place.cleanup()
