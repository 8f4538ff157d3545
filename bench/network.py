"""The user network beside QEMU's (libslirp), passt and gvisor-tap-vsock: a table of ratios.

    python bench/network.py                    all rows
    python bench/network.py tcp                rows whose name contains one of the words
    python bench/network.py --only ringzero,qemu --rounds 5 --json out.json

All guests boot the same kernel and initrd on one vCPU (QEMU by TCG) and run the same Python
program, in turn, against the same server on the host's loopback, which takes the time; the best
of `--rounds` counts. passt (where it is installed) and gvproxy (which `go install` brings, once)
are behind QEMU's `-netdev stream`. "CPU" is what the host's processes spent on the row's best
round, in seconds. "stack" is what the network spent of it for each GiB, by all rounds: its thread
in ringzero, QEMU's main thread with libslirp (both with the device), or the process itself of
passt and gvproxy (without the device, which is QEMU's).
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
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.vm import guests  # noqa: E402 - after the path
from tests.vm.qemu import QemuMachine  # noqa: E402

from ringzero.config.devices.net import NetConfig  # noqa: E402
from ringzero.config.machine import MachineConfig  # noqa: E402
from ringzero.config.ports import parse_ports  # noqa: E402
from ringzero.errors import GuestError, RingzeroError  # noqa: E402
from ringzero.host.progress import Progress  # noqa: E402
from ringzero.image.micro import ensure  # noqa: E402
from ringzero.units import MIB  # noqa: E402

NAMES = ("ringzero", "qemu", "passt", "gvproxy")
PROCESSES = multiprocessing.get_context("spawn")
MEMORY = 512 * MIB
GIB = 1 << 30
PATIENCE = 120.0
MAC = "02:00:00:00:00:15"
# The guest's port that is forwarded.
WEB = 8000
# The last release of gvisor-tap-vsock whose build was tried here.
GVPROXY = "github.com/containers/gvisor-tap-vsock/cmd/gvproxy@v0.8.6"
BUILD_TIME = 300.0


@dataclass(frozen=True)
class Plan:
    """The addresses of one network: the guest's, its gateway's, and those that lead to the host's
    127.0.0.1 and ::1 (None where there is no such).
    """

    guest: str = "10.0.2.15"
    gateway: str = "10.0.2.2"
    host: str = "10.0.2.2"
    host6: str | None = None

    def command(self) -> str:
        """Return what sets the interface up; ringzero's own guests have done so already."""
        static = f"ip addr add {self.guest}/24 dev eth0; ip route add default via {self.gateway}"
        waiting = (
            "for n in 1 2 3 4 5 6 7 8 9 10; do ip -6 route | grep -q default && "
            "! ip -6 addr | grep -q tentative && break; sleep 0.5; done"
        )
        return (
            f"ip link set lo up; ip link set eth0 up; ip addr show eth0 | grep -q {self.guest} || "
            f"{{ {static}; }}; {waiting if self.host6 else 'true'}"
        )


