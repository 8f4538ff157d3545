"""The program `ringzero-jailer`: Firecracker's jailer, with its flags, for `ringzero-firecracker`.

It makes a root of its own (`host/jail/newroot.py`), joins a network namespace and control groups,
sets limits, becomes another user and then the machine's process. The program that --exec-file names
gives the jail's directory its name; what runs is this very installation, whose interpreter and
modules are read-only in the new root.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import sys
import time
from pathlib import Path

import ringzero
from ringzero.errors import HostError, InvalidValueError, RingzeroError
from ringzero.host.jail import kernel, namespaces, newroot, privileges
from ringzero.settings import CACHE_DIR

_BASE = Path("/srv/jailer")
_CGROUPS = Path("/sys/fs/cgroup")
_LIMITS = {"fsize": resource.RLIMIT_FSIZE, "no-file": resource.RLIMIT_NOFILE}
# The jailer's own default.
_OPEN_FILES = 2048
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
# What names and certificates are looked up with by a network of ringzero's own.
_NAMES = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ssl", "/etc/localtime")
# Of the cache, what was compiled on this host: it is read by its path, and written by nobody.
_COMPILED = ("engine", "objects")


def main() -> int:
    """Run the command line of this process; does not return where it becomes the machine's."""
    words, extra = sys.argv[1:], list[str]()
    if "--" in words:
        at = words.index("--")
        words, extra = words[:at], words[at + 1 :]
    arguments = _parser().parse_args(words)
    if arguments.version:
        from ringzero.doors.firecracker.table import API_VERSION

        print(f"Jailer v{API_VERSION}")
        return 0
    try:
        _run(arguments, extra)
    except RingzeroError as fault:
        print(f"ringzero-jailer: {fault.message}", file=sys.stderr)
        if fault.hint:
            print(f"  hint: {fault.hint}", file=sys.stderr)
        return 1
    except OSError as fault:
        print(f"ringzero-jailer: {fault}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "ringzero-jailer",
        usage="ringzero-jailer --id ID --exec-file FILE --uid UID --gid GID [FLAGS] [-- FLAGS ...]",
        description="Run a microVM with a root, a user and namespaces of its own, as Firecracker's "
        "jailer does; what stands behind -- goes to ringzero-firecracker.",
    )
    add = parser.add_argument
    add("--id", metavar="ID", help="the microVM's name")
    add("--exec-file", metavar="FILE", help="names the jail's directory; ringzero itself is run")
    add("--uid", type=int, help="user that it becomes")
    add("--gid", type=int, help="group that it becomes")
    add("--chroot-base-dir", metavar="DIR", type=Path, default=_BASE, help="where jails are made")
    add("--netns", metavar="PATH", help="network namespace to join")
    add("--new-pid-ns", action="store_true", help="be the first process of a namespace of its own")
    add("--daemonize", action="store_true", help="in a session of its own, without outputs")
    add("--cgroup", metavar="FILE=VALUE", action="append", default=[], help="control group's file")
    add("--cgroup-version", metavar="1|2", choices=("1", "2"), default="1", help="(default: 1)")
    add("--parent-cgroup", metavar="PATH", help="control group below which its own is made")
    add(
        *("--resource-limit",),
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="fsize (bytes) or no-file (default: no-file=2048)",
    )
    add("--version", action="store_true", help="print the version")
    return parser


def _run(arguments: argparse.Namespace, extra: list[str]) -> None:
    began = time.monotonic_ns() // 1000
    name, root = _check(arguments)
    _close_inherited()
    root.mkdir(parents=True, exist_ok=True)
    os.chown(root, arguments.uid, arguments.gid)
    _set_limits(arguments.resource_limit)
    _enter_cgroup(arguments, name)
    if arguments.netns:
        with Path(arguments.netns).open("rb") as file:
            kernel.setns(file.fileno(), namespaces.FLAGS["net"])
    cpu = time.process_time_ns() // 1000
    if arguments.daemonize:
        _daemonize()
    kernel.unshare(namespaces.FLAGS["mount"])
    if arguments.new_pid_ns:
        kernel.unshare(namespaces.FLAGS["pid"])
        child = os.fork()
        if child:
            _write_number(root / f"{name}.pid", child)
            # Clients find the machine's process by the file, and wait for this one's end.
            os._exit(0)
    newroot.prepare(root, _visible(), (arguments.uid, arguments.gid))
    newroot.give(root, CACHE_DIR.get().absolute(), (arguments.uid, arguments.gid))
    environment = _environment()
    newroot.enter(root)
    if not arguments.new_pid_ns:
        _write_number(Path(f"/{name}.pid"), os.getpid())
    privileges.forbid_new()
    privileges.forbid_core_dumps()
    privileges.become(arguments.uid, arguments.gid)
    words = ["--id", arguments.id, "--start-time-us", f"{began}", "--start-time-cpu-us", f"{cpu}"]
    os.execve(
        sys.executable,
        [sys.executable, "-P", "-m", "ringzero.cli.firecracker", *words, *extra],
        environment,
    )


def _close_inherited() -> None:
    """Close what the caller had open: a descriptor of the host's would be a way out of the jail."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - no Path is needed for it
        if int(name) > 2:
            # One of them was the list's own.
            with contextlib.suppress(OSError):
                os.close(int(name))


def _write_number(path: Path, number: int) -> None:
    """Write a process's number; the root is its user's, so no link there is followed."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o644), "w") as file:
        file.write(f"{number}")


