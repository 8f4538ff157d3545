"""What the runner of commands knows, and where in its memory it lies; system calls."""

from __future__ import annotations

from typing import Any

from ringzero.image.guest import elf
from ringzero.image.guest.code import Texts
from ringzero.native import Struct, field, host_asm, i64, pointer, u32, u64

# System calls of x86-64 Linux (arch/x86/entry/syscalls/syscall_64.tbl).
READ, WRITE, OPEN, CLOSE, STAT, POLL, RT_SIGACTION, RT_SIGPROCMASK = 0, 1, 2, 3, 4, 7, 13, 14
IOCTL = 16
PWRITE64, ACCESS, DUP2, NANOSLEEP, CLONE, FORK, EXECVE = 18, 21, 33, 35, 56, 57, 59
EXIT, WAIT4 = 60, 61
KILL, UNAME, FCNTL, CHDIR, UMASK, SETUID, SETGID, SETSID = 62, 63, 72, 80, 95, 105, 106, 112
SETGROUPS, SYNC, SIGNALFD4, PIPE2 = 116, 162, 289, 293
# errno(3)
EINTR, ENOEXEC = 4, 8
# open(2), fcntl(2), stat(2), access(2)
O_RDONLY, O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_CLOEXEC = 0, 1, 2, 0o100, 0o1000, 0o2000000
F_SETFD, F_SETFL, F_SETPIPE_SZ, FD_CLOEXEC, O_NONBLOCK, X_OK = 2, 4, 1031, 1, 0o4000, 1
# poll(2), wait4(2), ioctl(2): bytes that a pipe holds; signalfd(2): the size of what is read.
POLLIN, POLLFD_SIZE, WNOHANG, FIONREAD, SIGNAL_INFO = 1, 8, 1, 0x541B, 128
S_IFMT, S_IFREG, MODE_OFFSET, STAT_SIZE = 0o170000, 0o100000, 24, 144
# clone(2): the parent waits until its child has become a program; the two share memory.
CLONE_VM, CLONE_VFORK, SIGCHLD, SIGKILL = 0x100, 0x4000, 17, 9
SIG_SETMASK, SIGNALS, SET_SIZE = 2, 64, 8
# uname(2): fields of 65 bytes; the second is the host name, the third the kernel's release.
UNAME_FIELD = 65

# Descriptors that the program is started with; how a command ends that is none.
CONTROL, INPUT, STDOUT, STDERR = 3, 4, 5, 6
CANNOT_RUN, NOT_FOUND = 126, 127
UMASK_VALUE = 0o022
# The longest control line that is taken: of a command of 256 KiB, with what stands before it.
LINE_SIZE = 264 << 10
# As many variables and groups as commands have at most; PATH_MAX of Linux; a port's largest piece.
MAX_VARIABLES, MAX_GROUPS, PATH_SIZE, PIECE = 16 << 10, 256, 4096, 32 << 10
# The longest name of a terminal or of the host, the record's length, and that of a MAC address.
SHORT, NOTE_SIZE, ADDRESS_SIZE = 256, 64, 17
# How long the port of the input is waited for, before it is looked at again, in nanoseconds.
PAUSE = 10_000_000
# The same for children, in milliseconds, where the kernel has no signalfd(2).
TICK = 10
# So much of an output is copied at once; the ports take half of it. A pipe holds four times that.
OUTPUT_PIECE = 64 << 10
# So many disks are looked for, from vda on, before it is taken that there are none; and so many
# network interfaces, from eth0 on, have addresses that they asked for.
DISKS, INTERFACES = 8, 10


