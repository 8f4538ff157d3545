"""Debian's gdb, unmodified, on a Linux of ringzero's: breakpoints, steps, vCPUs, memory."""

import re
import shutil
import struct
import subprocess
import threading

import pytest

from ringzero.errors import HostError
from ringzero.vm.gdb.listener import GdbListener, MachineTarget
from ringzero.vm.machine import Machine

GDB = shutil.which("gdb")
pytestmark = [
    pytest.mark.boot, pytest.mark.engine, pytest.mark.peer,
    pytest.mark.skipif(GDB is None, reason="needs gdb"),
]  # fmt: skip
SYMBOLS = ("__x64_sys_newuname", "start_kernel", "jiffies_64", "schedule", "do_syscall_64")
TIMEOUT = 120


def build(**fields):
    try:
        return Machine(image="micro", memory="192M", engine="soft", **fields)
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")


def symbol_file(path, addresses):
    """Write an ELF file that has nothing but symbols (System V ABI, chapter 4)."""
    strings, symbols = b"\0", bytes(24)
    for name, address in addresses.items():
        # STB_GLOBAL, STT_FUNC or STT_OBJECT, in section 1.
        kind = 0x11 if name.startswith("jiffies") else 0x12
        symbols += struct.pack("<IBBHQQ", len(strings), kind, 0, 1, address, 8)
        strings += name.encode() + b"\0"
    names = b"\0.text\0.symtab\0.strtab\0.shstrtab\0"
    start = min(addresses.values()) & ~0xFFF
    at = 64
    sections = [bytes(64)]
    # SHT_NOBITS, allocated and executable, over all of them.
    sections.append(struct.pack("<IIQQQQIIQQ", 1, 8, 6, start, at, 0x4000000, 0, 0, 16, 0))
    for name, kind, data, link, info, size in (
        (7, 2, symbols, 3, 1, 24), (15, 3, strings, 0, 0, 0), (23, 3, names, 0, 0, 0),
    ):  # fmt: skip
        sections.append(
            struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, at, len(data), link, info, 8, size)
        )
        at += len(data)
    header = (
        b"\x7fELF\2\1\1"
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, at, 0, 64, 0, 0, 64, len(sections), 4)
    )
    path.write_bytes(header + symbols + strings + names + b"".join(sections))
    return path


@pytest.fixture(scope="module")
def machine():
    with build(cpus=2) as found:
        yield found


@pytest.fixture(scope="module")
def symbols(machine, tmp_path_factory):
    words = "|".join(SYMBOLS)
    text = machine.run(
        f"echo 0 > /proc/sys/kernel/kptr_restrict; grep -E ' ({words})$' /proc/kallsyms",
        timeout=TIMEOUT,
    ).stdout.decode()
    addresses = {line.split()[2]: int(line.split()[0], 16) for line in text.splitlines()}
    assert set(addresses) == set(SYMBOLS)
    return symbol_file(tmp_path_factory.mktemp("symbols") / "vmlinux", addresses)


@pytest.fixture
def listener(machine, tmp_path):
    with GdbListener(f"unix:{tmp_path / 'gdb'}", MachineTarget(machine)) as found:
        found.start()
        yield found


def gdb(where, symbols, *commands, meanwhile=None):
    words = [GDB, "-batch", "-nx", str(symbols), "-ex", f"target remote {where}"]
    for command in ("set pagination off", "set confirm off", *commands):
        words += ["-ex", command]
    worker = threading.Timer(1.0, meanwhile) if meanwhile is not None else None
    if worker is not None:
        worker.start()
    found = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT)
    if worker is not None:
        worker.join()
    return found.stdout + found.stderr


def test_a_breakpoint_in_a_system_call(machine, symbols, listener):
    said = gdb(
        listener.address, symbols,
        "break __x64_sys_newuname", "continue", "info threads", "x/2i $pc",
        "stepi", "info registers rip", "finish", "delete", "detach",
        meanwhile=lambda: machine.run("uname", timeout=TIMEOUT),
    )  # fmt: skip
    assert re.search(r"Thread \d hit Breakpoint 1, .*__x64_sys_newuname", said), said
    assert "Thread 2 (vCPU 1)" in said and "__x64_sys_newuname+5" in said, said
    assert machine.run("echo fine", timeout=TIMEOUT).stdout == b"fine\n"


def test_a_hardware_breakpoint_on_every_vcpu_steps_and_changes(machine, symbols, listener):
    said = gdb(
        listener.address, symbols,
        "hbreak schedule", "continue", "continue", "continue", "stepi 100", "p $_thread",
        "p/x $cs", "set $rax = $rax", "p $xmm0", "p $mxcsr", "detach",
    )  # fmt: skip
    assert said.count("hit Breakpoint 1") >= 3 and "0x10" in said and "v4_float" in said, said
    assert machine.run("echo fine", timeout=TIMEOUT).stdout == b"fine\n"


def test_a_watchpoint(machine, symbols, listener):
    said = gdb(
        listener.address, symbols,
        "watch *(unsigned long *)&jiffies_64", "continue", "delete", "detach",
    )  # fmt: skip
    assert "Hardware watchpoint 1" in said, said
    old, new = (int(re.search(rf"{word} value = (\d+)", said)[1]) for word in ("Old", "New"))
    assert old < new


def test_an_interrupt_and_attaching_again(machine, symbols, listener):
    for _ in range(2):
        said = gdb(
            listener.address, symbols,
            "python import threading, os, signal",
            "python threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()",
            "continue", "p 6 * 7", "monitor info threads", "detach",
        )  # fmt: skip
        assert "SIGINT" in said and "$1 = 42" in said and "vCPU 1" in said, said
    assert machine.run("echo fine", timeout=TIMEOUT).stdout == b"fine\n"


def test_before_the_first_instruction(symbols, tmp_path):
    machine = build()
    with machine, GdbListener("127.0.0.1:0", MachineTarget(machine)) as listener:
        machine.hand_over = listener.start
        machine.start()
        said = gdb(
            listener.address, symbols,
            "p $rip", "stepi 10", "hbreak start_kernel", "continue", "bt 1", "kill",
        )  # fmt: skip
        assert "Breakpoint 1, 0xffffffff" in said and "in start_kernel ()" in said, said
        assert machine.wait(TIMEOUT).reason.value == "stopped"
