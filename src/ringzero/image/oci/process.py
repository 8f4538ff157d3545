"""How an image's programs are to be run: user, directory and environment, for the guest's init.

The guest sources a shell script of assignments; names of users are looked up here, in the
image's own /etc/passwd and /etc/group (passwd(5), group(5)), by Docker's rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from math import ceil
from shlex import join, quote

from ringzero.errors import GuestImageError
from ringzero.image.guest.enter import TOOLS
from ringzero.image.machinespec import MachineSpec, Ready
from ringzero.image.oci.manifest import ImageConfig
from ringzero.records import record

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# The kernel's own limit of groups is higher; more than this no image has.
_MAX_GROUPS = 256
# A number of 32 bits has so many at most.
_DIGITS = 10
_SECOND = 1_000_000_000
# The guest's own programs, and how long one of them waits for a service's answer, in seconds.
_BUSYBOX, _PATIENCE = f"{TOOLS}/bin/busybox", 5


@record
class User:
    """Numbers of a user and its groups, the first of which is its own, and its directory."""

    uid: int = 0
    gids: tuple[int, ...] = (0,)
    home: str = "/root"


def find_user(text: str, read: Callable[[str], bytes]) -> User:
    """Return who USER[:GROUP] is; `read` returns a file of the image, empty if it has none.

    Raises GuestImageError for a name that the image does not know.
    """
    name, colon, group = text.partition(":")
    uid, gid, home, login = 0, 0, "/root", "root"
    if name.isdecimal():
        uid, home, login = _id(name), "/", ""
    found = False
    for fields in _lines(read("/etc/passwd"), 7):
        if fields[0] == (name or "root") or (name.isdecimal() and fields[2] == name):
            login, uid, gid, home = fields[0], _id(fields[2]), _id(fields[3]), fields[5] or "/"
            found = True
            break
    if not found and name and not name.isdecimal() and name != "root":
        raise GuestImageError(
            f"the image runs as {name!r}, who is not in its /etc/passwd",
            hint="another user: --user 0",
        )
    groups = list(_lines(read("/etc/group"), 3))
    if colon and group:
        gid = _id(group) if group.isdecimal() else _group(group, groups)
        return User(_id(str(uid)), (gid,), home)
    more = [_id(g[2]) for g in groups if found and login in g[3].split(",")]
    return User(_id(str(uid)), tuple(dict.fromkeys((gid, *more)))[:_MAX_GROUPS], home)


def _group(name: str, groups: list[list[str]]) -> int:
    for fields in groups:
        if fields[0] == name:
            return _id(fields[2])
    raise GuestImageError(f"the image's group {name!r} is not in its /etc/group")


def _lines(data: bytes, least: int) -> Iterator[list[str]]:
    for line in data.decode("utf-8", "replace").splitlines():
        fields = line.split(":")
        if len(fields) >= least and not line.startswith("#"):
            # Some leave out the members of a group that has none.
            yield [*fields, ""]


def _id(text: str) -> int:
    value = int(text) if text.isdecimal() and len(text) <= _DIGITS else -1
    if not 0 <= value < (1 << 32) - 1:
        raise GuestImageError(f"{text[:40]!r} is no number of a user or group")
    return value


def script(config: ImageConfig, user: User) -> str:
    """Return the shell script that the guest's init sources before it runs a program.

    Variables whose names no shell takes are left out.
    """
    variables = dict(pair.partition("=")[::2] for pair in config.env)
    variables = {"PATH": _DEFAULT_PATH, "HOME": user.home, **variables}
    lines = [
        f"export {name}={quote(value)}"
        for name, value in variables.items()
        if _NAME.fullmatch(name)
    ]
    gids = ",".join(map(str, user.gids))
    lines += [f"user={user.uid} groups={gids}", f"directory={quote(config.workdir or '/')}"]
    lines.append(f"stop_signal={config.stop_signal or 'TERM'}")
    lines += _services(config.machine)
    return "\n".join(lines) + "\n"


def _services(machine: MachineSpec) -> Iterator[str]:
    """Yield the functions by which the guest's init starts services, and asks for readiness."""
    if machine.services:
        yield "services() {"
        for service in machine.services:
            how = [service.name, service.restart, " ".join(service.after)]
            how += [f"--user={service.user}"] * bool(service.user)
            yield f"supervise {join([*how, '--', *service.command])} &"
        yield "wait\n}"
    if machine.ready is not None:
        bound, pause = machine.ready.timeout / _SECOND, machine.ready.interval / _SECOND
        # A command takes no longer than all of them may, a question by network less.
        longest = ceil(bound) if machine.ready.test[0] == "CMD" else min(ceil(bound), _PATIENCE)
        words = [_BUSYBOX, "timeout", "-s", "KILL", str(longest), *_question(machine.ready)]
        yield f"ready() {{\nask {ceil(bound)} {pause:.3f} {join(['--', *words])}\n}}"


def _question(ready: Ready) -> tuple[str, ...]:
    kind, *words = ready.test
    if kind == "TCP":
        # It connects, and is then another program, which ends.
        return (_BUSYBOX, "nc", "127.0.0.1", *words, "-e", _BUSYBOX, "true")
    if kind == "HTTP":
        return (_BUSYBOX, "wget", "-q", "-O", "/dev/null", *words)
    return tuple(words)
