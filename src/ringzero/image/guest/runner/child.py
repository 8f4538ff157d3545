"""The child of the runner that becomes a command: streams, user, directory, program."""

from __future__ import annotations

from ringzero.image.guest.runner.environment import find_variable, renew_variables, set_variable
from ringzero.image.guest.runner.memory import (
    ACCESS,
    CANNOT_RUN,
    CHDIR,
    CLOSE,
    COLON,
    DUP2,
    ENOEXEC,
    EQUALS,
    EXECVE,
    FIRST_WORD,
    GROUPS,
    IOCTL,
    LOWER_A,
    MODE_OFFSET,
    NEWLINE,
    NOT_FOUND,
    NOTE,
    NOTE_SIZE,
    O_RDWR,
    OPEN,
    PATH,
    PATH_SIZE,
    PWRITE64,
    S_IFMT,
    S_IFREG,
    SETGID,
    SETGROUPS,
    SETSID,
    SETUID,
    SHORT,
    SLASH,
    SPACE,
    STAT,
    STAT_PLACE,
    TEXT,
    VARIABLES,
    X_OK,
    ZERO,
    known,
    system,
    text,
)
from ringzero.image.guest.runner.process import leave_with, run_script, take_signals
from ringzero.image.guest.runner.text import append, append_number, begins, length, same, say
from ringzero.native import load, native, store, u8, u32, u64

# ioctl_tty(2); the controlling terminal is taken from another session that has it.
TCGETS, TCSETS, TIOCSCTTY, TIOCSWINSZ, STEAL = 0x5401, 0x5402, 0x540E, 0x5414, 1
# What `stty sane` sets and clears in the input, output, control and local modes, and its control
# characters, of which the last two are left alone (termios(3); stty(1) of busybox).
SANE_SET = (0o20402, 0o5, 0o277, 0o105073)
SANE_CLEARED = (0o55301, 0o177772, 0, 0o212704)
SANE_CHARACTERS = bytes.fromhex("031c7f150400010011131a00120f171600")
TERMIOS_SIZE, CHARACTERS_OFFSET = 36, 17


@native
def refuse(status: u64, word: u64, why: u64) -> None:
    """Have it said why a command cannot be run, and end."""
    state = known()
    state.word = word
    state.why = why
    if load(u8, state.terminal) != 0:
        complain(u64(2))
    # Else the parent says it: a pipe that is full would never be read while it waits for this.
    leave_with(status)


@native
def complain(descriptor: u64) -> None:
    """Say why the command cannot be run."""
    state = known()
    say(descriptor, u64(text("ringzero: ")))
    say(descriptor, u64(state.word))
    say(descriptor, u64(state.why))


@native
def note(group: u64) -> None:
    """Write down who runs: the process group, or 0 for none, and the command's number.

    Twice, in one call: a script reads it at any moment, and heeds it when both are the same.
    """
    state = known()
    n = u64(0)
    while n < NOTE_SIZE - 1:
        store(u8, NOTE, u8(SPACE), offset=n)
        n += 1
    store(u8, NOTE, u8(NEWLINE), offset=n)
    at, again = u64(NOTE), u64(0)
    while again < 2:
        at = append(at, u64(text("-")), u64(1)) if group == 0 else append_number(at, group)
        store(u8, at, u8(SPACE))
        at = append(at + 1, state.identifier, u64(20))
        store(u8, at, u8(SPACE))
        at += 1
        again += 1
    system(PWRITE64, state.group_file, NOTE, NOTE_SIZE, 0)


@native
def is_program(path: u64) -> u64:
    """Return 1 for a file that may be run, else 0."""
    if system(ACCESS, path, X_OK) != 0:
        return 0
    if system(STAT, path, STAT_PLACE) != 0:
        return 0
    if (load(u32, STAT_PLACE, MODE_OFFSET) & S_IFMT) != S_IFREG:
        return 0
    return 1


@native
def find_program(word: u64) -> u64:
    """Find the program of a command along PATH, and return 1 if there is one; PATH has its path."""
    state = known()
    n = u64(0)
    size = length(word)
    slashes = u64(0)
    while n < size:
        if load(u8, word, n) == SLASH:
            slashes += 1
        n += 1
    if size >= PATH_SIZE:
        return 0
    if slashes != 0:
        append(u64(PATH), word, u64(PATH_SIZE))
        return is_program(word)
    number_of = find_variable(u64(text("PATH=")))
    if number_of == state.variables:
        return 0
    at = load(u64, VARIABLES, 8 * number_of) + 5
    while True:
        n = u64(0)
        while load(u8, at, n) != 0 and load(u8, at, n) != COLON:
            n += 1
        # Nothing stands for the directory in which one is.
        if n + 1 + size < PATH_SIZE:
            end = append(u64(PATH), at, n)
            if n != 0:
                end = append(end, u64(text("/")), u64(1))
            append(end, word, size)
            if is_program(u64(PATH)) != 0:
                return 1
        if load(u8, at, n) == 0:
            return 0
        at += n + 1


