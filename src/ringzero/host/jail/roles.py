"""What each kind of a machine's threads may ask of the kernel, by the names of system calls.

All threads have the table of CONTROL. Those that serve folders and disks add that of IO, a vCPU's,
which runs what the guest wrote, that of VCPU; what such a thread starts has its filter, too.
"""

from __future__ import annotations

from enum import Enum
from signal import SIGRTMIN

from ringzero.host.jail.bpf import ALWAYS, ERRNO, Alternative, Refusal, Rule, Where, assemble
from ringzero.host.jail.calls import NUMBERS
from ringzero.records import record

_FILES = (
    "read write pread64 pwrite64 readv writev preadv pwritev preadv2 pwritev2 lseek close "
    "close_range dup dup2 dup3 flock fstat stat lstat newfstatat statx access faccessat "
    "faccessat2 open openat openat2 getdents64 readlink readlinkat getcwd chdir fchdir fsync "
    "fdatasync sync_file_range ftruncate fallocate fadvise64 readahead copy_file_range sendfile "
    "statfs fstatfs syncfs umask rename renameat renameat2 unlink unlinkat getxattr lgetxattr "
    "fgetxattr listxattr llistxattr flistxattr"
)
# What a log and a disk need nothing of: folders do, and snapshots.
_TREES = (
    "mkdir mkdirat rmdir link linkat symlink symlinkat chmod fchmod fchmodat chown fchown lchown "
    "fchownat utimensat setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr "
    "inotify_init1 inotify_add_watch inotify_rm_watch"
)
# The software engine writes code and runs it: pages are made executable all along.
_MEMORY = (
    "mmap mprotect munmap mremap madvise brk msync mincore mlock munlock memfd_create membarrier"
)
_THREADS = (
    "futex set_robust_list get_robust_list rseq sched_yield gettid exit exit_group "
    "sched_getaffinity sched_setaffinity getpriority setpriority restart_syscall rt_sigaction "
    "rt_sigprocmask rt_sigreturn rt_sigtimedwait rt_sigsuspend rt_sigpending sigaltstack "
    "set_tid_address getcpu wait4 waitid pause"
)
_EVENTS = (
    "epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 poll ppoll select pselect6 "
    "eventfd2 timerfd_create timerfd_settime timerfd_gettime pipe pipe2 signalfd4"
)
_TIME = (
    "clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times alarm "
    "setitimer getitimer"
)
_ABOUT = (
    "getpid getppid getpgrp getpgid getsid getuid geteuid getgid getegid getresuid getresgid "
    "getgroups uname sysinfo getrusage getrlimit getrandom capget"
)
# Whoever adds a filter has less afterwards.
_TIGHTENING = "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self"
_CONNECTED = (
    "accept accept4 sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown getsockname "
    "getpeername setsockopt getsockopt"
)

# <linux/sched.h>: CLONE_THREAD; CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
_CLONE_THREAD, _CLONE_NEW = 0x00010000, 0x7E020000
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_SOCK_STREAM, _SOCK_DGRAM = 1, 2
# The kind of a socket without its flags, SOCK_CLOEXEC and SOCK_NONBLOCK.
_SOCK_KIND = 0xF
_EPERM, _ENOSYS = 1, 38
# The signal that brings a vCPU out of the guest (`ringzero.engine.kvm.vcpu.KICK`).
_KICK = SIGRTMIN + 4
REFUSED = ERRNO | _EPERM
# ioctl(2) of terminals and descriptors: FIONREAD, FIONBIO, FIOCLEX, FIONCLEX, TCGETS, TIOCGWINSZ,
# TCSETS, TCSETSW, TCSETSF; of files: FICLONE, FICLONERANGE, FS_IOC_FIEMAP, PAGEMAP_SCAN; of block
# devices: BLKGETSIZE64, BLKSSZGET, BLKDISCARD, BLKZEROOUT, BLKFLSBUF; UFFDIO_UNREGISTER.
_REQUESTS = (
    0x541B, 0x5421, 0x5451, 0x5450, 0x5401, 0x5413, 0x5402, 0x5403, 0x5404,
    0x40049409, 0x4020940D, 0xC020660B, 0xC0606610,
    0x80081272, 0x1268, 0x1277, 0x127F, 0x1261, 0x8010AA01,
)  # fmt: skip
# The type of a request, in bits 8 to 15: KVMIO.
_KVM, _REQUEST_TYPE = 0xAE00, 0xFF00
# Commands of fcntl(2) that send signals, or take leases: F_SETOWN, F_SETSIG, F_SETLEASE, F_NOTIFY.
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 9, 36, 37, 38, 1030, 1031, 1032, 1033, 1034)
# prctl(2): PR_SET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_SET_NAME, PR_GET_NAME,
# PR_CAPBSET_READ, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS, PR_SET_VMA.
_PRCTL = (1, 3, 4, 15, 16, 23, 38, 39, 0x53564D41)


