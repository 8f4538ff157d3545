"""The user network beside QEMU's (libslirp), and passt where it is installed: a table of ratios.

    python bench/network.py                    all rows
    python bench/network.py tcp                rows whose name contains one of the words
    python bench/network.py --rounds 5 --json out.json

All guests boot the same kernel and initrd on one vCPU (QEMU by TCG) and run the same Python
program, in turn, against the same server on the host's loopback, which takes the time; the best
of `--rounds` counts. passt is behind QEMU's `-netdev stream`. "CPU" is what the host's processes
spent on the row's best round, in seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.vm import guests  # noqa: E402 - after the path
from tests.vm.qemu import QemuMachine  # noqa: E402

from ringzero.config.devices.net import NetConfig  # noqa: E402
from ringzero.config.machine import MachineConfig  # noqa: E402
from ringzero.errors import GuestError, RingzeroError  # noqa: E402
from ringzero.host.progress import Progress  # noqa: E402
from ringzero.image.micro import ensure  # noqa: E402
from ringzero.units import MIB  # noqa: E402

PROCESSES = multiprocessing.get_context("spawn")
MEMORY = 512 * MIB
PATIENCE = 60.0
# What the guests call the host's loopback: the gateway, by ringzero, QEMU and passt alike.
HOST = "10.0.2.2"
MAC = "02:00:00:00:00:15"
# ringzero's own guests have it already.
NETWORK = (
    "ip link set lo up; ip link set eth0 up; ip addr show eth0 | grep -q 10.0.2.15 || "
    f"{{ ip addr add 10.0.2.15/24 dev eth0; ip route add default via {HOST}; }}"
)
# Runs in the guest: waits at one connection for orders, so that Python's own start is not counted.
GUEST = f"""
import socket, threading
def work(kind, port, size):
    data = memoryview(bytearray(1 << 18))
    if kind == "datagrams":
        link = socket.socket(type=socket.SOCK_DGRAM)
        link.connect(("{HOST}", port))
        for n in range(size): link.send(data[:1400])
        return
    link = socket.create_connection(("{HOST}", port))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if kind == "send":
        while size: size -= link.send(data[:min(size, len(data))])
        link.shutdown(socket.SHUT_WR)
        link.recv(1)
    elif kind == "receive":
        while size: size -= link.recv_into(data)
        link.close()
    elif kind == "echo":
        while link.recv_into(data, 1): link.send(data[:1])
    elif kind == "connect":
        link.close()
        for n in range(size):
            link = socket.create_connection(("{HOST}", port))
            link.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            while link.recv_into(data): pass
            link.close()
orders = socket.create_connection(("{HOST}", int(PORT)))
for line in orders.makefile("r"):
    kind, count, port, size = line.split()
    threads = [threading.Thread(target=work, args=(kind, int(port), int(size)))
               for n in range(int(count))]
    for t in threads: t.start()
    for t in threads: t.join()
    orders.sendall(b".")
