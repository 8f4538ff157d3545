"""The host CPU as an oracle: cases run natively in a child process, in batches."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import select
import signal
import socket
import struct
import subprocess
from types import TracebackType
from typing import Final

from tests.oracle import native_runtime as runtime
from tests.oracle.model import (
    CODE_BASE,
    CODE_SIZE,
    CRASHED,
    DATA_BASE,
    DATA_END,
    STATE_SIZE,
    SYSCALL,
    TIMED_OUT,
    Case,
    Outcome,
    State,
)

_CS: Final = {64: 0x33, 32: 0x23}
"""Linux's user code segments: 64-bit, and compatibility mode."""
_PATCH: Final = struct.Struct("<II")
_CONTROL: Final = struct.Struct("<QQQQ")
_LINE: Final = struct.Struct("<Q64s")
_MAX_BATCH: Final = 4096


def native_available() -> bool:
    """Whether this host can run the oracle: Linux 5.9 or later on x86-64 with FSGSBASE."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    hardware_capabilities_2, fsgsbase = 26, 2
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype = ctypes.c_ulong
    return bool(getauxval(hardware_capabilities_2) & fsgsbase)


class Native:
    """Runs cases on the host CPU; see `native_runtime` for how.

    A case that runs longer than `patience` seconds ends as `TIMED_OUT`; one
    that kills the child as `CRASHED`, and the others go on in a new child.
    """

    name = "native"

    def __init__(self, patience: float = 0.1) -> None:
        self._patience = patience
        self._memory_fd = os.memfd_create("oracle-batch", 0)
        os.ftruncate(self._memory_fd, runtime.SHARED_SIZE)
        self._shared = mmap.mmap(self._memory_fd, runtime.SHARED_SIZE)
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Native:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child and give back the memory."""
        self._stop()
        self._shared.close()
        os.close(self._memory_fd)

    def run(self, cases: list[Case]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        while len(outcomes) < len(cases):
            outcomes += self._run_batch(cases, len(outcomes))
        return outcomes

    def _run_batch(self, cases: list[Case], first: int) -> list[Outcome]:
        records = []
        size = 0
        for case in cases[first : first + _MAX_BATCH]:
            record = _pack(case)
            size += len(record)
            if size > runtime.INPUT_SIZE:
                break
            records.append(record)
        shared = self._shared
        start = runtime.INPUT_OFFSET
        shared[start : start + min(size, runtime.INPUT_SIZE)] = b"".join(records).ljust(
            min(size, runtime.INPUT_SIZE), b"\0"
        )
        _CONTROL.pack_into(shared, 0, len(records), 0, (1 << 64) - 1, 0)
        alive = self._execute()
        _count, current, _cancel, done = _CONTROL.unpack_from(shared, 0)
        completed = done if alive else current
        outcomes = self._unpack(cases[first : first + completed])
        if not alive:
            if self._stop() == runtime.EXIT_BROKEN:
                raise RuntimeError("the native runtime cannot set itself up on this host")
            outcomes.append(Outcome(cases[first + completed].state, CRASHED))
        return outcomes

    def _execute(self) -> bool:
        """Let the child run the batch; false if it died."""
        if self._child is None:
            self._child = self._start()
        seen = -1
        try:
            self._socket.send(b"g")
            ready = select.poll()
            ready.register(self._socket, select.POLLIN)
            while not ready.poll(self._patience * 1000):
                current = struct.unpack_from("<Q", self._shared, 8)[0]
                if current == seen:
                    struct.pack_into("<Q", self._shared, 16, current)
                    self._child.send_signal(signal.SIGALRM)
                seen = current
            return self._socket.recv(1) != b""
        except ConnectionError:
            return False

    def _start(self) -> subprocess.Popen[bytes]:
        self._socket, theirs = socket.socketpair()
        image = os.memfd_create("oracle-native", 0)
        try:
            os.write(image, runtime.build_elf())
            return subprocess.Popen(
                [f"/proc/self/fd/{image}"],
                stdin=self._memory_fd,
                stdout=theirs,
                pass_fds=(image,),
            )
        finally:
            os.close(image)
            theirs.close()

    def _stop(self) -> int | None:
        """End the child; its exit status, if there was one."""
        child, self._child = self._child, None
        if child is None:
            return None
        self._socket.close()
        try:
            return child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()

    def _unpack(self, cases: list[Case]) -> list[Outcome]:
        outcomes = []
        shared = self._shared
        at = runtime.OUTPUT_OFFSET
        for case in cases:
            raw = shared[at : at + STATE_SIZE]
            address, signum, trap, error, lines = runtime.OUTPUT_TAIL.unpack_from(
                shared, at + STATE_SIZE
            )
            at += STATE_SIZE + runtime.OUTPUT_TAIL.size
            end = at + _LINE.size * lines
            memory = tuple(_LINE.iter_unpack(shared[at:end])) if lines else ()
            at = -(-end // 16) * 16
            if signum == runtime.SIGALRM:
                outcomes.append(Outcome(case.state, TIMED_OUT))
                continue
            if case.mode != 64:
                raw = _narrow(raw)
            if address >> 63:
                error &= ~1  # whether the host's kernel has a page there is not the guest's matter
            vector = SYSCALL if signum == runtime.SIGSYS else trap
            outcomes.append(Outcome(State(raw), vector, error, address, memory))
        return outcomes


def _narrow(raw: bytes) -> bytes:
    """Compatibility mode leaves the upper halves and R8 to R15 undefined: zero them."""
    low = struct.unpack_from("<16I", raw)
    return struct.pack("<8Q", *low[::2]) + bytes(64) + raw[128:]


def _pack(case: Case) -> bytes:
    patches = [_pack_patch(case.state.rip, case.code)]
    patches += [_pack_patch(address, content) for address, content in case.memory]
    body = b"".join(patches)
    size = -(-(runtime.PATCHES_AT + len(body)) // 16) * 16
    header = runtime.INPUT_HEADER.pack(size, len(patches), _CS[case.mode], 0)
    return (header + case.state.raw + body).ljust(size, b"\0")


def _pack_patch(address: int, content: bytes) -> bytes:
    if CODE_BASE <= address <= CODE_BASE + CODE_SIZE - len(content):
        offset = address - CODE_BASE
    elif DATA_BASE <= address <= DATA_END - runtime.RO_SIZE - len(content):
        offset = CODE_SIZE + address - DATA_BASE
    else:
        raise ValueError(f"{len(content)} bytes at {address:#x} are not in the guest window")
    padded = content.ljust(-(-len(content) // 8) * 8, b"\0")
    return _PATCH.pack(offset, len(content)) + padded
