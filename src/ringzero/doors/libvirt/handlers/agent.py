"""What a guest's agent is asked by libvirt's clients: by commands that ringzero's runs there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ringzero.doors.conversation import Output
from ringzero.doors.libvirt import definitions, guestagent
from ringzero.doors.libvirt.constants import AddressType, GuestInfo
from ringzero.doors.libvirt.context import AGENT_WAIT, Context, RefusedError, Results, handles
from ringzero.doors.libvirt.faults import ErrorCode, ErrorDomain
from ringzero.doors.libvirt.handlers.domain import find_active
from ringzero.doors.libvirt.inventory import Domain
from ringzero.doors.libvirt.values import DomainHandle, Parameter, ParameterKind
from ringzero.errors import InvalidValueError
from ringzero.version import __version__

# How many commands and files of all guests are open at once.
_MOST = 64
# virDomainQemuAgentCommandTimeoutValues: wait for ever, wait as long as usual, do not wait.
_FOREVER, _DEFAULT, _NOWAIT = -2, -1, 0
_MODES = ("r", "rb", "w", "wb", "a", "ab")
_SET, _CURRENT = (0, "set"), (1, "cur")
_SECOND = 1_000_000_000
# Of a time in seconds since 1970; in nanoseconds it has 64 bits.
_DIGITS = 10
Does = Callable[["Guest", dict[str, Any]], Awaitable[object]]
Function = TypeVar("Function", bound=Does)


class File:
    """A file of a guest that a client has open: its path, and where it reads next."""

    def __init__(self, path: str, mode: str) -> None:
        self.path, self.mode, self.offset = path, mode, 0


class Opened:
    """Commands and files of guests, by domain and number.

    Each command of a client may come over a connection of its own, so that the daemon keeps them:
    until they are asked for, closed, or the daemon ends. Numbers are not those in the guest.
    """

    def __init__(self) -> None:
        self._things: dict[tuple[bytes, int], Any] = {}
        self._last = 0

    def add(self, domain: Domain, thing: asyncio.Task[Output] | File) -> int:
        """Return the number of something new. Raises RefusedError."""
        if len(self._things) >= _MOST:
            self._forget_one()
        if len(self._things) >= _MOST:
            text = f"{_MOST} commands and files of guests are open; ask for the end of some first"
            raise RefusedError(ErrorCode.RESOURCE_BUSY, text)
        self._last += 1
        self._things[domain.uuid, self._last] = thing
        return self._last

    def _forget_one(self) -> None:
        """Forget the first command that has ended, for whose end nobody has asked."""
        for key, thing in self._things.items():
            if isinstance(thing, asyncio.Task) and thing.done():
                del self._things[key]
                return

    def get(self, domain: Domain, number: int, kind: type) -> Any:
        """Return what has a number. Raises InvalidValueError."""
        found = self._things.get((domain.uuid, number))
        if not isinstance(found, kind):
            noun = "PID" if kind is asyncio.Task else "handle"
            raise InvalidValueError(f"{noun} {number} does not exist")
        return found

    def remove(self, domain: Domain, number: int) -> None:
        """Forget what has a number."""
        del self._things[domain.uuid, number]


class Guest:
    """One domain's guest, for one command of a client."""

    def __init__(self, context: Context, domain: Domain, wait: float) -> None:
        self.context, self.domain, self.wait = context, domain, wait
        self.opened = context.manager.part(Opened)

    async def run(self, words: list[str], data: bytes = b"") -> Output:
        """Run a command to its end. Raises RefusedError."""
        return await self.context.command(self.domain.name, words, data, self.wait)

    async def output(self, *words: str, data: bytes = b"") -> bytes:
        """Return what a command prints. Raises RefusedError where it fails."""
        found = await self.run(list(words), data)
        if found.status:
            told = found.stderr.decode("utf-8", "replace").strip()
            text = told or f"{words[0]} ended with status {found.status}"
            raise RefusedError(ErrorCode.OPERATION_FAILED, f"in the guest: {text}")
        return found.stdout

    async def text(self, *words: str) -> str:
        """Return what a command prints as text."""
        return (await self.output(*words)).decode("utf-8", "replace")


_DOES: dict[str, Does] = {}


def _does(name: str) -> Callable[[Function], Function]:
    def bind(function: Function) -> Function:
        _DOES[name] = function
        return function

    return bind


async def guest(context: Context, handle: DomainHandle, wait: float = AGENT_WAIT) -> Guest:
    """Return the guest of a domain that runs and has an agent. Raises RefusedError."""
    found = await find_active(context, handle)
    summary = await context.act("inspect", {}, found.name)
    if not summary["config"].get("agent"):
        text = "argument unsupported: QEMU guest agent is not configured"
        raise RefusedError(ErrorCode.ARGUMENT_UNSUPPORTED, text)
    if not definitions.agent_answers(summary):
        text = "Guest agent is not responding: QEMU guest agent is not connected"
        raise RefusedError(ErrorCode.AGENT_UNRESPONSIVE, text)
    return Guest(context, found, wait)


