"""What a copy of the machine has of its own: its name, and perhaps its addresses."""

from __future__ import annotations

from ringzero.image.guest.runner.memory import (
    ADDRESS_SIZE,
    CLOSE,
    FIRST_WORD,
    FORK,
    INTERFACES,
    KERNEL,
    NAME,
    O_CLOEXEC,
    O_CREAT,
    O_RDONLY,
    O_TRUNC,
    O_WRONLY,
    OPEN,
    PATH,
    READ,
    SHORT,
    TEXT,
    UNAME,
    UNAME_FIELD,
    known,
    system,
    text,
)
from ringzero.image.guest.runner.process import run_script, wait_for
from ringzero.image.guest.runner.text import append, append_number, put, same
from ringzero.native import load, native, store, u8, u64


@native
def renew() -> None:
    """A copy of this machine has another name, and perhaps other addresses."""
    state = known()
    if (
        load(u8, NAME) != 0
        and system(UNAME, KERNEL) == 0
        and same(u64(KERNEL + UNAME_FIELD), u64(NAME)) == 0
    ):
        append(u64(NAME), u64(KERNEL + UNAME_FIELD), u64(UNAME_FIELD))
        write_names()
    if load(u8, state.networks) != 0 and addresses_changed() != 0:
        made = system(FORK)
        if made == 0:
            store(u64, FIRST_WORD, u64(text("renew")))
            store(u64, FIRST_WORD, state.agent, offset=8)
            store(u64, FIRST_WORD, u64(0), offset=16)
            run_script(u64(text("/init")), state.environment)
        if made > 0:
            wait_for(u64(made))


@native
def write_names() -> None:
    """Write the host's name to /etc/hostname and /etc/hosts."""
    at = append(u64(TEXT), u64(text("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 ")), u64(SHORT))
    end = append(append(at, u64(NAME), u64(SHORT)), u64(text("\n")), u64(1))
    write_file(u64(text("/etc/hosts")), u64(TEXT), end - TEXT)
    write_file(u64(text("/etc/hostname")), at, end - at)


@native
def write_file(path: u64, at: u64, size: u64) -> None:
    """Make a file of so many bytes."""
    opened = system(OPEN, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
    if opened >= 0:
        put(u64(opened), at, size)
        system(CLOSE, opened)


@native
def read_start(path: u64, at: u64) -> u64:
    """Read the length of a MAC address from a file; return 1 where it was there, else 0."""
    opened = system(OPEN, path, O_RDONLY | O_CLOEXEC, 0)
    if opened < 0:
        return 0
    count = system(READ, opened, at, ADDRESS_SIZE)
    system(CLOSE, opened)
    return u64(count == ADDRESS_SIZE)


@native
def addresses_changed() -> u64:
    """Return 1 where an interface has not the MAC address for which it has asked last, else 0."""
    asked, own, n = TEXT, TEXT + 32, u64(0)
    while n < INTERFACES:
        append_number(append(u64(PATH), u64(text("/run/dhcp.eth")), u64(SHORT)), n)
        if read_start(u64(PATH), u64(asked)) != 0:
            at = append(u64(PATH), u64(text("/sys/class/net/eth")), u64(SHORT))
            append(append_number(at, n), u64(text("/address")), u64(SHORT))
            if read_start(u64(PATH), u64(own)) != 0:
                for offset in range(ADDRESS_SIZE):
                    if load(u8, asked, offset) != load(u8, own, offset):
                        return 1
        n += 1
    return 0