# Runs in the guest: waits at one connection for orders, so that Python's own start is not counted.
GUEST = f"""
import socket, threading
door = socket.create_server(("", {WEB}), backlog=64)
def work(kind, port, size, host):
    data = memoryview(bytearray(1 << 18))
    if kind == "serve":
        for n in range(size):
            link = door.accept()[0]
            link.recv_into(data)
            link.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: 512\\r\\n\\r\\n" + bytes(512))
            link.close()
        return
    if kind == "datagrams":
        link = socket.socket(type=socket.SOCK_DGRAM)
        link.connect((host, port))
        for n in range(size): link.send(data[:1400])
        return
    link = socket.create_connection((host, port))
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
            link = socket.create_connection((host, port))
            link.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            while link.recv_into(data): pass
            link.close()
orders = socket.create_connection((HOST, PORT))
for line in orders.makefile("r"):
    kind, count, port, size, host = line.split()
    threads = [threading.Thread(target=work, args=(kind, int(port), int(size), host))
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


def visit(link: socket.socket, size: int) -> None:
    link.sendall(b"GET / HTTP/1.0\r\n\r\n")
    got = 0
    while piece := link.recv(4096):
        got += len(piece)
    if got < size:
        raise RuntimeError(f"an answer of {got} bytes")


@dataclass(frozen=True)
class Row:
    """`kind` is the guest's part, `act` the server's; `size` is for each of `streams`.

    It is in bytes, or turns. `six` is over IPv6; `bulk` says that bytes are what counts.
    """

    kind: str
    streams: int
    size: int
    act: Callable[[socket.socket, int], None]
    six: bool = False
    bulk: bool = False


ROWS = {
    "tcp guest to host": Row("send", 1, 128 * MIB, drain, bulk=True),
    "tcp host to guest": Row("receive", 1, 128 * MIB, pour, bulk=True),
    "tcp guest to host x8": Row("send", 8, 16 * MIB, drain, bulk=True),
    "tcp host to guest x8": Row("receive", 8, 16 * MIB, pour, bulk=True),
    "tcp round trips": Row("echo", 1, 1000, volley),
    "http requests": Row("connect", 1, 100, serve),
    "http, forwarded port": Row("serve", 1, 100, visit),
    "udp guest to host": Row("datagrams", 1, 5000, drain),
    "tcp6 guest to host": Row("send", 1, 128 * MIB, drain, six=True, bulk=True),
    "tcp6 host to guest": Row("receive", 1, 128 * MIB, pour, six=True, bulk=True),
    "tcp6 round trips": Row("echo", 1, 1000, volley, six=True),
}


class Server:
    """The host's side of all rows, for one guest; `forwarded` leads to its port `WEB`."""

    def __init__(self, plan: Plan, forwarded: int) -> None:
        self.plan, self.forwarded = plan, forwarded
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
        row = ROWS[name]
        if row.kind == "datagrams":
            return self._datagrams(row.size)
        if row.kind == "serve":
            return self._visits(row)
        family, place = (socket.AF_INET6, "::1") if row.six else (socket.AF_INET, "127.0.0.1")
        with socket.create_server((place, 0), family=family, backlog=64) as door:
            door.settimeout(PATIENCE)
            self._order(row.kind, row.streams, door.getsockname()[1], row.size, row.six)
            links = [door.accept()[0] for _ in range(row.streams)]
            began = time.perf_counter()
            faults: list[BaseException] = []

            def work(link: socket.socket) -> None:
                try:
                    link.settimeout(PATIENCE)
                    row.act(link, row.size)
                    link.close()
                except BaseException as fault:
                    faults.append(fault)

            if row.kind == "connect":
                links[0].close()
                began = time.perf_counter()
                for _ in range(row.size):
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

    def _order(self, kind: str, count: int, port: int, size: int, six: bool = False) -> None:
        assert self.orders is not None
        host = self.plan.host6 if six else self.plan.host
        self.orders.sendall(f"{kind} {count} {port} {size} {host}\n".encode())

    def _visits(self, row: Row) -> float:
        """Ask the guest's own server, by the port that leads to it."""
        self._order(row.kind, 1, WEB, row.size)
        began = time.perf_counter()
        for _ in range(row.size):
            with socket.create_connection(("127.0.0.1", self.forwarded), PATIENCE) as link:
                row.act(link, 512)
        taken = time.perf_counter() - began
        self._done()
        return taken

    def _datagrams(self, size: int) -> float:
        with socket.socket(type=socket.SOCK_DGRAM) as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * MIB)
            link.bind(("127.0.0.1", 0))
            link.settimeout(2.0)
            self._order("datagrams", 1, link.getsockname()[1], size)
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


