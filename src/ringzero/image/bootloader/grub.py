"""GRUB 2: running grub.cfg as far as it chooses what is booted.

What is known: variables, if, test, loops, functions, search, load_env, source and configfile,
menuentry and submenu, blscfg, linux and initrd. Other commands succeed and do nothing. Menus come
from Debian, Ubuntu, Fedora, Arch, openSUSE and Alpine. The script is the guest's, and hostile:
commands and depth have bounds.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence

from ringzero.errors import FileSystemError, NotFoundError
from ringzero.image.bootloader import bls
from ringzero.image.bootloader.conditions import Test
from ringzero.image.bootloader.contract import (
    BootEntry,
    FileAt,
    Volume,
    Volumes,
    exists,
    listing,
    read_text,
)
from ringzero.image.bootloader.script import Command, For, Function, If, Loop, Statement, parse
from ringzero.image.bootloader.words import MAX_WORD, expand
from ringzero.records import mutable_record, record, replace

PATHS = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub/grub.cfg", "/grub2/grub.cfg")
# Of the EFI system partition, below a directory that each distribution calls otherwise.
_ESP = "/EFI"

# grub-mkconfig's largest files run some thousand commands.
_MAX_COMMANDS = 50_000
_COMMAND_LENGTH = 256
_MAX_ENTRIES = 500
_MAX_DEPTH = 16
_DEVICE = re.compile(r"\(([^)]*)\)(.*)", re.DOTALL)
_PARTITION = re.compile(r"[a-z]+\d*,(?:[a-z]+)?(\d+)")
_LINUX = ("linux", "linux16", "linuxefi", "kernel")
_INITRD = ("initrd", "initrd16", "initrdefi")
# What configurations ask about the GRUB that runs them.
_FEATURES = (
    "chainloader_bpb", "ntldr", "platform_search_hint", "default_font_path", "all_video_module",
    "menuentry_id", "menuentry_options", "200_final", "nativedisk_cmd", "timeout_style",
    "search_cryptodisk_only",
)  # fmt: skip


@mutable_record
class _Item:
    """An item of a menu: a submenu, an entry with its commands, or one that is known already."""

    title: str
    id: str
    body: tuple[Statement, ...]
    arguments: tuple[str, ...]
    variables: dict[str, str]
    below: list[_Item] | None = None
    known: BootEntry | None = None


@record
class _Loaded:
    kernel: FileAt
    command_line: str


class _EndError(Exception):
    """The script has said `configfile`, `exit` or `return`."""


def find(volumes: Volumes) -> list[BootEntry]:
    """Return what GRUB's menu has, its default marked; nothing where there is no GRUB.

    Raises FileSystemError for a configuration that no GRUB could read.
    """
    fault: FileSystemError | None = None
    for volume, path in _configurations(volumes):
        run = _Run(volumes, volume, path)
        try:
            found = run.entries()
        except FileSystemError as error:
            fault = error
            continue
        if found:
            return found
    if fault is not None:
        raise fault
    return []


def _configurations(volumes: Volumes) -> list[tuple[Volume, str]]:
    found = [(v, path) for v in volumes for path in PATHS if exists(v, path)]
    for volume in volumes:
        for name in listing(volume, _ESP):
            path = f"{_ESP}/{name}/grub.cfg"
            if exists(volume, path):
                found.append((volume, path))
    return found


class _Run:
    """One run of a configuration."""

    def __init__(self, volumes: Volumes, volume: Volume, path: str) -> None:
        self._volumes = volumes
        self._path = path
        device = _device_of(volume)
        self.variables = {
            "root": device,
            "prefix": f"({device}){path.rpartition('/')[0]}",
            "grub_platform": "pc",
            "grub_cpu": "i386",
            "?": "0",
            **{f"feature_{name}": "y" for name in _FEATURES},
        }
        self._functions: dict[str, tuple[Statement, ...]] = {}
        self._menu: list[_Item] = []
        self._arguments: tuple[str, ...] = ()
        self._commands = 0
        self._items = 0
        self._depth = 0
        self._loaded: _Loaded | None = None
        self._initrds: tuple[FileAt, ...] = ()

    def entries(self) -> list[BootEntry]:
        """Run the configuration, and every entry of its menu; the default is marked."""
        with contextlib.suppress(_EndError):
            self._source(self._path)
        top = self._menu
        chosen = self._choose(top)
        found: list[BootEntry] = []
        self._collect(top, "", chosen, found)
        if found and not any(entry.default for entry in found):
            found[0] = replace(found[0], default=True)
        return found

    def _collect(
        self, menu: Sequence[_Item], above: str, chosen: _Item | None, found: list[BootEntry]
    ) -> None:
        for item in menu:
            title = f"{above}{item.title}"
            if item.below is not None:
                self._collect(item.below, f"{title}>", chosen, found)
                continue
            entry = item.known or self._entry(item, title)
            if entry is not None:
                found.append(replace(entry, title=title, default=item is chosen))

    def _entry(self, item: _Item, title: str) -> BootEntry | None:
        """Run an entry's commands; None for one that boots no Linux: firmware, memtest, Windows."""
        before, self.variables = self.variables, dict(item.variables)
        self._loaded, self._initrds, self._arguments = None, (), item.arguments
        try:
            with contextlib.suppress(_EndError):
                self._block(item.body)
        finally:
            self.variables = before
        if self._loaded is None:
            return None
        return BootEntry(
            item.id or title,
            title,
            self._loaded.kernel,
            self._initrds,
            self._loaded.command_line,
            f"GRUB ({self._path})",
        )

    def _choose(self, menu: list[_Item]) -> _Item | None:
        """Return the item that `default` names: a number, title or id, for each level of menus."""
        wanted = self.variables.get("default", "") or "0"
        chosen: _Item | None = None
        level: list[_Item] | None = menu
        # A title's own ">" is doubled.
        for part in wanted.replace(">>", "\0").split(">"):
            name = part.replace("\0", ">")
            if not level:
                break
            chosen = _named(level, name) or level[0]
            level = chosen.below
        while chosen is not None and chosen.below:
            chosen = chosen.below[0]
        return chosen

    # ---- statements -------------------------------------------------------

    def _source(self, path: str) -> bool:
        place = self._place(path)
        if place is None:
            return False
        self._enter()
        try:
            self._block(parse(read_text(place.volume, place.path)))
        except NotFoundError:
            return False
        finally:
            self._depth -= 1
        return True

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise FileSystemError("a GRUB configuration that runs itself")

    def _block(self, statements: Sequence[Statement]) -> bool:
        status = True
        for statement in statements:
            status = self._statement(statement)
            self.variables["?"] = "0" if status else "1"
        return status

    def _statement(self, statement: Statement) -> bool:
        self._commands += 1
        if self._commands > _MAX_COMMANDS:
            raise FileSystemError("a GRUB configuration that does not end")
        match statement:
            case Command():
                return self._command(statement)
            case If(branches):
                for condition, body in branches:
                    if not condition or self._block(condition):
                        return self._block(body)
                return True
            case Loop(condition, until, body):
                while self._block(condition) is not until:
                    self._block(body)
                return True
            case For(variable, words, body):
                for value in [text for word in words for text in expand(word, self._value)]:
                    self.variables[variable] = value
                    self._block(body)
                return True
            case Function(name, body):
                self._functions[name] = body
                return True

    def _value(self, name: str) -> str:
        if name.isdecimal():
            index = int(name)
            return self._arguments[index - 1] if 1 <= index <= len(self._arguments) else ""
        if name in ("@", "*"):
            return " ".join(self._arguments)
        if name == "#":
            return str(len(self._arguments))
        return self.variables.get(name, "")

    def _command(self, command: Command) -> bool:
        words = [text for word in command.words for text in expand(word, self._value)]
        # Long words cost as much as many commands do.
        self._commands += sum(map(len, words)) // _COMMAND_LENGTH
        if not words:
            return True
        name, *arguments = words
        if name == "!":
            if not arguments:
                return False
            name, *arguments = arguments
            return not self._run(name, arguments, None)
        return self._run(name, arguments, command.block)

    def _run(self, name: str, arguments: list[str], block: tuple[Statement, ...] | None) -> bool:
        if name in self._functions:
            return self._call(name, arguments)
        if block is not None:
            if name in ("menuentry", "submenu"):
                self._add_item(name, arguments, block)
            return True
        if name in ("[", "test"):
            return self._test(arguments[:-1] if name == "[" else arguments)
        if name in _LINUX:
            return self._linux(arguments)
        if name in _INITRD:
            places = [self._place(path) for path in arguments if not path.startswith("-")]
            self._initrds += tuple(place for place in places if place is not None)
            return None not in places
        if "=" in name and name.partition("=")[0].isidentifier():
            return self._set([name])
        known = _COMMANDS.get(name)
        return known(self, arguments) if known else True

    def _call(self, name: str, arguments: list[str]) -> bool:
        before, self._arguments = self._arguments, tuple(arguments)
        self._enter()
        try:
            return self._block(self._functions[name])
        finally:
            self._depth -= 1
            self._arguments = before

    def _add_item(self, name: str, words: list[str], block: tuple[Statement, ...]) -> None:
        self._items += 1
        if self._items > _MAX_ENTRIES:
            raise FileSystemError(f"a GRUB menu of more than {_MAX_ENTRIES} entries")
        title, identifier, rest = "", "", []
        at = 0
        while at < len(words):
            word = words[at]
            if word in ("--class", "--users", "--hotkey", "--source", "--id"):
                if word == "--id" and at + 1 < len(words):
                    identifier = words[at + 1]
                at += 2
                continue
            if word.startswith("--id="):
                identifier = word.removeprefix("--id=")
            elif word.startswith("--"):
                pass
            elif not title:
                title = word
            else:
                rest.append(word)
            at += 1
        item = _Item(title, identifier, block, (title, *rest), dict(self.variables))
        if name == "submenu":
            item.below = self._submenu(item)
        self._menu.append(item)

    def _submenu(self, item: _Item) -> list[_Item]:
        """Run a submenu's commands, as GRUB does when it is opened; return its items."""
        before = self._menu, self.variables, self._arguments
        self._menu, self.variables, self._arguments = [], dict(self.variables), item.arguments
        self._enter()
        try:
            with contextlib.suppress(_EndError):
                self._block(item.body)
            return self._menu
        finally:
            self._depth -= 1
            self._menu, self.variables, self._arguments = before

    # ---- commands ---------------------------------------------------------

    def _set(self, arguments: list[str]) -> bool:
        for argument in arguments:
            name, equals, value = argument.partition("=")
            if equals:
                self.variables[name] = value[:MAX_WORD]
        return True

    def _unset(self, arguments: list[str]) -> bool:
        for name in arguments:
            self.variables.pop(name, None)
        return True

    def _linux(self, arguments: list[str]) -> bool:
        if not arguments:
            return False
        kernel = self._place(arguments[0])
        if kernel is None:
            return False
        self._loaded = _Loaded(kernel, " ".join(arguments[1:]))
        return True

    def _search(self, arguments: list[str]) -> bool:
        """search [--fs-uuid|--label|--file] [--set[=VARIABLE]] NAME."""
        how, variable, name = "", "", ""
        at = 0
        while at < len(arguments):
            word = arguments[at]
            if word in ("--set", "-s") and at + 2 < len(arguments):
                variable, at = arguments[at + 1], at + 1
            elif word.startswith("--set="):
                variable = word.removeprefix("--set=")
            elif word in ("--fs-uuid", "-u"):
                how = "uuid"
            elif word in ("--label", "-l", "--fs-label"):
                how = "label"
            elif word in ("--file", "-f"):
                how = "file"
            elif word in ("--hint", "-h") and at + 1 < len(arguments):
                at += 1
            elif not word.startswith("-"):
                name = word
            at += 1
        look = {
            "uuid": self._volumes.by_uuid,
            "label": self._volumes.by_label,
            "file": self._volumes.with_file,
        }.get(how)
        volume = look(name) if look and name else None
        if volume is None:
            return False
        self.variables[variable or "root"] = _device_of(volume)
        return True

    def _probe(self, arguments: list[str]) -> bool:
        """probe --set=VARIABLE --fs-uuid|--label|--fs DEVICE."""
        variable = next((a[6:] for a in arguments if a.startswith("--set=")), "")
        if not variable and "--set" in arguments[:-1]:
            variable = arguments[arguments.index("--set") + 1]
        volume = self._volume(arguments[-1].strip("()")) if arguments else None
        if volume is None or not variable:
            return False
        files = volume.files
        kinds = {"--fs-uuid": files.uuid, "-u": files.uuid, "--label": files.label}
        self.variables[variable] = next((v for k, v in kinds.items() if k in arguments), files.name)
        return True

    def _load_env(self, arguments: list[str]) -> bool:
        path = f"{self.variables.get('prefix', '')}/grubenv"
        for at, word in enumerate(arguments):
            if word in ("-f", "--file") and at + 1 < len(arguments):
                path = arguments[at + 1]
            elif word.startswith("--file="):
                path = word.removeprefix("--file=")
        place = self._place(path)
        if place is None:
            return False
        try:
            text = read_text(place.volume, place.path)
        except (NotFoundError, FileSystemError):
            return False
        self.variables.update(environment(text))
        return True

    def _configfile(self, arguments: list[str]) -> bool:
        if arguments and self._source(arguments[0]):
            raise _EndError
        return False

    def _included(self, arguments: list[str]) -> bool:
        return bool(arguments) and self._source(arguments[0])

    def _blscfg(self, arguments: list[str]) -> bool:
        """Fedora's: the entries of the specification, with GRUB's variables in them."""
        volume = self._volume(self.variables.get("root", ""))
        if volume is None:
            return False
        wanted = [self.variables.get("blsdir", ""), "/loader/entries", "/boot/loader/entries"]
        if self.variables.get("blsdir"):
            place = self._place(self.variables["blsdir"])
            wanted[0] = place.path if place else ""
        for directory in filter(None, wanted):
            found = bls.entries(volume, directory, self._value)
            if found:
                for entry in found[:_MAX_ENTRIES]:
                    self._menu.append(_Item(entry.title, entry.id, (), (), {}, known=entry))
                return True
        return False

    def _end(self, arguments: list[str]) -> bool:
        raise _EndError

    def _test(self, words: list[str]) -> bool:
        return Test(words, self._is_file).result()

    def _is_file(self, option: str, path: str) -> bool:
        place = self._place(path)
        if place is None:
            return False
        try:
            node = place.volume.files.stat(place.path)
        except (NotFoundError, FileSystemError):
            return False
        return {"-d": node.is_directory, "-f": node.is_file, "-s": node.size > 0}.get(option, True)

    # ---- places -----------------------------------------------------------

    def _place(self, path: str) -> FileAt | None:
        """Return the file that a path, with a device before it or below $root, means."""
        found = _DEVICE.match(path)
        device, path = (found[1], found[2]) if found else (self.variables.get("root", ""), path)
        volume = self._volume(device)
        return None if volume is None else FileAt(volume, "/" + path.lstrip("/"))

    def _volume(self, device: str) -> Volume | None:
        """Return the volume of "hd0,gpt2", "hd0,msdos1", "hd0,2" or "hd0"."""
        device = device or self.variables.get("root", "")
        found = _PARTITION.match(device)
        if found:
            return self._volumes.by_number(int(found[1][:6]))
        return next((v for v in self._volumes if v.partition is None), None)