@handles("DOMAIN_AGENT_COMMAND")
async def agent_command(
    context: Context, domain: DomainHandle, cmd: str, timeout: int, flags: int
) -> Results:
    wait = AGENT_WAIT if timeout in (_DEFAULT, _NOWAIT) else float(timeout)
    if timeout == _FOREVER:
        wait = 0.0
    elif wait < 0:
        raise RefusedError(ErrorCode.INVALID_ARG, f"a timeout of {timeout} seconds")
    asked = await guest(context, domain, wait)
    try:
        command = guestagent.read(cmd)
        result = await _DOES[command.name](asked, command.arguments)
    except InvalidValueError as fault:
        name = _named(cmd)
        text = f"internal error: unable to execute QEMU agent command '{name}': {fault.message}"
        raise RefusedError(ErrorCode.INTERNAL_ERROR, text, ErrorDomain.QEMU) from fault
    return {"result": guestagent.answer(result)}


def _named(text: str) -> str:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    name = found.get("execute", "") if isinstance(found, dict) else ""
    return name[:80] if isinstance(name, str) else ""


@handles("DOMAIN_GET_TIME")
async def get_time(context: Context, domain: DomainHandle, flags: int) -> Results:
    return {"seconds": await _clock(await guest(context, domain)), "nseconds": 0}


@handles("DOMAIN_GET_FSINFO")
async def get_fsinfo(context: Context, domain: DomainHandle, flags: int) -> Results:
    asked = await guest(context, domain)
    found = guestagent.file_systems(await asked.text(*guestagent.MOUNTS))
    return {"info": found, "ret": len(found)}


@handles("DOMAIN_GET_GUEST_INFO")
async def get_guest_info(context: Context, domain: DomainHandle, types: int, flags: int) -> Results:
    asked = await guest(context, domain)
    wanted = types or ~0
    told: list[Parameter] = []
    if wanted & GuestInfo.OS:
        facts = guestagent.release(await asked.text(*guestagent.RELEASE))
        told += [Parameter.of(f"os.{name}", value) for name, value in facts.items()]
    if wanted & GuestInfo.TIMEZONE:
        name, offset = guestagent.timezone(await asked.text(*guestagent.TIMEZONE))
        told.append(Parameter.of("timezone.name", name))
        told.append(Parameter("timezone.offset", ParameterKind.INT, offset))
    if wanted & GuestInfo.HOSTNAME:
        told.append(Parameter.of("hostname", (await asked.text("hostname")).strip()))
    if wanted & GuestInfo.FILESYSTEM:
        found = guestagent.file_systems(await asked.text(*guestagent.MOUNTS))
        told.append(Parameter("fs.count", ParameterKind.UINT, len(found)))
        for number, item in enumerate(found):
            told.append(Parameter.of(f"fs.{number}.name", item.name))
            told.append(Parameter.of(f"fs.{number}.mountpoint", item.mountpoint))
            told.append(Parameter.of(f"fs.{number}.fstype", item.type))
    return {"params": told}


# ---- the agent's commands -----------------------------------------------------------


@_does("guest-sync")
async def _sync(asked: Guest, given: dict[str, Any]) -> object:
    return given["id"]


@_does("guest-sync-delimited")
async def _sync_delimited(asked: Guest, given: dict[str, Any]) -> object:
    return given["id"]


@_does("guest-ping")
async def _ping(asked: Guest, given: dict[str, Any]) -> object:
    await asked.output("true")
    return {}


@_does("guest-info")
async def _info(asked: Guest, given: dict[str, Any]) -> object:
    commands = [
        {"enabled": True, "name": name, "success-response": True} for name in guestagent.COMMANDS
    ]
    return {"version": __version__, "supported_commands": commands}


async def _clock(asked: Guest) -> int:
    told = (await asked.text("date", "+%s")).strip()
    if not told.isdecimal() or len(told) > _DIGITS:
        raise RefusedError(ErrorCode.OPERATION_FAILED, "the guest does not tell its time")
    return int(told)


@_does("guest-get-time")
async def _time(asked: Guest, given: dict[str, Any]) -> object:
    return await _clock(asked) * _SECOND


@_does("guest-get-host-name")
async def _host_name(asked: Guest, given: dict[str, Any]) -> object:
    return {"host-name": (await asked.text("hostname")).strip()}


@_does("guest-get-osinfo")
async def _osinfo(asked: Guest, given: dict[str, Any]) -> object:
    return guestagent.release(await asked.text(*guestagent.RELEASE))


@_does("guest-get-timezone")
async def _timezone(asked: Guest, given: dict[str, Any]) -> object:
    name, offset = guestagent.timezone(await asked.text(*guestagent.TIMEZONE))
    return {"zone": name, "offset": offset}


@_does("guest-get-fsinfo")
async def _fsinfo(asked: Guest, given: dict[str, Any]) -> object:
    found = guestagent.file_systems(await asked.text(*guestagent.MOUNTS))
    return [
        {"name": item.name, "mountpoint": item.mountpoint, "type": item.type, "disk": []}
        for item in found
    ]


