"""Texts that end with a NUL, for the runner of commands."""

from __future__ import annotations

from ringzero.image.guest.runner.memory import EINTR, NINE, WRITE, ZERO, system
from ringzero.native import load, native, store, u8, u64


@native
def length(at: u64) -> u64:
    """Return the length of a text."""
    size = u64(0)
    while load(u8, at, size) != 0:
        size += 1
    return size


@native
def same(one: u64, other: u64) -> u64:
    """Return 1 where two texts are one, else 0."""
    n = u64(0)
    while load(u8, one, n) == load(u8, other, n):
        if load(u8, one, n) == 0:
            return 1
        n += 1
    return 0


@native
def begins(whole: u64, start: u64) -> u64:
    """Return 1 where a text begins with another, else 0."""
    n = u64(0)
    while load(u8, start, n) != 0:
        if load(u8, whole, n) != load(u8, start, n):
            return 0
        n += 1
    return 1


@native
def append(to: u64, words: u64, most: u64) -> u64:
    """Copy a text, of at most so many bytes, and a NUL; return where that is."""
    n = u64(0)
    while n < most and load(u8, words, n) != 0:
        store(u8, to, load(u8, words, n), offset=n)
        n += 1
    store(u8, to, u8(0), offset=n)
    return to + n


@native
def append_number(to: u64, value: u64) -> u64:
    """Write a number in decimal, and a NUL; return where that is."""
    size, rest = u64(1), value // 10
    while rest != 0:
        size += 1
        rest = rest // 10
    store(u8, to, u8(0), offset=size)
    n, rest = size, u64(value)
    while n != 0:
        n -= 1
        store(u8, to, u8(rest % 10 + ZERO), offset=n)
        rest = rest // 10
    return to + size


@native
def number(at: u64) -> u64:
    """Return the number that a text begins with."""
    value, n = u64(0), u64(0)
    while load(u8, at, n) >= ZERO and load(u8, at, n) <= NINE:
        value = value * 10 + u64(load(u8, at, n) - ZERO)
        n += 1
    return value


@native
def put(descriptor: u64, at: u64, size: u64) -> None:
    """Write all of it; what nobody takes is lost."""
    done = u64(0)
    while done < size:
        count = system(WRITE, descriptor, at + done, size - done)
        if count > 0:
            done += u64(count)
        elif count != -EINTR:
            return


@native
def say(descriptor: u64, words: u64) -> None:
    """Write a text."""
    put(descriptor, words, length(words))
