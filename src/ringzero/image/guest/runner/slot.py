"""A slot of the agent: commands, one at a time, from their lines to their ends."""

from __future__ import annotations

from ringzero.image.guest.runner.child import child, complain, note
from ringzero.image.guest.runner.copies import renew
from ringzero.image.guest.runner.environment import set_kind
from ringzero.image.guest.runner.line import drop_line, take_field, take_line, take_words
from ringzero.image.guest.runner.memory import (
    ACCESS,
    CLOBBERED,
    CLONE,
    CLONE_VFORK,
    CLONE_VM,
    CLOSE,
    COMMA,
    CONTROL,
    DISKS,
    DUP2,
    EINTR,
    EXECVE,
    F_SETFD,
    F_SETFL,
    F_SETPIPE_SZ,
    FCNTL,
    FD_CLOEXEC,
    FIRST_WORD,
    FORK,
    GROUPS,
    INPUT,
    INPUT_PIECE,
    KERNEL,
    KILL,
    LINE,
    LOWER_A,
    MAX_GROUPS,
    NAME,
    NANOSLEEP,
    NEWLINE,
    NOTE,
    NOTE_SIZE,
    O_CLOEXEC,
    O_CREAT,
    O_NONBLOCK,
    O_RDONLY,
    O_RDWR,
    OPEN,
    OUTPUT_PIECE,
    PATH,
    PAUSE,
    PIECE,
    PIPE2,
    READ,
    RT_SIGACTION,
    RT_SIGPROCMASK,
    SET_SIZE,
    SHORT,
    SIG_SETMASK,
    SIGCHLD,
    SIGKILL,
    SIGNALFD4,
    SIGNALS,
    SPACE,
    STACK_TOP,
    STAT_PLACE,
    STATE,
    STDERR,
    STDOUT,
    SYNC,
    TAKEN,
    TEXT,
    UMASK,
    UMASK_VALUE,
    UNAME,
    UNAME_FIELD,
    WORDS,
    ZEROS,
    State,
    known,
    system,
    text,
)
from ringzero.image.guest.runner.process import leave_with, run_script, take_signals, wait_for
from ringzero.image.guest.runner.streams import attend, close_output
from ringzero.image.guest.runner.text import (
    append,
    append_number,
    length,
    number,
    put,
    same,
    say,
)
from ringzero.native import host_asm, i64, load, native, store, u8, u32, u64


@native
def feed(token: u64) -> None:
    """Hand the host's input, from behind the line "go TOKEN", on to a pipe at descriptor 1.

    Whatever comes before is left over from an earlier command.
    """
    # "\ngo TOKEN\n": no newline but at its ends, so after another byte it begins anew.
    end = append(append(u64(TEXT), u64(text("\ngo ")), u64(8)), token, u64(SHORT))
    append(end, u64(text("\n")), u64(1))
    size = length(u64(TEXT))
    # The stream's own beginning is one of a line.
    matched = u64(1)
    while matched < size:
        count = system(READ, INPUT, INPUT_PIECE, PIECE)
        n = u64(0)
        if count == 0:
            # The host has not connected yet.
            store(u64, STAT_PLACE, u64(0))
            store(u64, STAT_PLACE, u64(PAUSE), offset=8)
            system(NANOSLEEP, STAT_PLACE, 0)
        elif count < 0:
            if count != -EINTR:
                leave_with(u64(1))
        else:
            while n < u64(count) and matched < size:
                byte = load(u8, INPUT_PIECE, n)
                n += 1
                if byte == load(u8, TEXT, matched):
                    matched += 1
                elif byte == NEWLINE:
                    matched = u64(1)
                else:
                    matched = u64(0)
            put(u64(1), INPUT_PIECE + n, u64(count) - n)
    state = known()
    take_signals()
    system(DUP2, INPUT, 0)
    append(append(u64(PATH), state.tools, u64(SHORT)), u64(text("/sbin/relay")), u64(SHORT))
    store(u64, WORDS, u64(PATH))
    store(u64, WORDS, u64(0), offset=8)
    system(EXECVE, PATH, WORDS, state.environment)
    leave_with(u64(1))


