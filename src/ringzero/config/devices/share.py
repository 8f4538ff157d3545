"""A shared folder: a directory, or a file, of the host that the guest has at a place of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from ringzero.config.device import DEVICE_CONFIGS, NAME, DeviceConfig
from ringzero.errors import InvalidValueError
from ringzero.records import record

# How long the guest may believe what it was told of names and attributes, in seconds.
CACHES = {"none": 0.0, "auto": 1.0, "always": 86400.0}
OWNERS = ("user", "host")
# Which device carries the folders of a machine: AUTO is chosen when the machine is made, BOTH leave
# it to the guest, which takes virtio-fs where its kernel has that.
AUTO, VIRTIOFS, NINEP, BOTH = TRANSPORTS = ("auto", "virtiofs", "9p", "both")
# Docker's words for what is so anyway.
_SILENT = ("rw", "z", "Z", "cached", "delegated", "consistent", "")
# Spelled for no folder, but for room for those that come while the machine runs.
ROOM = "later"
_HINT = "write HOST:GUEST, or HOST:GUEST:ro, as --mount ./src:/src"
# limits.h: PATH_MAX, with the end.
_LONGEST_TARGET = 4095


@DEVICE_CONFIGS.register("share")
@record
class ShareConfig(DeviceConfig):
    """A folder, or file, `path` of the host, at `target` in the guest.

    `cache` is a name in CACHES; `owners` "user": whoever runs ringzero is root in the guest,
    "host": the numbers are the host's. `transport` is one of TRANSPORTS, the same for all folders
    of a machine but for those that leave it open. `backend` is a name in the registry of what can
    be shared; `number` is the guest's name for it, given where others came or went while it ran.
    """

    kind = "share"
    flags = ("-v", "--mount", "--volume")
    spelling = "HOST:GUEST[:ro]"
    help = (
        "share a folder, or a file, of the host; read-only with ':ro'; ':cache=none' has every "
        "change of the host's seen at once (repeatable)"
    )
    # All shares of a machine are one device.
    joined = True
    first_has_number = False

    path: Path
    target: str
    read_only: bool = False
    cache: str = "auto"
    owners: str = "user"
    backend: str = "host"
    number: int | None = None
    transport: str = AUTO

    @classmethod
    def room(cls, number: int | None = None, transport: str = AUTO) -> Self:
        """Return what only makes room for folders that come while the machine runs."""
        return cls(Path("/"), "", number=number, transport=transport)

    def spelled(self) -> str:
        """Return the text that `parse` reads."""
        options = f"cache={self.cache},owners={self.owners},transport={self.transport}"
        return f"{self.path}:{self.target}:{'ro,' if self.read_only else ''}{options}"

    @classmethod
    def parse(cls, text: str) -> Self:
        if text == ROOM:
            return cls.room()
        if "=" in text.partition(":")[0] and "," in text:
            return cls._parse_fields(text)
        path, _, target = text.rpartition(":")
        options = ""
        if path and not target.startswith("/"):
            options = target
            path, _, target = path.rpartition(":")
        if not path or not target.startswith("/"):
            raise InvalidValueError(f"no shared folder in {text!r}", hint=_HINT)
        return cls._with_options(text, path, target, options.split(","))

    @classmethod
    def _parse_fields(cls, text: str) -> Self:
        """Read Docker's other form: type=bind,source=HOST,target=GUEST,readonly."""
        names = {"src": "source", "dst": "target", "destination": "target", "readonly": "ro"}
        fields: dict[str, str] = {}
        options = []
        for part in text.split(","):
            name, equals, value = part.partition("=")
            name = names.get(name, name)
            if name in ("source", "target", "type") and equals:
                fields[name] = value
            elif name == "ro":
                options += [] if value in ("false", "0") else ["ro"]
            else:
                options.append(part)
        if fields.get("type", "bind") != "bind":
            raise InvalidValueError(
                f"no mount of the type {fields['type']!r}", hint=f"only folders: {_HINT}"
            )
        if "source" not in fields or "target" not in fields:
            raise InvalidValueError(f"no shared folder in {text!r}", hint=_HINT)
        return cls._with_options(text, fields["source"], fields["target"], options)

    @classmethod
    def _with_options(cls, text: str, path: str, target: str, options: Sequence[str]) -> Self:
        read_only, values = False, {"cache": "auto", "owners": "user", "transport": AUTO}
        for option in options:
            name, equals, value = option.partition("=")
            if option == "ro":
                read_only = True
            elif equals and name in values:
                values[name] = value
            elif option not in _SILENT:
                raise InvalidValueError(
                    f"no option {option!r} in the shared folder {text!r}",
                    hint="known: ro, cache=none|auto|always, owners=user|host, "
                    f"transport={'|'.join(TRANSPORTS)}",
                )
        if _normal(target) == "/":
            raise InvalidValueError(
                f"the guest's root cannot be the place of {path}", hint=f"--root {path}"
            )
        return cls(
            Path(path),
            _normal(target),
            read_only,
            values["cache"],
            values["owners"],
            transport=values["transport"],
        )

    def faults(self) -> list[str]:
        found: list[str] = []
        target = self.target
        if self.transport not in TRANSPORTS:
            known = ", ".join(TRANSPORTS)
            found.append(f"share {self.path}: transport={self.transport}; known: {known}")
        if not target:
            return found
        if not target.startswith("/") or ".." in target.split("/"):
            found.append(f"share {self.path}: its place {target!r} is no absolute path")
        if any(c in target for c in "\0\n") or len(target.encode()) > _LONGEST_TARGET:
            found.append(f"share {self.path}: a place with a line break in it, or too long a one")
        if self.cache not in CACHES:
            found.append(f"share {self.path}: cache={self.cache}; known: {', '.join(CACHES)}")
        if self.owners not in OWNERS:
            found.append(f"share {self.path}: owners={self.owners}; known: {', '.join(OWNERS)}")
        if not NAME.fullmatch(self.backend):
            found.append(f"share {self.path}: no kind of share is called {self.backend!r}")
        return found

    @classmethod
    def faults_together(cls, devices: Sequence[Self]) -> list[str]:
        targets = Counter(_normal(share.target) for share in devices if share.target)
        known = numbers(devices)
        if len(set(known)) < len(known) or any(number < 0 for number in known):
            return ["shared folders with the same number"]
        transports = sorted({share.transport for share in devices} - {AUTO})
        if len(transports) > 1:
            return [f"shared folders by {' and '.join(transports)}: all go the same way"]
        return [f"two shared folders at {target}" for target, n in targets.items() if n > 1]

    @classmethod
    def places(cls, devices: Sequence[Self]) -> int:
        return 2 if any(share.transport == BOTH for share in devices) else 1

    def stand_in(self, number: int) -> Self | str:
        # What folders there are comes in afterwards, unless one is the guest's root.
        if self.target == "/":
            return "its root is a shared folder"
        return self.room(transport=self.transport)

    def file_faults(self) -> list[str]:
        path = self.path
        if not self.target:
            return []
        try:
            exists = path.exists()
        except OSError as fault:
            return [f"shared folder {path}: {fault.strerror}"]
        if not exists:
            return [f"shared folder {path} does not exist"]
        if not (path.is_dir() or path.is_file()):
            return [f"shared folder {path} is neither a folder nor a file"]
        return []


def numbers(shares: Sequence[ShareConfig]) -> list[int]:
    """Return by which numbers the guest knows these, which are one machine's, in their order."""
    return [n if share.number is None else share.number for n, share in enumerate(shares)]


def _normal(target: str) -> str:
    """Return a place in the guest without what does not matter in it."""
    parts = [part for part in target.split("/") if part not in ("", ".")]
    return "/" + "/".join(parts) if target.startswith("/") else target
