"""The host's control lines, as the runner of commands takes them."""

from __future__ import annotations

from ringzero.image.guest.runner.memory import (
    BACKSLASH,
    CONTROL,
    DOLLAR,
    EINTR,
    FIRST_WORD,
    LINE,
    LINE_SIZE,
    NEWLINE,
    QUOTE,
    READ,
    SEVEN,
    SPACE,
    ZERO,
    known,
    system,
)
from ringzero.image.guest.runner.streams import watch
from ringzero.native import load, native, store, u8, u64


@native
def take_line() -> u64:
    """Wait for the host's next line, `at` to `end`; return 0 when the host is gone.

    One that is too long is empty.
    """
    state = known()
    seen, lost = u64(0), u64(0)
    while True:
        while seen < state.filled:
            if load(u8, LINE, seen) == NEWLINE:
                state.at = u64(LINE)
                state.end = LINE + seen
                if lost != 0:
                    state.at = LINE + seen
                return 1
            seen += 1
        if state.filled == LINE_SIZE:
            seen = u64(0)
            lost = u64(1)
            state.filled = u64(0)
        watch(u64(CONTROL))
        count = system(READ, CONTROL, LINE + state.filled, LINE_SIZE - state.filled)
        if count > 0:
            state.filled += u64(count)
        elif count != -EINTR:
            return 0


@native
def drop_line(size: u64) -> None:
    """Forget a line of `size` bytes and the newline; what came behind it is the next."""
    state = known()
    n = u64(0)
    behind = size + 1
    state.filled = state.filled - behind
    while n < state.filled:
        store(u8, LINE, load(u8, LINE + behind, n), offset=n)
        n += 1


@native
def take_field() -> u64:
    """Return the line's next word that is never quoted, as a text."""
    state = known()
    begin, at = u64(state.at), u64(state.at)
    while at < state.end and load(u8, at) != SPACE:
        at += 1
    if at < state.end:
        state.at = at + 1
    else:
        state.at = at
    store(u8, at, u8(0))
    return begin


@native
def take_words() -> None:
    """Take the rest of the line as words that are quoted for a shell.

    They lie where they were, as texts; without its quotes a word is never longer.
    """
    state = known()
    at, end, count = u64(state.at), u64(state.end), u64(0)
    while at < end:
        if load(u8, at) == SPACE:
            at += 1
            continue
        out = u64(at)
        store(u64, FIRST_WORD, at, offset=8 * count)
        count += 1
        while at < end and load(u8, at) != SPACE:
            byte = load(u8, at)
            at += 1
            if byte == QUOTE:
                while at < end and load(u8, at) != QUOTE:
                    store(u8, out, load(u8, at))
                    out += 1
                    at += 1
                at += 1
            elif byte == DOLLAR and at < end and load(u8, at) == QUOTE:
                at += 1
                while at < end and load(u8, at) != QUOTE:
                    byte = load(u8, at)
                    at += 1
                    if byte == BACKSLASH:
                        digits = u64(0)
                        byte = u8(0)
                        while (
                            digits < 3
                            and at < end
                            and load(u8, at) >= ZERO
                            and load(u8, at) <= SEVEN
                        ):
                            byte = (byte << 3) + (load(u8, at) - ZERO)
                            at += 1
                            digits += 1
                    store(u8, out, byte)
                    out += 1
                at += 1
            else:
                if byte == BACKSLASH and at < end:
                    byte = load(u8, at)
                    at += 1
                store(u8, out, byte)
                out += 1
        store(u8, out, u8(0))
        at += 1
    state.words = count
    state.first = u64(0)
    store(u64, FIRST_WORD, u64(0), offset=8 * count)
