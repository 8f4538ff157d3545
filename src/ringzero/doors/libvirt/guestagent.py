"""QEMU's guest agent as its clients speak with it: commands in JSON, and what a guest prints.

Only the language; `ringzero.doors.libvirt.handlers.agent` asks the guest. A command is what the
QEMU Guest Agent Protocol Reference says, of which COMMANDS has those that are known here.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from typing import Any

from ringzero.doors.libvirt.constants import AddressType
from ringzero.doors.libvirt.values import FileSystem, GuestInterface, IpAddress
from ringzero.errors import InvalidValueError
from ringzero.records import field, record

# Of one read; the reference allows 48 MiB, an answer of libvirt's is 4 MiB of text at most.
MAX_READ = 1 << 20
# What guest-file-read reads without a count.
READ = 4096
_NUMBER, _TEXT, _TEXTS, _YES = "number", "text", "texts", "yes or no"
# The arguments of each command; those with a star must be there.
COMMANDS: dict[str, dict[str, str]] = {
    "guest-sync": {"id*": _NUMBER},
    "guest-sync-delimited": {"id*": _NUMBER},
    "guest-ping": {},
    "guest-info": {},
    "guest-get-time": {},
    "guest-get-host-name": {},
    "guest-get-osinfo": {},
    "guest-get-timezone": {},
    "guest-get-fsinfo": {},
    "guest-network-get-interfaces": {},
    "guest-shutdown": {"mode": _TEXT},
    "guest-exec": {
        "path*": _TEXT,
        "arg": _TEXTS,
        "env": _TEXTS,
        "input-data": _TEXT,
        "capture-output": _YES,
    },
    "guest-exec-status": {"pid*": _NUMBER},
    "guest-file-open": {"path*": _TEXT, "mode": _TEXT},
    "guest-file-close": {"handle*": _NUMBER},
    "guest-file-read": {"handle*": _NUMBER, "count": _NUMBER},
    "guest-file-write": {"handle*": _NUMBER, "buf-b64*": _TEXT, "count": _NUMBER},
    "guest-file-seek": {"handle*": _NUMBER, "offset*": _NUMBER, "whence*": ""},
    "guest-file-flush": {"handle*": _NUMBER},
}


@record
class Command:
    """A command and its arguments, which are of the right types."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


def read(text: str) -> Command:
    """Return the command in a text. Raises InvalidValueError."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("execute"), str):
        raise InvalidValueError('no command: {"execute": "guest-ping"} is one')
    name, given = found["execute"], found.get("arguments", {})
    takes = COMMANDS.get(name)
    if takes is None:
        raise InvalidValueError(f"The command {name[:80]} has not been found")
    if not isinstance(given, dict):
        raise InvalidValueError("'arguments' is no object")
    known = {key.rstrip("*"): kind for key, kind in takes.items()}
    for key, value in given.items():
        if key not in known:
            raise InvalidValueError(f"Parameter '{key[:80]}' is unexpected")
        if not _fits(value, known[key]):
            raise InvalidValueError(f"Invalid parameter type for '{key}', expected: {known[key]}")
    for key in takes:
        if key.endswith("*") and key[:-1] not in given:
            raise InvalidValueError(f"Parameter '{key[:-1]}' is missing")
    return Command(name, given)


def _fits(value: object, kind: str) -> bool:
    if kind == _NUMBER:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    if kind == _TEXTS:
        return isinstance(value, list) and all(_fits(one, _TEXT) for one in value)
    if kind == _TEXT:
        return isinstance(value, str) and "\0" not in value
    return isinstance(value, bool) if kind == _YES else isinstance(value, int | str)


def answer(value: object) -> str:
    """Return what a command gives, as a client reads it."""
    return json.dumps({"return": value}, separators=(",", ":"))


def encoded(data: bytes) -> str:
    """Return bytes as they stand in an answer."""
    return base64.b64encode(data).decode("ascii")


def decoded(text: str) -> bytes:
    """Return the bytes that stand in a command. Raises InvalidValueError."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidValueError("not base64") from None


# ---- what a guest prints ----------------------------------------------------------

# A line for each link with its MAC address, and what `ip` says of addresses.
INTERFACES = (
    *("sh", "-c"),
    'for n in /sys/class/net/*; do echo "${n##*/} $(cat "$n/address")"; done; ip -o address show',
)
RELEASE = ("sh", "-c", "cat /etc/os-release; echo; uname -s; uname -r; uname -v; uname -m")
MOUNTS = ("cat", "/proc/mounts")
TIMEZONE = ("date", "+%Z %z")
_UNAME = ("sysname", "kernel-release", "kernel-version", "machine")
_RELEASE = {
    "ID": "id",
    "NAME": "name",
    "PRETTY_NAME": "pretty-name",
    "VERSION": "version",
    "VERSION_ID": "version-id",
}
# How many of anything a guest tells of are told on (libvirt's REMOTE_DOMAIN_FSINFO_MAX).
_MOST = 256


def interfaces(output: str) -> Iterator[GuestInterface]:
    """Yield what INTERFACES, or `ip -o address show` alone, prints."""
    links: dict[str, str | None] = {}
    found: dict[str, list[IpAddress]] = {}
    for line in output.splitlines():
        words = line.split()
        if len(words) == 2 and words[1].count(":") == 5:
            links[words[0]] = words[1]
        if len(words) < 4 or words[2] not in ("inet", "inet6") or "/" not in words[3]:
            continue
        address, _, length = words[3].partition("/")
        kind = AddressType.IPV4 if words[2] == "inet" else AddressType.IPV6
        if length.isdecimal() and len(length) <= 3:
            found.setdefault(words[1], []).append(IpAddress(int(kind), address, int(length)))
    for name in list(dict.fromkeys([*links, *found]))[:_MOST]:
        yield GuestInterface(name, links.get(name), found.get(name, [])[:_MOST])


def release(output: str) -> dict[str, str]:
    """Return what RELEASE prints, by the names that guest-get-osinfo has."""
    variables, _, system = output.rpartition("\n\n")
    found = {}
    for line in variables.splitlines():
        name, _, value = line.partition("=")
        if name in _RELEASE:
            found[_RELEASE[name]] = value.strip().strip("\"'")
    named = dict(zip(_UNAME, system.strip().splitlines(), strict=False))
    named.pop("sysname", None)
    return found | named


def file_systems(output: str) -> list[FileSystem]:
    """Return the mounted file systems that lie on devices, of what MOUNTS prints."""
    found = []
    for line in output.splitlines():
        device, *rest = line.split(" ")
        if device.startswith("/dev/") and len(rest) > 1:
            # Blanks in names are octal (fstab(5)).
            place = rest[0].replace("\\040", " ")
            found.append(FileSystem(place, device.rpartition("/")[2], rest[1], []))
    return found[:_MOST]


def timezone(output: str) -> tuple[str, int]:
    """Return the zone's name and its offset from UTC in seconds, of what TIMEZONE prints."""
    name, _, offset = output.strip().partition(" ")
    sign, digits = offset[:1], offset[1:]
    seconds = 0
    if len(digits) == 4 and digits.isdecimal():
        seconds = int(digits[:2]) * 3600 + int(digits[2:]) * 60
    return name, -seconds if sign == "-" else seconds