def answer(pipe: Connection, plan: Plan, forwarded: int) -> None:
    """Be the server in a process of its own: ringzero's network is in this one."""
    server = Server(plan, forwarded)
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
    """A machine with its network, and the server for it.

    `processes` besides this one work for the guest; `stack` are the threads of the network, as
    (process, thread), or whole processes with None.
    """

    def __init__(
        self,
        machine: Any,
        plan: Plan,
        forwarded: int,
        processes: list[int],
        stack: tuple[int, int | None],
    ) -> None:
        self.machine, self.plan = machine, plan
        self.processes, self.stack = processes, stack
        self._pipe, theirs = PROCESSES.Pipe()
        PROCESSES.Process(target=answer, args=(theirs, plan, forwarded), daemon=True).start()
        self._said = bytearray()

    def begin(self) -> None:
        """Start the guest's program."""
        if not self.machine.agent.wait_ready(PATIENCE):
            raise RuntimeError("the guest did not come up")
        command = self.plan.command()
        status, _, complaint = self.machine.run(command, timeout=PATIENCE)
        if status:
            raise RuntimeError(f"{command}: {complaint.decode(errors='replace')}")
        program = GUEST.replace("HOST,", f"{self.plan.host!r},")
        program = program.replace("PORT)", f"{self._answer()})")
        self.machine.agent.run(["python3", "-c", program], on_stderr=self._said.extend)
        self._answer()

    def can(self, row: Row) -> bool:
        """Return whether its network has what the row wants."""
        return not row.six or self.plan.host6 is not None

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
        if not self.processes:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            return usage.ru_utime + usage.ru_stime
        return sum(spent(pid, None) for pid in self.processes)

    def stack_cpu(self) -> float:
        """Return the seconds that the network has run."""
        return spent(*self.stack)


def spent(process: int, thread: int | None) -> float:
    """Return the seconds that a process, or one thread of it, has run."""
    found = 0
    for place in Path(f"/proc/{process}/task").glob("*" if thread is None else str(thread)):
        with contextlib.suppress(OSError):
            found += int((place / "schedstat").read_text().split()[0])
    return found / 1e9


def config(image: Any, **options: Any) -> MachineConfig:
    return MachineConfig.create(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=image.command_line,
        memory=MEMORY,
        agent=True,
        **options,
    )


def free_port() -> int:
    """Return a port that is free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def contenders(image: Any, names: list[str]) -> Iterator[dict[str, Contender]]:
    """Yield the machines that are to be compared, ready."""
    makers = {"ringzero": ringzero, "qemu": libslirp, "passt": passt, "gvproxy": gvproxy}
    with contextlib.ExitStack() as stack:
        found = {name: makers[name](image, stack) for name in names}
        for contender in found.values():
            contender.begin()
        yield found


def ringzero(image: Any, stack: contextlib.ExitStack) -> Contender:
    ports = tuple(parse_ports(f"0:{WEB}"))
    machine = guests.build("ringzero", config(image, net=NetConfig("user", mac=MAC, ports=ports)))
    stack.enter_context(machine)
    (thread,) = (t.native_id for t in threading.enumerate() if t.name == "net")
    (forward,) = machine.nets.ports()
    plan = Plan(host6="fd72:7a00:0:2::2")
    return Contender(machine, plan, forward.port, [], (os.getpid(), thread))


def qemu(image: Any, stack: contextlib.ExitStack, netdev: str) -> QemuMachine:
    """Start QEMU with a network."""
    machine = QemuMachine(config(image))
    machine.extra = ["-netdev", netdev, "-device", f"virtio-net-device,netdev=n,mac={MAC}"]
    stack.enter_context(machine)
    return machine


def libslirp(image: Any, stack: contextlib.ExitStack) -> Contender:
    port = free_port()
    machine = qemu(image, stack, f"user,id=n,hostfwd=tcp:127.0.0.1:{port}-:{WEB}")
    number = machine.process.pid
    return Contender(machine, Plan(host6="fec0::2"), port, [number], (number, number))


def behind(
    image: Any, stack: contextlib.ExitStack, command: list[Any], place: Path
) -> tuple[QemuMachine, int]:
    """Start a network's process and, behind its socket `place`, QEMU; return both."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.kill)
    deadline = time.monotonic() + PATIENCE
    while not place.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{command[0]} did not begin")
        time.sleep(0.01)
    return qemu(
        image, stack, f"stream,id=n,server=off,addr.type=unix,addr.path={place}"
    ), process.pid


def passt(image: Any, stack: contextlib.ExitStack) -> Contender:
    folder, plan, port = (
        Path(stack.enter_context(tempfile.TemporaryDirectory())),
        Plan(),
        free_port(),
    )
    # As root it becomes nobody.
    folder.chmod(0o777)
    command = [
        *("passt", "--foreground", "--quiet", "--socket", folder / "s", "--ipv4-only"),
        *("-a", plan.guest, "-n", "24", "-g", plan.gateway, "-t", f"127.0.0.1/{port}:{WEB}"),
    ]
    machine, number = behind(image, stack, command, folder / "s")
    return Contender(machine, plan, port, [machine.process.pid, number], (number, None))