_COMMANDS: dict[str, Callable[[_Run, list[str]], bool]] = {
    "set": _Run._set,
    "unset": _Run._unset,
    "search": _Run._search,
    "search.fs_uuid": lambda run, words: run._search(["--fs-uuid", *_by_name(words)]),
    "search.fs_label": lambda run, words: run._search(["--label", *_by_name(words)]),
    "search.file": lambda run, words: run._search(["--file", *_by_name(words)]),
    "probe": _Run._probe,
    "load_env": _Run._load_env,
    "configfile": _Run._configfile,
    "normal": _Run._configfile,
    "source": _Run._included,
    ".": _Run._included,
    "blscfg": _Run._blscfg,
    "exit": _Run._end,
    "return": lambda run, words: True,
    "false": lambda run, words: False,
    # There is no keyboard, no font, and no pattern matching.
    "keystatus": lambda run, words: False,
    "loadfont": lambda run, words: False,
    "regexp": lambda run, words: False,
    "smbios": lambda run, words: False,
    "mdadm": lambda run, words: False,
    "cryptomount": lambda run, words: False,
}


def _by_name(words: list[str]) -> list[str]:
    """Return `search.KIND NAME VARIABLE [HINT]` as `search` would have it."""
    name, variable = [*words, "", ""][:2]
    return [f"--set={variable or 'root'}", name]


def _named(level: Sequence[_Item], name: str) -> _Item | None:
    """Return the item of a menu with a number, a title or an id."""
    if name.isdecimal() and int(name[:6]) < len(level):
        return level[int(name[:6])]
    ids = [name, name.removesuffix(".conf")]
    return next((i for i in level if (i.id and i.id in ids) or i.title == name), None)


def _device_of(volume: Volume) -> str:
    return "hd0" if volume.partition is None else f"hd0,{volume.partition.number}"


def environment(text: str) -> dict[str, str]:
    """Return the variables of a grubenv file: NAME=VALUE lines, a backslash before "\\" and "#"."""
    found = {}
    for line in re.sub(r"\\\n", "", text).split("\n"):
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#") and name.strip():
            found[name] = re.sub(r"\\(.)", r"\1", value)
    return found