class Role(Enum):
    """What a thread does."""

    CONTROL = "control"
    IO = "io"
    VCPU = "vcpu"


@record
class Freedom:
    """What the threads of one machine need beyond what all need.

    `internet`: sockets of IPv4 and IPv6, for the network of its own that the guest has. `local`:
    Unix sockets by path. `children`: processes, which copies of the machine are. `folders`: shared
    folders that the guest writes to. `kvm`: the requests of /dev/kvm. `signals`: to whom may be
    signalled is decided elsewhere; without it, no other process. `trees`: directories, links,
    owners and times of files, for snapshots.
    """

    internet: bool = False
    local: bool = False
    children: bool = False
    folders: bool = False
    kvm: bool = False
    signals: bool = False
    trees: bool = False


def rules(role: Role, freedom: Freedom, pid: int) -> dict[str, Rule | Refusal]:
    """Return what threads of `role` in the process `pid` may call; the rest is refused."""
    control = role is Role.CONTROL
    allowed: dict[str, Rule | Refusal] = dict.fromkeys(
        " ".join((_FILES, _MEMORY, _THREADS, _EVENTS, _TIME, _ABOUT, _CONNECTED)).split(), ALWAYS
    )
    allowed |= dict.fromkeys(_TIGHTENING.split(), ALWAYS)
    if freedom.folders or (control and freedom.trees):
        allowed |= dict.fromkeys(_TREES.split(), ALWAYS)
        # Named pipes, sockets and files; no devices.
        kinds = (0o010000, 0o140000, 0o100000, 0)
        allowed["mknod"] = tuple((Where(1, kind, 0o170000),) for kind in kinds)
        allowed["mknodat"] = tuple((Where(2, kind, 0o170000),) for kind in kinds)
    # Its flags are behind a pointer, which no filter sees: the C library then takes clone(2).
    allowed["clone3"] = Refusal(ERRNO | _ENOSYS)
    if freedom.children and control:
        allowed["clone"] = ((Where(0, 0, _CLONE_NEW),),)
        allowed |= dict.fromkeys(("fork", "vfork", "setsid"), ALWAYS)
    else:
        allowed["clone"] = ((Where(0, _CLONE_THREAD, _CLONE_THREAD | _CLONE_NEW),),)
    allowed["pidfd_open"] = ALWAYS
    signalled: Rule = ALWAYS if freedom.signals else ((Where(0, pid),),)
    allowed["tgkill"] = signalled
    if freedom.children and not freedom.signals:
        # A copy is another process, under this filter: its vCPUs are brought out of KVM by one.
        allowed["tgkill"] = (*signalled, (Where(2, _KICK),))
    if freedom.signals:
        allowed |= dict.fromkeys(("kill", "pidfd_send_signal"), ALWAYS)
    # A vCPU's thread moves packets itself, and so opens connections.
    if role is not Role.IO:
        allowed |= _sockets(freedom)
    # Datagrams of a pair could be sent to any path; streams are connected for good.
    allowed["socketpair"] = ((Where(0, _AF_UNIX), Where(1, _SOCK_STREAM, _SOCK_KIND)),)
    requests = [(Where(1, request, 0xFFFFFFFF),) for request in _REQUESTS]
    if freedom.kvm:
        requests.append((Where(1, _KVM, _REQUEST_TYPE),))
    allowed["ioctl"] = tuple(requests)
    allowed["fcntl"] = tuple((Where(1, command, 0xFFFFFFFF),) for command in _FCNTL)
    allowed["prctl"] = tuple((Where(0, option, 0xFFFFFFFF),) for option in _PRCTL)
    # Of one's own limits.
    allowed["prlimit64"] = ((Where(0, 0),), (Where(0, pid),))
    return allowed


def _sockets(freedom: Freedom) -> dict[str, Rule | Refusal]:
    kinds = list[Alternative]()
    if freedom.internet:
        kinds += [(Where(0, _AF_INET),), (Where(0, _AF_INET6),)]
    if freedom.local:
        kinds.append((Where(0, _AF_UNIX),))
    if not kinds:
        return {}
    found: dict[str, Rule | Refusal] = {"socket": kinds, "bind": ALWAYS, "listen": ALWAYS}
    if freedom.internet or freedom.local:
        found["connect"] = ALWAYS
    return found


def program(role: Role, freedom: Freedom, pid: int) -> bytes:
    """Return the filter for threads of `role`, for `seccomp.install`."""
    return assemble(rules(role, freedom, pid), NUMBERS, REFUSED)