@_does("guest-network-get-interfaces")
async def _interfaces(asked: Guest, given: dict[str, Any]) -> object:
    told = []
    for item in guestagent.interfaces(await asked.text(*guestagent.INTERFACES)):
        addresses = [
            {
                "ip-address": one.address,
                "ip-address-type": "ipv4" if one.type == AddressType.IPV4 else "ipv6",
                "prefix": one.prefix,
            }
            for one in item.addresses
        ]
        hardware = {"hardware-address": item.mac} if item.mac else {}
        told.append({"name": item.name, **hardware, "ip-addresses": addresses})
    return told


@_does("guest-shutdown")
async def _shutdown(asked: Guest, given: dict[str, Any]) -> object:
    mode = given.get("mode", "powerdown")
    action = {"powerdown": "stop", "halt": "stop", "reboot": "restart"}.get(mode)
    if action is None:
        raise InvalidValueError(f"mode {mode[:80]!r}: powerdown, halt and reboot are known")
    context = asked.context
    context.manager.jobs.begin(action, {}, asked.domain.name, caller=context.caller)
    return {}


@_does("guest-exec")
async def _exec(asked: Guest, given: dict[str, Any]) -> object:
    words = [given["path"], *given.get("arg", [])]
    if given.get("env"):
        words[:0] = ["env", *given["env"]]
    data = guestagent.decoded(given.get("input-data", ""))
    task = asyncio.ensure_future(asked.run(words, data))
    try:
        number = asked.opened.add(asked.domain, task)
    except RefusedError:
        task.cancel()
        raise
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return {"pid": number}


@_does("guest-exec-status")
async def _exec_status(asked: Guest, given: dict[str, Any]) -> object:
    task = asked.opened.get(asked.domain, given["pid"], asyncio.Task)
    if not task.done():
        return {"exited": False}
    asked.opened.remove(asked.domain, given["pid"])
    found: Output = task.result()
    told: dict[str, Any] = {"exited": True, "exitcode": found.status}
    for name, data in (("out-data", found.stdout), ("err-data", found.stderr)):
        if data:
            told[name] = guestagent.encoded(data)
    if found.cut:
        told["out-truncated"] = True
    return told


@_does("guest-file-open")
async def _open(asked: Guest, given: dict[str, Any]) -> object:
    mode, path = given.get("mode", "r"), given["path"]
    if mode not in _MODES:
        raise InvalidValueError(f"mode {mode[:80]!r}: {', '.join(_MODES)} are known")
    script = {"r": '< "$1"', "w": '> "$1"', "a": '>> "$1"'}[mode[0]]
    await asked.output("sh", "-c", f": {script}", "sh", path)
    return asked.opened.add(asked.domain, File(path, mode[0]))


def _file(asked: Guest, given: dict[str, Any], *modes: str) -> File:
    found: File = asked.opened.get(asked.domain, given["handle"], File)
    if found.mode not in modes:
        verb = "read" if "r" in modes else "written"
        raise InvalidValueError(f"handle {given['handle']} is not open to be {verb}")
    return found


@_does("guest-file-read")
async def _read(asked: Guest, given: dict[str, Any]) -> object:
    file, count = _file(asked, given, "r"), given.get("count", guestagent.READ)
    if not 0 <= count <= guestagent.MAX_READ:
        raise InvalidValueError(f"count {count}: at most {guestagent.MAX_READ} bytes at once")
    script = 'tail -c "+$2" < "$1" | head -c "$3"'
    place = (file.path, str(file.offset + 1), str(count))
    data = await asked.output("sh", "-c", script, "sh", *place) if count else b""
    file.offset += len(data)
    return {"count": len(data), "buf-b64": guestagent.encoded(data), "eof": len(data) < count}


@_does("guest-file-write")
async def _write(asked: Guest, given: dict[str, Any]) -> object:
    file, data = _file(asked, given, "w", "a"), guestagent.decoded(given["buf-b64"])
    count = given.get("count", len(data))
    if not 0 <= count <= len(data):
        raise InvalidValueError(f"count {count} of {len(data)} bytes")
    if count:
        # It was emptied when it was opened; what is written follows what was.
        await asked.output("sh", "-c", 'cat >> "$1"', "sh", file.path, data=data[:count])
    return {"count": count, "eof": False}


@_does("guest-file-seek")
async def _seek(asked: Guest, given: dict[str, Any]) -> object:
    file, whence = _file(asked, given, "r"), given["whence"]
    if whence not in (*_SET, *_CURRENT):
        raise InvalidValueError("whence: set and cur are known")
    offset = given["offset"] + (file.offset if whence in _CURRENT else 0)
    if not 0 <= offset < 1 << 62:
        raise InvalidValueError(f"there is no offset {offset}")
    file.offset = offset
    return {"position": offset, "eof": False}


@_does("guest-file-flush")
async def _flush(asked: Guest, given: dict[str, Any]) -> object:
    _file(asked, given, "r", "w", "a")
    return {}


@_does("guest-file-close")
async def _close(asked: Guest, given: dict[str, Any]) -> object:
    _file(asked, given, "r", "w", "a")
    asked.opened.remove(asked.domain, given["handle"])
    return {}