@native
def start() -> u64:
    """Start the command in a child; return its number once it is a program, or has ended."""
    # On a stack of its own, as the parent goes on from this one.
    return u64(
        host_asm(
            i64,
            f"syscall; testq %rax, %rax; jnz 1f; xorl %ebp, %ebp; call {child.name}; 1:",
            f"={{rax}},{{rax}},{{rdi}},{{rsi}},{CLOBBERED}",
            u64(CLONE),
            u64(CLONE_VM | CLONE_VFORK | SIGCHLD),
            u64(STACK_TOP),
        )
    )


@native
def end(token: u64, status: u64) -> None:
    """Tell the host of a command's end, behind all that it wrote."""
    state = known()
    note(u64(0))
    disk = u64(0)
    append(u64(PATH), u64(text("/sys/block/vda")), u64(SHORT))
    while disk < DISKS:
        store(u8, PATH, u8(LOWER_A + disk), offset=len("/sys/block/vd"))
        if system(ACCESS, PATH, 0) == 0:
            system(SYNC)
            disk = u64(DISKS)
        disk += 1
    if token != 0:
        close_output(u64(state.out[0]), u64(STDOUT), token)
        close_output(u64(state.err[0]), u64(STDERR), token)
    at = append(u64(NOTE), u64(text("exit ")), u64(8))
    at = append(at, state.identifier, u64(20))
    store(u8, at, u8(SPACE))
    at = append_number(at + 1, status)
    store(u8, at, u8(NEWLINE))
    put(u64(CONTROL), u64(NOTE), at + 1 - NOTE)


@native
def run() -> None:
    """Run a command with streams of its own: run ID INPUT TOKEN WORDS..."""
    state = known()
    state.identifier = take_field()
    takes_input = load(u8, take_field()) == ord("1")
    token = take_field()
    take_words()
    renew()
    set_kind(u64(text("linux")))
    state.terminal = u64(text(""))
    state.source = state.nothing
    state.feeder = u64(0)
    if takes_input:
        ends = STATE + State.offset_of("ends")
        if system(PIPE2, ends, O_CLOEXEC) == 0:
            made = system(FORK)
            if made == 0:
                system(DUP2, state.ends[1], 1)
                system(CLOSE, state.ends[0])
                system(CLOSE, state.ends[1])
                feed(token)
            system(CLOSE, state.ends[1])
            state.source = u64(state.ends[0])
            state.feeder = u64(made)
    state.why = u64(0)
    process = start()
    if takes_input and state.source != state.nothing:
        system(CLOSE, state.source)
    status = attend(process)
    feeder = state.feeder
    if i64(feeder) > 0:
        # It is this command's alone: before the next one's input comes, it is gone.
        system(KILL, feeder, SIGKILL)
        wait_for(feeder)
    if state.why != 0:
        complain(u64(STDERR))
    end(token, status)


@native
def run_on_terminal() -> None:
    """Run a command on a terminal: terminal ID LINE ROWS COLUMNS TERM WORDS..."""
    state = known()
    state.identifier = take_field()
    state.terminal = take_field()
    state.rows = number(take_field())
    state.columns = number(take_field())
    kind = take_field()
    take_words()
    renew()
    set_kind(kind)
    end(u64(0), attend(start()))


@native
def leave() -> None:
    """The host is gone, or wants the power off: become what sees to that, or end."""
    state = known()
    if load(u8, state.last) == 0:
        leave_with(u64(0))
    store(u64, FIRST_WORD, state.last)
    store(u64, FIRST_WORD, state.agent, offset=8)
    store(u64, FIRST_WORD, u64(0), offset=16)
    run_script(u64(text("/init")), state.environment)


