"""Processes of the runner: their ends, and what becomes a script of the guest's own."""

from __future__ import annotations

from ringzero.image.guest.runner.memory import (
    CANNOT_RUN,
    EINTR,
    EXECVE,
    EXIT,
    PATH,
    SHORT,
    STATE,
    TEXT,
    WAIT4,
    WORDS,
    State,
    known,
    system,
    text,
)
from ringzero.image.guest.runner.text import append
from ringzero.native import i64, native, store, u32, u64


@native
def leave_with(status: u64) -> None:
    """End this process."""
    while True:
        system(EXIT, status)


@native
def wait_for(process: u64) -> u64:
    """Wait for a child's end, and return its status as shells tell it; others end meanwhile."""
    state = known()
    while True:
        state.status = u32(0)
        found = system(WAIT4, -1, address_of_status(), 0, 0)
        if found == i64(state.feeder):
            state.feeder = u64(0)
        if found == i64(process):
            signal = u64(state.status & 0x7F)
            if signal != 0:
                return signal + 128
            return u64((state.status >> 8) & 0xFF)
        if found < 0 and found != -EINTR:
            return 255


def address_of_status() -> int:
    """Return where wait4(2) is to put a status."""
    return STATE + State.offset_of("status")


@native
def run_script(name: u64, variables: u64) -> None:
    """Become a script of the guest's own, NAME below `tools`; its words begin at FIRST_WORD."""
    state = known()
    append(append(u64(TEXT), state.tools, u64(SHORT)), name, u64(SHORT))
    append(append(u64(PATH), state.tools, u64(SHORT)), u64(text("/bin/busybox")), u64(SHORT))
    store(u64, WORDS, u64(text("sh")))
    store(u64, WORDS, u64(TEXT), offset=8)
    system(EXECVE, PATH, WORDS, variables)
    leave_with(u64(CANNOT_RUN))