"""


def pour(link: socket.socket, size: int) -> None:
    data = memoryview(bytes(256 * 1024))
    while size:
        size -= link.send(data[: min(size, len(data))])
    link.recv(1)


def drain(link: socket.socket, size: int) -> None:
    buffer = bytearray(1 << 20)
    while size:
        count = link.recv_into(buffer)
        if not count:
            raise RuntimeError(f"{size} bytes are missing")
        size -= count
    link.close()


def volley(link: socket.socket, size: int) -> None:
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(size):
        link.send(b"x")
        link.recv(1)
    link.close()


def serve(link: socket.socket, size: int) -> None:
    while link.recv(4096):
        link.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 512\r\n\r\n" + bytes(512))
        link.shutdown(socket.SHUT_WR)
    link.close()


Serve = Callable[[socket.socket, int], None]
# Row: the guest's part, streams, the size for each (bytes, or turns), what the server does.
ROWS: dict[str, tuple[str, int, int, Serve]] = {
    "tcp guest to host": ("send", 1, 128 * MIB, drain),
    "tcp host to guest": ("receive", 1, 128 * MIB, pour),
    "tcp guest to host x8": ("send", 8, 16 * MIB, drain),
    "tcp host to guest x8": ("receive", 8, 16 * MIB, pour),
    "tcp round trips": ("echo", 1, 1000, volley),
    "http requests": ("connect", 1, 100, serve),
    "udp guest to host": ("datagrams", 1, 5000, drain),
}


class Server:
    """The host's side of all rows, for one guest."""

    def __init__(self) -> None:
        self.door = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.door.getsockname()[1]
        self.orders: socket.socket | None = None

    def meet(self) -> None:
        """Wait for the guest's program."""
        self.door.settimeout(PATIENCE)
        self.orders, _ = self.door.accept()
        self.orders.settimeout(PATIENCE)

    def run(self, name: str) -> float:
        """Run a row once; return its seconds. Raises RuntimeError."""
        assert self.orders is not None
        kind, count, size, act = ROWS[name]
        if kind == "datagrams":
            return self._datagrams(size)
        with socket.create_server(("127.0.0.1", 0), backlog=64) as door:
            door.settimeout(PATIENCE)
            port = door.getsockname()[1]
            self.orders.sendall(f"{kind} {count} {port} {size}\n".encode())
            links = [door.accept()[0] for _ in range(count)]
            began = time.perf_counter()
            faults: list[BaseException] = []

            def work(link: socket.socket) -> None:
                try:
                    link.settimeout(PATIENCE)
                    act(link, size)
                    link.close()
                except BaseException as fault:
                    faults.append(fault)

            if kind == "connect":
                links[0].close()
                began = time.perf_counter()
                for _ in range(size):
                    work(door.accept()[0])
            else:
                threads = [threading.Thread(target=work, args=(link,)) for link in links]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            taken = time.perf_counter() - began
            self._done()
        if faults:
            raise RuntimeError(f"{name}: {faults[0]}")
        return taken

    def _datagrams(self, size: int) -> float:
        assert self.orders is not None
        with socket.socket(type=socket.SOCK_DGRAM) as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * MIB)
            link.bind(("127.0.0.1", 0))
            link.settimeout(2.0)
            self.orders.sendall(f"datagrams 1 {link.getsockname()[1]} {size}\n".encode())
            link.recv(2048)
            began, count = time.perf_counter(), 1
            taken = 0.0
            with contextlib.suppress(TimeoutError):
                while count < size:
                    link.recv(2048)
                    count += 1
                    taken = time.perf_counter() - began
            self._done()
        if count < size:
            print(f"    {size - count} of {size} datagrams were lost")
        return taken

    def _done(self) -> None:
        assert self.orders is not None
        if self.orders.recv(1) != b".":
            raise RuntimeError("the guest's program ended")


def answer(pipe: Connection) -> None:
    """Be the server in a process of its own: ringzero's network is in this one."""
    server = Server()
    pipe.send(server.port)
    try:
        server.meet()
        pipe.send(None)
        while True:
            pipe.send(server.run(pipe.recv()))
    except (OSError, RuntimeError) as fault:
        pipe.send(RuntimeError(str(fault)))
    except EOFError:
        return


class Contender:
    """A machine with its network, and the server for it."""

    def __init__(self, machine: Any, others: list[int]) -> None:
        self.machine = machine
        self._pipe, theirs = PROCESSES.Pipe()
        PROCESSES.Process(target=answer, args=(theirs,), daemon=True).start()
        # Processes besides this one that work for the guest.
        self.others = others
        self._said = bytearray()

    def begin(self) -> None:
        """Start the guest's program."""
        if not self.machine.agent.wait_ready(PATIENCE):
            raise RuntimeError("the guest did not come up")
        status, _, complaint = self.machine.run(NETWORK, timeout=PATIENCE)
        if status:
            raise RuntimeError(f"{NETWORK}: {complaint.decode(errors='replace')}")
        program = GUEST.replace("PORT", str(self._answer()))
        self.machine.agent.run(["python3", "-c", program], on_stderr=self._said.extend)
        self._answer()

    def run(self, row: str) -> float:
        """Run a row once; return its seconds. Raises RuntimeError."""
        self._pipe.send(row)
        return float(self._answer())

    def _answer(self) -> Any:
        found = self._pipe.recv()
        if isinstance(found, RuntimeError):
            raise RuntimeError(f"{found}; {self._said.decode(errors='replace')}")
        return found

    def cpu(self) -> float:
        """Return the seconds that the processes have run."""
        used = 0.0
        for pid in self.others:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if not self.others:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            used += usage.ru_utime + usage.ru_stime
        return used