@native
def take_groups(at: u64) -> None:
    """Take the numbers of groups, with commas between them."""
    state = known()
    n = u64(0)
    place = u64(at)
    while n < MAX_GROUPS and load(u8, place) != 0:
        store(u32, GROUPS, u32(number(place)), offset=4 * n)
        n += 1
        while load(u8, place) != 0 and load(u8, place) != COMMA:
            place += 1
        if load(u8, place) == COMMA:
            place += 1
    state.groups = n
    state.switches = u64(state.user != 0 or n != 1 or load(u32, GROUPS) != 0)


@native
def prepare(stack: u64) -> None:
    """Take what the program was started with; set signals, descriptors and the umask."""
    state = known()
    # argc, argv, the environment (System V ABI, 3.4.1).
    state.environment = stack + 16 + 8 * load(u64, stack)
    state.tools = load(u64, stack, 8 * 3)
    state.last = load(u64, stack, 8 * 4)
    state.agent = load(u64, stack, 8 * 5)
    state.user = number(load(u64, stack, 8 * 6))
    take_groups(load(u64, stack, 8 * 7))
    state.directory = load(u64, stack, 8 * 8)
    append(u64(NAME), load(u64, stack, 8 * 9), u64(UNAME_FIELD))
    state.networks = load(u64, stack, 8 * 10)
    # All signals at their defaults and none blocked.
    signal = u64(1)
    while signal <= SIGNALS:
        system(RT_SIGACTION, signal, ZEROS, 0, SET_SIZE)
        signal += 1
    # But for the ends of children, which are read like all else that is waited for.
    store(u64, TAKEN, u64(1 << (SIGCHLD - 1)))
    system(RT_SIGPROCMASK, SIG_SETMASK, TAKEN, 0, SET_SIZE)
    state.children = u64(system(SIGNALFD4, -1, TAKEN, SET_SIZE, O_CLOEXEC | O_NONBLOCK))
    for pipe in ("out", "err"):
        place = STATE + State.offset_of(pipe)
        system(PIPE2, place, O_CLOEXEC)
        system(FCNTL, load(u32, place), F_SETFL, O_NONBLOCK)
        system(FCNTL, load(u32, place), F_SETPIPE_SZ, 4 * OUTPUT_PIECE)
    for descriptor in (CONTROL, INPUT, STDOUT, STDERR):
        system(FCNTL, descriptor, F_SETFD, FD_CLOEXEC)
    state.nothing = u64(system(OPEN, text("/dev/null"), O_RDONLY | O_CLOEXEC, 0))
    record = load(u64, stack, 8 * 2)
    state.group_file = u64(system(OPEN, record, O_RDWR | O_CREAT | O_CLOEXEC, 0o644))
    system(UMASK, UMASK_VALUE)
    system(UNAME, KERNEL)
    at = append(u64(NOTE), u64(text("ready 1 ")), u64(8))
    at = append(at, u64(KERNEL + 2 * UNAME_FIELD), u64(NOTE_SIZE))
    store(u8, at, u8(NEWLINE))
    put(u64(CONTROL), u64(NOTE), at + 1 - NOTE)


@native
def main(stack: u64) -> None:
    """Take the host's commands, one at a time."""
    state = known()
    prepare(stack)
    while True:
        if take_line() == 0:
            leave()
        size = state.end - LINE
        verb = take_field()
        if same(verb, u64(text("run"))) != 0:
            run()
        elif same(verb, u64(text("terminal"))) != 0:
            run_on_terminal()
        elif same(verb, u64(text("ping"))) != 0:
            say(u64(CONTROL), u64(text("pong ")))
            say(u64(CONTROL), take_field())
            say(u64(CONTROL), u64(text("\n")))
        elif same(verb, u64(text("poweroff"))) != 0:
            leave()
        else:
            say(u64(CONTROL), u64(text("unknown\n")))
        drop_line(size)
