"""What commands write: two pipes, which the runner copies to the host's ports while it waits.

One process does it for both: another that slept until there is something would cost a copy of the
machine the pages that it wakes up with. Pipes are the slot's and not the command's, so that a
process that is left behind can go on writing.
"""

from __future__ import annotations

from ringzero.image.guest.runner.memory import (
    CANNOT_RUN,
    EINTR,
    FIONREAD,
    IOCTL,
    OUTPUT,
    OUTPUT_PIECE,
    POLL,
    POLLFD_SIZE,
    POLLIN,
    POLLS,
    READ,
    SHORT,
    SIGNAL_INFO,
    STAT_PLACE,
    STDERR,
    STDOUT,
    TICK,
    WAIT4,
    WNOHANG,
    known,
    system,
)
from ringzero.image.guest.runner.process import address_of_status, status_of
from ringzero.image.guest.runner.text import append, put
from ringzero.native import i64, load, native, select, store, u16, u32, u64


@native
def copy(pipe: u64, port: u64) -> None:
    """Write what a pipe holds to a port, as far as it is there at once."""
    size, more = u64(0), u64(1)
    while more != 0 and size < OUTPUT_PIECE:
        count = system(READ, pipe, OUTPUT + size, OUTPUT_PIECE - size)
        if count > 0:
            size += u64(count)
        elif count != -EINTR:
            more = u64(0)
    put(port, u64(OUTPUT), size)


@native
def close_output(pipe: u64, port: u64, token: u64) -> None:
    """Write to a port what its pipe holds now, and the token behind it."""
    store(u64, STAT_PLACE, u64(0))
    system(IOCTL, pipe, FIONREAD, STAT_PLACE)
    left, size = load(u64, STAT_PLACE), u64(0)
    while left != 0:
        put(port, u64(OUTPUT), size)
        size = u64(0)
        most = select(left < OUTPUT_PIECE, left, u64(OUTPUT_PIECE))
        count = system(READ, pipe, OUTPUT, most)
        if count > 0:
            size = u64(count)
            left -= size
        elif count != -EINTR:
            left = u64(0)
    end = append(OUTPUT + size, token, u64(SHORT - 1))
    put(port, u64(OUTPUT), end - OUTPUT)


@native
def watch(descriptor: u64) -> None:
    """Copy what commands write until there is something to read at the descriptor.

    One that is none is waited for a moment. Children that end meanwhile are let go of.
    """
    state = known()
    patience = select(i64(descriptor) < 0, i64(TICK), i64(-1))
    while True:
        for n in range(4):
            store(u32, POLLS, u32(POLLIN), offset=n * POLLFD_SIZE + 4)
        store(u32, POLLS, u32(descriptor))
        store(u32, POLLS, state.out[0], offset=POLLFD_SIZE)
        store(u32, POLLS, state.err[0], offset=2 * POLLFD_SIZE)
        store(u32, POLLS, u32(state.children), offset=3 * POLLFD_SIZE)
        count = system(POLL, POLLS, 4, patience)
        if count > 0:
            if load(u16, POLLS, POLLFD_SIZE + 6) != 0:
                copy(u64(state.out[0]), u64(STDOUT))
            if load(u16, POLLS, 2 * POLLFD_SIZE + 6) != 0:
                copy(u64(state.err[0]), u64(STDERR))
            if load(u16, POLLS, 6) != 0:
                return
            if load(u16, POLLS, 3 * POLLFD_SIZE + 6) != 0:
                reap()
        elif count == 0:
            return


@native
def reap() -> None:
    """Let go of children that have ended: the first process gets all whose own parent is gone."""
    state = known()
    system(READ, state.children, STAT_PLACE, SIGNAL_INFO)
    found = i64(1)
    while found > 0:
        found = system(WAIT4, -1, address_of_status(), WNOHANG, 0)


@native
def attend(process: u64) -> u64:
    """Copy what commands write until a child ends; return its status as shells tell it."""
    state = known()
    if i64(process) < 0:
        # There is none: the guest has no number or no memory left for it.
        return CANNOT_RUN
    while True:
        watch(state.children)
        system(READ, state.children, STAT_PLACE, SIGNAL_INFO)
        found = i64(1)
        # One signal may tell of several; whoever else has ended is of no interest.
        while found > 0:
            found = system(WAIT4, -1, address_of_status(), WNOHANG, 0)
            if found == i64(state.feeder):
                state.feeder = u64(0)
            if found == i64(process):
                return status_of()