@native
def take_terminal() -> None:
    """Have the slot's terminal as the three streams, in a sane state."""
    state = known()
    append(append(u64(TEXT), u64(text("/dev/")), u64(8)), state.terminal, u64(SHORT))
    opened = system(OPEN, TEXT, O_RDWR, 0)
    if opened < 0:
        leave_with(u64(CANNOT_RUN))
    for stream in range(3):
        system(DUP2, opened, stream)
    if opened > 2:
        system(CLOSE, opened)
    system(IOCTL, 0, TIOCSCTTY, STEAL)
    if system(IOCTL, 0, TCGETS, TEXT) == 0:
        for n in range(len(SANE_SET)):
            mode = load(u32, TEXT, 4 * n)
            store(u32, TEXT, (mode & ~SANE_CLEARED[n] & 0xFFFF_FFFF) | SANE_SET[n], offset=4 * n)
        for n in range(len(SANE_CHARACTERS)):
            store(u8, TEXT, u8(SANE_CHARACTERS[n]), offset=CHARACTERS_OFFSET + n)
        system(IOCTL, 0, TCSETS, TEXT)
    store(u64, TEXT, (state.rows & 0xFFFF) | ((state.columns & 0xFFFF) << 16))
    system(IOCTL, 0, TIOCSWINSZ, TEXT)


@native
def take_options() -> u64:
    """Take the options before a command; return 1 where the script has to, which knows them all."""
    state = known()
    n = u64(0)
    for own in ("/sbin/share", "/sbin/ready", "/sbin/services"):
        if state.words != 0 and same(load(u64, FIRST_WORD), u64(text(own))) != 0:
            return 1
    while n < state.words:
        word = load(u64, FIRST_WORD, 8 * n)
        if same(word, u64(text("--"))) != 0:
            state.first = n + 1
            return 0
        if begins(word, u64(text("--env="))) != 0:
            if is_name(word + 6) == 0:
                return 1
            set_variable(word + 6)
        elif begins(word, u64(text("--workdir=/"))) != 0:
            state.place = word + 10
        elif begins(word, u64(text("--workdir="))) != 0 or begins(word, u64(text("--user="))) != 0:
            return 1
        else:
            break
        n += 1
    state.first = n
    return 0


@native
def is_name(variable: u64) -> u64:
    """Return 1 where NAME=VALUE has a name that shells take, else 0."""
    n = u64(0)
    while True:
        byte = load(u8, variable, n)
        if byte == EQUALS:
            return u64(n != 0)
        # In lower case; an underscore is none of the two.
        letter = (byte | 0x20) - LOWER_A
        digit = byte - ZERO
        if letter > 25 and byte != ord("_") and (n == 0 or digit > 9):
            return 0
        n += 1


@native
def take_identity() -> None:
    """Become the user that commands run as."""
    state = known()
    if state.switches == 0:
        return
    if system(SETGROUPS, state.groups, GROUPS) != 0:
        leave_with(u64(CANNOT_RUN))
    if system(SETGID, load(u32, GROUPS)) != 0:
        leave_with(u64(CANNOT_RUN))
    if system(SETUID, state.user) != 0:
        leave_with(u64(CANNOT_RUN))


@native
def become_program(word: u64) -> None:
    """Become the program at PATH; the words of the command begin at the address `word`."""
    take_identity()
    take_signals()
    result = system(EXECVE, PATH, word, VARIABLES)
    if result == -ENOEXEC:
        # A script without an interpreter's name, as execvp(3) has it.
        store(u64, word, u64(PATH))
        store(u64, word - 8, u64(text("sh")))
        system(EXECVE, text("/bin/sh"), word - 8, VARIABLES)
    leave_with(u64(CANNOT_RUN))


@native
def child() -> None:
    """Become the command; the parent waits until that is done."""
    state = known()
    note(u64(system(SETSID)))
    if load(u8, state.terminal) != 0:
        take_terminal()
        if load(u8, state.tools) == 0:
            system(CHDIR, text("/root"))
    else:
        system(DUP2, state.source, 0)
        system(DUP2, state.out[1], 1)
        system(DUP2, state.err[1], 2)
    state.place = state.directory
    if load(u8, state.tools) != 0 and take_options() != 0:
        renew_variables()
        run_script(u64(text("/sbin/execute")), u64(VARIABLES))
    program_word = FIRST_WORD + 8 * state.first
    word = load(u64, program_word)
    if word == 0:
        refuse(u64(NOT_FOUND), u64(text("")), u64(text("an empty command\n")))
    if load(u8, state.place) != 0:
        if system(CHDIR, state.place) != 0:
            refuse(u64(CANNOT_RUN), state.place, u64(text(": no directory in the guest\n")))
        append(append(u64(TEXT), u64(text("PWD=")), u64(8)), state.place, u64(PATH_SIZE - 8))
        set_variable(u64(TEXT))
    if find_program(word) != 0:
        become_program(program_word)
    if load(u8, state.tools) != 0 and find_tool(word) != 0:
        become_program(program_word)
    explain(word)


@native
def find_tool(word: u64) -> u64:
    """Return 1 for a program of the guest's own, by which images without a shell are looked into.

    PATH has the path of the program that all of them are.
    """
    state = known()
    n = u64(0)
    while load(u8, word, n) != 0:
        if load(u8, word, n) == SLASH:
            return 0
        n += 1
    end = append(append(u64(PATH), state.tools, u64(SHORT)), u64(text("/bin/")), u64(8))
    append(end, word, u64(SHORT))
    if n == 0 or n >= SHORT or system(ACCESS, PATH, 0) != 0:
        return 0
    append(end, u64(text("busybox")), u64(8))
    return 1


@native
def explain(word: u64) -> None:
    """Say why there is no program for a word, and end."""
    n = u64(0)
    while load(u8, word, n) != 0:
        if load(u8, word, n) == SLASH and system(ACCESS, word, 0) == 0:
            refuse(u64(CANNOT_RUN), word, u64(text(": not a program\n")))
        n += 1
    refuse(u64(NOT_FOUND), word, u64(text(": not found in the guest\n")))
