"""What GRUB's commands work on: variables, devices and files, the menu, what has been loaded."""

from __future__ import annotations

import re

from ringzero.image.bootloader.contract import BootEntry, FileAt, Volume, Volumes
from ringzero.image.bootloader.grubscript.script import Statement
from ringzero.records import mutable_record, record

_DEVICE = re.compile(r"\(([^)]*)\)(.*)", re.DOTALL)
_PARTITION = re.compile(r"[a-z]+\d*,(?:[a-z]+)?(\d+)")
# What configurations ask about the GRUB that runs them.
_FEATURES = (
    "chainloader_bpb", "ntldr", "platform_search_hint", "default_font_path", "all_video_module",
    "menuentry_id", "menuentry_options", "200_final", "nativedisk_cmd", "timeout_style",
    "search_cryptodisk_only",
)  # fmt: skip


@mutable_record
class Item:
    """An item of a menu: a submenu, an entry with its commands, or one that is known already."""

    title: str
    id: str
    body: tuple[Statement, ...]
    arguments: tuple[str, ...]
    variables: dict[str, str]
    below: list[Item] | None = None
    known: BootEntry | None = None


@record
class Loaded:
    kernel: FileAt
    command_line: str


class Environment:
    """The state of one run of the configuration at `path` of `volume`."""

    def __init__(self, volumes: Volumes, volume: Volume, path: str) -> None:
        self.volumes = volumes
        device = device_of(volume)
        self.variables = {
            "root": device,
            "prefix": f"({device}){path.rpartition('/')[0]}",
            "grub_platform": "pc",
            "grub_cpu": "i386",
            "?": "0",
            **{f"feature_{name}": "y" for name in _FEATURES},
        }
        # Those of the function or the entry that runs.
        self.arguments: tuple[str, ...] = ()
        self.menu: list[Item] = []
        self.loaded: Loaded | None = None
        self.initrds: tuple[FileAt, ...] = ()

    def value(self, name: str) -> str:
        """Return a variable, or an argument by its number; "" where there is none."""
        if name.isdecimal():
            index = int(name)
            return self.arguments[index - 1] if 1 <= index <= len(self.arguments) else ""
        if name in ("@", "*"):
            return " ".join(self.arguments)
        if name == "#":
            return str(len(self.arguments))
        return self.variables.get(name, "")

    def place(self, path: str) -> FileAt | None:
        """Return the file that a path, with a device before it or below $root, means."""
        found = _DEVICE.match(path)
        device, path = (found[1], found[2]) if found else (self.variables.get("root", ""), path)
        volume = self.volume(device)
        return None if volume is None else FileAt(volume, "/" + path.lstrip("/"))

    def volume(self, device: str) -> Volume | None:
        """Return the volume of "hd0,gpt2", "hd0,msdos1", "hd0,2" or "hd0"."""
        device = device or self.variables.get("root", "")
        found = _PARTITION.match(device)
        if found:
            return self.volumes.by_number(int(found[1][:6]))
        return next((v for v in self.volumes if v.partition is None), None)


def device_of(volume: Volume) -> str:
    """Return what GRUB calls the device with a volume."""
    return "hd0" if volume.partition is None else f"hd0,{volume.partition.number}"


def saved_variables(text: str) -> dict[str, str]:
    """Return the variables of a grubenv file: NAME=VALUE lines, a backslash before "\\" and "#"."""
    found = {}
    for line in re.sub(r"\\\n", "", text).split("\n"):
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#") and name.strip():
            found[name] = re.sub(r"\\(.)", r"\1", value)
    return found