def config(image: Any, **options: Any) -> MachineConfig:
    return MachineConfig.create(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=image.command_line,
        memory=MEMORY,
        agent=True,
        **options,
    )


@contextlib.contextmanager
def contenders(image: Any, names: list[str]) -> Iterator[dict[str, Contender]]:
    """Yield the machines that are to be compared, ready."""
    with contextlib.ExitStack() as stack:
        found: dict[str, Contender] = {}
        if "ringzero" in names:
            machine = guests.build("ringzero", config(image, net=NetConfig("user", mac=MAC)))
            stack.enter_context(machine)
            found["ringzero"] = Contender(machine, [])
        if "qemu" in names:
            device = f"virtio-net-device,netdev=n,mac={MAC}"
            qemu = QemuMachine(config(image))
            qemu.extra = ["-netdev", "user,id=n", "-device", device]
            stack.enter_context(qemu)
            found["qemu"] = Contender(qemu, [qemu.process.pid])
        if "passt" in names:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            place.chmod(0o777)
            passt = subprocess.Popen(
                [
                    *("passt", "--foreground", "--quiet", "--socket", place / "s"),
                    *("-a", "10.0.2.15", "-n", "24", "-g", HOST),
                ],
                stdin=subprocess.DEVNULL,
            )
            stack.callback(passt.kill)
            while not (place / "s").exists():
                time.sleep(0.01)
            qemu = QemuMachine(config(image))
            stream = f"stream,id=n,server=off,addr.type=unix,addr.path={place}/s"
            qemu.extra = ["-netdev", stream, "-device", f"virtio-net-device,netdev=n,mac={MAC}"]
            stack.enter_context(qemu)
            found["passt"] = Contender(qemu, [qemu.process.pid, passt.pid])
        for contender in found.values():
            contender.begin()
        yield found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="rows whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="comma-separated: ringzero, qemu, passt")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    reason = guests.missing("qemu")
    if reason:
        print(f"bench/network.py: {reason}")
        return 0
    names = options.only.split(",") if options.only else ["ringzero", "qemu", "passt"]
    if not shutil.which("passt") and "passt" in names:
        names.remove("passt")
        print("bench/network.py: passt is not installed")
    rows: dict[str, dict[str, tuple[float, float]]] = {}
    try:
        with contenders(ensure(guests.TOOLS, progress=Progress()), names) as found:
            for row in ROWS:
                if options.words and not any(word in row for word in options.words):
                    continue
                best = rows[row] = dict.fromkeys(found, (math.inf, 0.0))
                for _ in range(options.rounds):
                    for name, contender in found.items():
                        spent = contender.cpu()
                        taken = contender.run(row)
                        best[name] = min(best[name], (taken, contender.cpu() - spent))
                print(show(row, best), flush=True)
    except (RingzeroError, GuestError, RuntimeError, OSError) as fault:
        print(f"bench/network.py: {fault}", file=sys.stderr)
        return 1
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def show(name: str, row: dict[str, tuple[float, float]]) -> str:
    """Return a row as text: seconds, and how many times faster than each other ringzero is."""
    line = f"{name:22}"
    for kind, (taken, spent) in row.items():
        line += f"  {kind} {taken:.3f} s (CPU {spent:.2f})"
        if kind != "ringzero" and "ringzero" in row:
            line += f" x{taken / row['ringzero'][0]:.2f}"
    return line


if __name__ == "__main__":
    sys.exit(main())