def gvproxy(image: Any, stack: contextlib.ExitStack) -> Contender:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    port = free_port()
    plan = Plan("192.168.127.2", "192.168.127.1", "192.168.127.254")
    command = [
        *(gvproxy_program(), "-listen-qemu", f"unix://{folder}/s", "-mtu", "1500"),
        *("-services", f"unix://{folder}/api", "-ssh-port", str(free_port())),
    ]
    machine, number = behind(image, stack, command, folder / "s")
    wanted = json.dumps({"local": f"127.0.0.1:{port}", "remote": f"{plan.guest}:{WEB}"}).encode()
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(folder / "api"))
        link.sendall(
            b"POST /services/forwarder/expose HTTP/1.0\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(wanted)}\r\n\r\n".encode()
            + wanted
        )
        if b" 200 " not in link.recv(4096):
            raise RuntimeError("gvproxy forwards no port")
    return Contender(machine, plan, port, [machine.process.pid, number], (number, None))


def gvproxy_program() -> Path:
    """Return where gvproxy is built."""
    version = GVPROXY.rpartition("@")[2]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "ringzero" / "bench" / version / "gvproxy"


def missing(name: str) -> str | None:
    """Return why a network cannot take part, or None."""
    if name == "passt" and not shutil.which("passt"):
        return "passt is not installed"
    if name == "gvproxy" and not gvproxy_program().exists():
        if not shutil.which("go"):
            return "gvproxy wants Go to be built"
        where = {**os.environ, "GOBIN": str(gvproxy_program().parent), "CGO_ENABLED": "0"}
        try:
            subprocess.run(
                ["go", "install", GVPROXY], env=where, check=True, timeout=BUILD_TIME,
                capture_output=True,
            )  # fmt: skip
        except subprocess.SubprocessError as fault:
            return f"gvproxy was not built: {fault}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="rows whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help=f"comma-separated: {', '.join(NAMES)}")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    reason = guests.missing("qemu")
    if reason:
        print(f"bench/network.py: {reason}")
        return 0
    names = options.only.split(",") if options.only else list(NAMES)
    for name in names:
        if name not in NAMES:
            parser.error(f"there is no network {name!r}")
        if reason := missing(name):
            print(f"bench/network.py: {reason}")
    names = [name for name in names if missing(name) is None]
    rows: dict[str, dict[str, Result]] = {}
    try:
        with contenders(ensure(guests.TOOLS, progress=Progress()), names) as found:
            for title, row in ROWS.items():
                if options.words and not any(word in title for word in options.words):
                    continue
                who = {name: c for name, c in found.items() if c.can(row)}
                best = rows[title] = {name: Result() for name in who}
                for _ in range(options.rounds):
                    for name, contender in who.items():
                        best[name].take(contender, title)
                print(show(title, best), flush=True)
    except (RingzeroError, GuestError, RuntimeError, OSError) as fault:
        print(f"bench/network.py: {fault}", file=sys.stderr)
        return 1
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1, default=vars) + "\n")
    return 0


@dataclass
class Result:
    """A contender's best round of a row, in seconds; and the network's CPU in all of them."""

    taken: float = math.inf
    cpu: float = 0.0
    stack: float = 0.0
    rounds: int = 0

    def take(self, contender: Contender, row: str) -> None:
        """Run a row once more."""
        cpu, stack = contender.cpu(), contender.stack_cpu()
        taken = contender.run(row)
        if taken < self.taken:
            self.taken, self.cpu = taken, contender.cpu() - cpu
        self.stack += contender.stack_cpu() - stack
        self.rounds += 1


def show(title: str, results: dict[str, Result]) -> str:
    """Return a row as text: seconds, and how many times faster than each other ringzero is."""
    line, row = f"{title:22}", ROWS[title]
    for name, result in results.items():
        line += f"  {name} {result.taken:.3f} s (CPU {result.cpu:.2f}"
        if row.bulk:
            size = row.streams * row.size * result.rounds / GIB
            line += f", stack {result.stack / size:.2f} s/GiB"
        line += ")"
        if name != "ringzero" and "ringzero" in results:
            line += f" x{result.taken / results['ringzero'].taken:.2f}"
    return line


if __name__ == "__main__":
    sys.exit(main())