def _check(arguments: argparse.Namespace) -> tuple[str, Path]:
    """Return the jail's name and its root. Raises InvalidValueError, HostError."""
    from ringzero.doors.firecracker.process import IDENTIFIER

    for flag in ("id", "exec_file", "uid", "gid"):
        if getattr(arguments, flag) is None:
            raise InvalidValueError(f"--{flag.replace('_', '-')} is missing")
    if not IDENTIFIER.fullmatch(arguments.id):
        raise InvalidValueError(f"{arguments.id!r} is no ID: up to 64 letters, digits and hyphens")
    program = Path(arguments.exec_file).resolve()
    if not program.is_file():
        raise InvalidValueError(f"--exec-file {arguments.exec_file}: no such file")
    if not (0 <= arguments.uid < 1 << 32 and 0 <= arguments.gid < 1 << 32):
        raise InvalidValueError("--uid and --gid are numbers of 32 bits")
    if os.geteuid() != 0:
        raise HostError(
            "only root may change roots and users",
            hint="without root: `ringzero run --jail=strict`",
        )
    name = Path(arguments.exec_file).name
    return name, arguments.chroot_base_dir.absolute() / name / arguments.id / "root"


def _set_limits(given: list[str]) -> None:
    limits = {"no-file": _OPEN_FILES}
    for text in given:
        name, _, value = text.partition("=")
        if name not in _LIMITS or not (value.isascii() and value.isdecimal()):
            raise InvalidValueError(
                f"--resource-limit {text}: fsize=BYTES or no-file=NUMBER is meant"
            )
        limits[name] = int(value)
    for name, number in limits.items():
        try:
            resource.setrlimit(_LIMITS[name], (number, number))
        except (ValueError, OverflowError) as fault:
            raise InvalidValueError(
                f"--resource-limit {name}={number}: more than this host allows"
            ) from fault


def _enter_cgroup(arguments: argparse.Namespace, name: str) -> None:
    """Make the control group of the jail, where one is asked for, and enter it."""
    settings = list[tuple[str, str]]()
    for text in arguments.cgroup:
        file, equals, value = text.partition("=")
        if not equals or "/" in file or "." not in file or file.startswith("."):
            raise InvalidValueError(f"--cgroup {text}: FILE=VALUE is meant, as cpu.shares=10")
        settings.append((file, value))
    if not settings and arguments.parent_cgroup is None:
        return
    parent = arguments.parent_cgroup or name
    if ".." in Path(parent).parts or Path(parent).is_absolute():
        raise InvalidValueError(f"--parent-cgroup {parent}: a path below the hierarchy's root")
    if arguments.cgroup_version == "2":
        below = _unified() / parent
        groups = {"": below / arguments.id if settings else below}
    else:
        groups = {
            kind: _CGROUPS / kind / parent / arguments.id
            for kind in sorted({file.partition(".")[0] for file, _ in settings})
        }
    for group in groups.values():
        group.mkdir(parents=True, exist_ok=True)
        if arguments.cgroup_version == "2":
            _delegate(group, {file.partition(".")[0] for file, _ in settings})
    for file, value in settings:
        kind = "" if arguments.cgroup_version == "2" else file.partition(".")[0]
        if kind == "cpuset":
            _inherit(groups[kind])
        (groups[kind] / file).write_text(value)
    for group in groups.values():
        (group / "cgroup.procs").write_text(f"{os.getpid()}")


def _delegate(group: Path, controllers: set[str]) -> None:
    """Have the groups of version 2 above one let it have its controllers; `cgroup` is none."""
    known = set((_unified() / "cgroup.controllers").read_text().split())
    missing = sorted(controllers - known - {"cgroup"})
    if missing:
        raise HostError(
            f"control groups of version 2 have no {', '.join(missing)} here",
            hint="is it --cgroup-version 1 on this host?",
        )
    above = group.relative_to(_unified()).parents
    for directory in reversed(above):
        for name in sorted(controllers & known):
            (_unified() / directory / "cgroup.subtree_control").write_text(f"+{name}")


def _inherit(group: Path) -> None:
    """Give a group of version 1 the CPUs and nodes of its parents, which it begins without."""
    for directory in (group.parent, group):
        for file in ("cpuset.cpus", "cpuset.mems"):
            if not (directory / file).read_text().strip():
                (directory / file).write_text((directory.parent / file).read_text())


def _unified() -> Path:
    """Return where the hierarchy of version 2 is mounted."""
    mixed = _CGROUPS / "unified"
    return mixed if mixed.is_dir() else _CGROUPS


def _daemonize() -> None:
    if os.fork():
        os._exit(0)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)


def _visible() -> list[Path]:
    """Return what of the host is in the new root: the interpreter, modules, libraries, names."""
    package = Path(ringzero.__file__).parent
    paths = [Path(sys.prefix), Path(sys.base_prefix), package, *_links_to(Path(sys.executable))]
    paths += [Path(entry) for entry in sys.path if entry and Path(entry) != package.parent]
    paths += [Path(name) for name in (*_LIBRARIES, *_NAMES)]
    paths += [CACHE_DIR.get().absolute() / name for name in _COMPILED]
    # Of a system's own Python, only its libraries and the program.
    paths = [path for path in paths if path != Path("/usr")]
    return [path for path in paths if path.exists()]


def _links_to(program: Path) -> list[Path]:
    """Return a program's path, and what it leads to where it is a link, one after the other."""
    found = [program]
    while found[-1].is_symlink():
        found.append(Path(os.path.normpath(found[-1].parent / found[-1].readlink())))
    return found


def _environment() -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": "/run",
        "PYTHONPATH": str(Path(ringzero.__file__).parents[1]),
        CACHE_DIR.name: str(CACHE_DIR.get().absolute()),
    }


if __name__ == "__main__":
    sys.exit(main())