class State(Struct):
    """What the program knows. `at` and `end` are where it reads in the line."""

    filled = field(u64)
    at = field(u64)
    end = field(u64)
    # What it was started with.
    tools = field(u64)
    last = field(u64)
    agent = field(u64)
    user = field(u64)
    directory = field(u64)
    networks = field(u64)
    environment = field(u64)
    groups = field(u64)
    switches = field(u64)
    # Descriptors that stay open: of no input, of the file that says who runs, of what tells of
    # children, and the pipes of the two outputs: where they are read, where they are written.
    nothing = field(u64)
    group_file = field(u64)
    children = field(u64)
    out = field(u32, 2)
    err = field(u32, 2)
    # The command: words and variables, the first word that is the program, its streams.
    words = field(u64)
    first = field(u64)
    variables = field(u64)
    identifier = field(u64)
    source = field(u64)
    terminal = field(u64)
    feeder = field(u64)
    rows = field(u64)
    columns = field(u64)
    place = field(u64)
    # Why it is not run, where it is not: a word, and what is the matter with it.
    word = field(u64)
    why = field(u64)
    status = field(u32)
    ends = field(u32, 2)


_LAYOUT = (
    ("LINE", LINE_SIZE),
    # Two more words may come before the command's own; a word takes two bytes of the line at least.
    ("WORDS", 8 * (LINE_SIZE // 2 + 4)),
    ("VARIABLES", 8 * (MAX_VARIABLES + 1)),
    ("GROUPS", 4 * MAX_GROUPS),
    ("PATH", PATH_SIZE + 8),
    ("TEXT", PATH_SIZE),
    ("TERM", SHORT + 8),
    ("NAME", SHORT),
    ("UNAME", 6 * UNAME_FIELD + 2),
    ("NOTE", 2 * NOTE_SIZE),
    ("INPUT_PIECE", PIECE),
    # With a token behind it.
    ("OUTPUT", OUTPUT_PIECE + SHORT),
    ("POLLS", 4 * POLLFD_SIZE),
    # Never written to: no signals, and the default action of one.
    ("ZEROS", 32),
    # Which signals are read instead of taken.
    ("TAKEN", 8),
    ("STAT_PLACE", STAT_SIZE),
    ("STATE", State.size),
    # The child's stack, while it shares memory with its parent.
    ("STACK", 64 << 10),
)
_places: dict[str, int] = {}
_end = elf.ROOM
for _name, _size in _LAYOUT:
    _places[_name] = _end
    _end += -(-_size // 16) * 16
LINE, WORDS, VARIABLES, GROUPS = (_places[n] for n in ("LINE", "WORDS", "VARIABLES", "GROUPS"))
PATH, TEXT, TERM, NAME, KERNEL = (_places[n] for n in ("PATH", "TEXT", "TERM", "NAME", "UNAME"))
NOTE, INPUT_PIECE, STAT_PLACE = (_places[n] for n in ("NOTE", "INPUT_PIECE", "STAT_PLACE"))
OUTPUT, POLLS, ZEROS, TAKEN = (_places[n] for n in ("OUTPUT", "POLLS", "ZEROS", "TAKEN"))
STATE, STACK_TOP = _places["STATE"], _end
FIRST_WORD = WORDS + 16
ROOM_SIZE = _end - elf.ROOM

SPACE, NEWLINE, QUOTE, BACKSLASH, DOLLAR, SLASH, COLON, EQUALS = b" \n'\\$/:="
ZERO, NINE, SEVEN, COMMA, DASH, LOWER_A = b"097,-a"
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
CLOBBERED = "~{rcx},~{r11},~{memory},~{dirflag},~{fpsr},~{flags}"
# Where texts lie that the program knows.
TEXTS = Texts(elf.body_address())


def text(words: str) -> int:
    """Return the address of a text that ends with a NUL."""
    return TEXTS.at(words)


def system(number: int, *arguments: Any) -> Any:
    """Make a system call; return its result, or -errno."""
    registers = ("rax", *_ARGUMENTS[: len(arguments)])
    constraints = ["={rax}", *(f"{{{name}}}" for name in registers), CLOBBERED]
    given = [u64(value) for value in (number, *arguments)]
    return host_asm(i64, "syscall", ",".join(constraints), *given)


def known() -> Any:
    """Return what the program knows."""
    return pointer(State, STATE)
