"""Processes of the runner: their ends, and what becomes a script of the guest's own."""

from __future__ import annotations

from ringzero.image.guest.runner.memory import (
    CANNOT_RUN,
    EINTR,
    EXECVE,
    EXIT,
    PATH,
    RT_SIGPROCMASK,
    SET_SIZE,
    SHORT,
    SIG_SETMASK,
    STATE,
    TEXT,
    WAIT4,
    WORDS,
    ZEROS,
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
def status_of() -> u64:
    """Return the status that wait4(2) has told, as shells tell it."""
    state = known()
    signal = u64(state.status & 0x7F)
    if signal != 0:
        return signal + 128
    return u64((state.status >> 8) & 0xFF)


@native
def take_signals() -> None:
    """Block no signal: what a child does that becomes a program."""
    system(RT_SIGPROCMASK, SIG_SETMASK, ZEROS, 0, SET_SIZE)


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
            return status_of()
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
    take_signals()
    system(EXECVE, PATH, WORDS, variables)
    leave_with(u64(CANNOT_RUN))
