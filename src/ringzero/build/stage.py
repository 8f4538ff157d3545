"""What a stage's image says of itself so far: environment, user, directory, what it runs."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from ringzero.build.vmfile import instructions as kinds
from ringzero.build.vmfile.instructions import Command, Instruction
from ringzero.build.vmfile.words import Word, expand
from ringzero.errors import GuestImageError
from ringzero.image import machinespec
from ringzero.image.machinespec import MOST_DISKS, DataDisk, MachineSpec, Ready, Service
from ringzero.records import field, mutable_record, replace

_SHELL = ("/bin/sh", "-c")
# Names of a build's own that need no ARG (Dockerfile reference, "Predefined ARGs").
PREDEFINED = frozenset(
    name
    for text in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (text, text.lower())
)


@mutable_record
class State:
    """The configuration of an image in the making, in Docker's terms.

    `config` is the part of that name as its base has it; what is not known here stays.
    """

    escape: str = "\\"
    env: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    workdir: str = ""
    user: str = ""
    shell: tuple[str, ...] = _SHELL
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    machine: MachineSpec = MachineSpec()
    # Whether this stage has said what to run: an ENTRYPOINT of its own forgets the base's CMD.
    has_cmd: bool = False

    @classmethod
    def of(cls, document: Mapping[str, Any], escape: str) -> Self:
        """Return the state that an image's configuration (config.md) describes."""
        config = document.get("config")
        config = dict(config) if isinstance(config, dict) else {}
        env = config.pop("Env", None) or []
        history = document.get("history")
        if not isinstance(env, list) or not all(isinstance(pair, str) for pair in env):
            raise GuestImageError("the base image's configuration has no list of texts in Env")
        return cls(
            escape=escape,
            env=dict(pair.partition("=")[::2] for pair in env),
            workdir=str(config.pop("WorkingDir", "") or ""),
            user=str(config.pop("User", "") or ""),
            shell=tuple(config.get("Shell") or _SHELL),
            machine=machinespec.read(config.pop(machinespec.MEMBER, None)),
            config=config,
            history=list(history) if isinstance(history, list) else [],
        )

    def copy(self) -> Self:
        """Return the same for a stage that begins with it; its arguments stay behind."""
        return replace(
            self,
            env=dict(self.env),
            arguments={},
            config=json.loads(json.dumps(self.config)),
            history=list(self.history),
            has_cmd=False,
        )

    # ---- what steps ask -----------------------------------------------------

    def lookup(self, name: str) -> str | None:
        """Return what a variable holds: ENV stands before ARG."""
        return self.env[name] if name in self.env else self.arguments.get(name)

    def text(self, word: Word) -> str:
        """Return a word's text now."""
        return expand(word, self.lookup, self.escape)

    def absolute(self, path: str) -> str:
        """Return a path of the guest's from the root; a slash at its end stays."""
        joined = posixpath.join("/", self.workdir, path)
        ending = "/" if path.endswith(("/", "/.")) or path in (".", "") else ""
        return posixpath.normpath(joined).rstrip("/") + ending or "/"

    def variables(self) -> dict[str, str]:
        """Return the environment of a RUN."""
        return {**self.arguments, **self.env}

    # ---- what steps say -----------------------------------------------------

    def take(self, step: Instruction) -> bool:
        """Take an instruction that changes the configuration alone; False for others."""
        match step:
            case kinds.Env():
                pairs = [(self.text(key), self.text(value)) for key, value in step.pairs]
                self.env.update(pairs)
            case kinds.Label():
                labels = self._of("Labels")
                labels.update({self.text(key): self.text(value) for key, value in step.pairs})
            case kinds.User():
                self.user = self.text(step.user)
            case kinds.Expose():
                for word in step.ports:
                    self._of("ExposedPorts").update({p: {} for p in _ports(self.text(word))})
            case kinds.Volume():
                self._of("Volumes").update({self.text(path): {} for path in step.paths})
            case kinds.Entrypoint():
                self.config["Entrypoint"] = self._command(step.command)
                if not self.has_cmd:
                    self.config.pop("Cmd", None)
            case kinds.Cmd():
                self.config["Cmd"] = self._command(step.command)
                self.has_cmd = True
            case kinds.Shell():
                self.shell = step.words
                self.config["Shell"] = list(step.words)
            case kinds.Stopsignal():
                self.config["StopSignal"] = self.text(step.signal)
            case kinds.Healthcheck():
                self.config["Healthcheck"] = self._health(step)
            case kinds.Memory():
                self.machine = replace(self.machine, memory=step.size)
            case kinds.Cpus():
                self.machine = replace(self.machine, cpus=step.count)
            case kinds.Service():
                self._serve(step)
            case kinds.Ready():
                self.machine = replace(self.machine, ready=_ready(step, self._command))
            case kinds.DataDisk():
                self._have_disk(step)
            case kinds.KeepMemory():
                self.machine = replace(self.machine, snapshot=True)
            case _:
                return False
        return True

    def _serve(self, step: kinds.Service) -> None:
        """Take a service; one of the same name is replaced, and the base's CMD is forgotten."""
        service = Service(
            step.name,
            tuple(self._command(step.command) or ()),
            step.restart,
            step.user or self.user,
            step.after,
        )
        others = [other for other in self.machine.services if other.name != step.name]
        unknown = set(step.after) - {other.name for other in others}
        if unknown:
            raise GuestImageError(
                f"SERVICE {step.name} comes after {sorted(unknown)[0]!r}, and no service before it "
                "is called so",
                hint="write the other service first",
            )
        self.machine = replace(self.machine, services=(*others, service))
        if not self.has_cmd:
            self.config.pop("Cmd", None)

    def _have_disk(self, step: kinds.DataDisk) -> None:
        """Take a disk; it replaces another one at its directory."""
        path = self.absolute(self.text(step.path)).rstrip("/")
        if not machinespec.is_path(path):
            raise GuestImageError(
                f"DISK: a disk cannot be at {path or '/'!r}",
                hint="a directory below the root; letters, digits and ._+@=- in its path",
            )
        others = [disk for disk in self.machine.disks if disk.path != path]
        if len(others) >= MOST_DISKS:
            raise GuestImageError(f"DISK: an image has {MOST_DISKS} disks at most")
        disks = (*others, DataDisk(step.size, path, step.format))
        self.machine = replace(self.machine, disks=disks)

    def _of(self, name: str) -> dict[str, Any]:
        """Return a member of the configuration that holds others."""
        found: dict[str, Any] = self.config.setdefault(name, {})
        return found

    def _command(self, command: Command) -> list[str] | None:
        if command.words:
            return list(command.words)
        return [*self.shell, command.text] if command.text else None

    def _health(self, step: kinds.Healthcheck) -> dict[str, Any]:
        if step.command is None and not step.port and not step.url:
            return {"Test": ["NONE"]}
        if step.command is None:
            raise GuestImageError(
                "HEALTHCHECK asks by a command alone; READY takes tcp: and http://"
            )
        test = (
            ["CMD", *step.command.words] if step.command.words else ["CMD-SHELL", step.command.text]
        )
        nanoseconds = {
            "Interval": step.interval,
            "Timeout": step.timeout,
            "StartPeriod": step.start_period,
            "StartInterval": step.start_interval,
        }
        times = {name: int(value * 1e9) for name, value in nanoseconds.items() if value}
        return {"Test": test, **times, "Retries": step.retries}

    # ---- the result ---------------------------------------------------------

    def note(self, text: str, created: str, *, empty: bool) -> None:
        """Add a step to the history."""
        entry: dict[str, Any] = {"created": created, "created_by": text}
        if empty:
            entry["empty_layer"] = True
        self.history.append(entry)

    def document(self, architecture: str, diff_ids: Sequence[str], created: str) -> bytes:
        """Return the image's configuration (config.md); equal states give equal bytes."""
        config = {**self.config, "Env": [f"{k}={v}" for k, v in self.env.items()]}
        config[machinespec.MEMBER] = self.machine.plain() or None
        for name, value in (("WorkingDir", self.workdir), ("User", self.user)):
            if value:
                config[name] = value
        whole = {
            "architecture": architecture,
            "os": "linux",
            "created": created,
            "config": {name: value for name, value in config.items() if value is not None},
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
            "history": self.history,
        }
        return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()


def _ready(step: kinds.Ready, words: Callable[[Command], list[str] | None]) -> Ready:
    if step.command is not None:
        test = ("CMD", *(words(step.command) or ()))
    else:
        test = ("TCP", str(step.port)) if step.port else ("HTTP", step.url)
    return Ready(test, round(step.interval * 1e9), round(step.timeout * 1e9))


def _ports(text: str) -> list[str]:
    """Return the ports of EXPOSE as PORT/PROTOCOL; ranges are all of theirs."""
    ports, _, protocol = text.partition("/")
    first, _, last = ports.partition("-")
    protocol = (protocol or "tcp").lower()
    good = first.isdecimal() and (not last or last.isdecimal()) and protocol in ("tcp", "udp")
    if not good or not 0 < int(first[:9]) <= int((last or first)[:9]) <= 65535:
        raise GuestImageError(f"EXPOSE {text!r} is no port", hint="EXPOSE 80 8000-8010/udp")
    return [f"{port}/{protocol}" for port in range(int(first), int(last or first) + 1)]
