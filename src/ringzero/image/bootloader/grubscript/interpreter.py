"""Runs a configuration: its statements, and then each entry of the menu that they made.

The script is the guest's, and hostile: commands, entries and depth have bounds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from ringzero.errors import FileSystemError, NotFoundError
from ringzero.image.bootloader.contract import BootEntry, Volume, Volumes, read_text
from ringzero.image.bootloader.grubscript import menu as menus
from ringzero.image.bootloader.grubscript.commands import COMMANDS, MAX_ENTRIES, assign
from ringzero.image.bootloader.grubscript.environment import Environment, Item
from ringzero.image.bootloader.grubscript.script import (
    Command,
    For,
    Function,
    If,
    Loop,
    Statement,
    parse,
)
from ringzero.image.bootloader.grubscript.words import expand
from ringzero.records import replace

# grub-mkconfig's largest files run some thousand commands.
_MAX_COMMANDS = 50_000
_COMMAND_LENGTH = 256
_MAX_DEPTH = 16


class _EndError(Exception):
    """The script has said `configfile` or `exit`."""


class Interpreter:
    """One run of the configuration at `path` of `volume`."""

    def __init__(self, volumes: Volumes, volume: Volume, path: str) -> None:
        self._path = path
        self._run = Environment(volumes, volume, path)
        self._functions: dict[str, tuple[Statement, ...]] = {}
        self._commands = 0
        self._items = 0
        self._depth = 0

    def entries(self) -> list[BootEntry]:
        """Run the configuration, and every entry of its menu; the default is marked.

        Raises FileSystemError for a script of no valid form, or one beyond the bounds.
        """
        with contextlib.suppress(_EndError):
            self._source(self._path)
        top = self._run.menu
        chosen = menus.choose(top, self._run.variables.get("default", "") or "0")
        found: list[BootEntry] = []
        self._collect(top, "", chosen, found)
        if found and not any(entry.default for entry in found):
            found[0] = replace(found[0], default=True)
        return found

    def _collect(
        self, menu: Sequence[Item], above: str, chosen: Item | None, found: list[BootEntry]
    ) -> None:
        for item in menu:
            title = f"{above}{item.title}"
            if item.below is not None:
                self._collect(item.below, f"{title}>", chosen, found)
                continue
            entry = item.known or self._entry(item, title)
            if entry is not None:
                found.append(replace(entry, title=title, default=item is chosen))

    def _entry(self, item: Item, title: str) -> BootEntry | None:
        """Run an entry's commands; None for one that boots no Linux: firmware, memtest, Windows."""
        run = self._run
        before, run.variables = run.variables, dict(item.variables)
        run.loaded, run.initrds, run.arguments = None, (), item.arguments
        try:
            with contextlib.suppress(_EndError):
                self._block(item.body)
        finally:
            run.variables = before
        if run.loaded is None:
            return None
        return BootEntry(
            item.id or title,
            title,
            run.loaded.kernel,
            run.initrds,
            run.loaded.command_line,
            f"GRUB ({self._path})",
        )

    # ---- statements -------------------------------------------------------

    def _source(self, path: str) -> bool:
        place = self._run.place(path)
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
            self._run.variables["?"] = "0" if status else "1"
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
                for value in [text for word in words for text in expand(word, self._run.value)]:
                    self._run.variables[variable] = value
                    self._block(body)
                return True
            case Function(name, body):
                self._functions[name] = body
                return True

    def _command(self, command: Command) -> bool:
        words = [text for word in command.words for text in expand(word, self._run.value)]
        # Long words cost as much as many commands do.
        self._commands += sum(map(len, words)) // _COMMAND_LENGTH
        if not words:
            return True
        name, *arguments = words
        if name == "!":
            if not arguments:
                return False
            name, *arguments = arguments
            return not self._named(name, arguments, None)
        return self._named(name, arguments, command.block)

    def _named(self, name: str, arguments: list[str], block: tuple[Statement, ...] | None) -> bool:
        if name in self._functions:
            return self._call(name, arguments)
        if block is not None:
            if name in ("menuentry", "submenu"):
                self._add_item(name, arguments, block)
            return True
        if "=" in name and name.partition("=")[0].isidentifier():
            return assign(self._run, [name])
        if name in ("configfile", "normal"):
            if arguments and self._source(arguments[0]):
                raise _EndError
            return False
        if name in ("source", "."):
            return bool(arguments) and self._source(arguments[0])
        if name == "exit":
            raise _EndError
        known = COMMANDS.get(name)
        return known(self._run, arguments) if known else True

    def _call(self, name: str, arguments: list[str]) -> bool:
        run = self._run
        before, run.arguments = run.arguments, tuple(arguments)
        self._enter()
        try:
            return self._block(self._functions[name])
        finally:
            self._depth -= 1
            run.arguments = before

    # ---- the menu ---------------------------------------------------------

    def _add_item(self, name: str, words: list[str], block: tuple[Statement, ...]) -> None:
        self._items += 1
        if self._items > MAX_ENTRIES:
            raise FileSystemError(f"a GRUB menu of more than {MAX_ENTRIES} entries")
        item = menus.item(words, block, self._run.variables)
        if name == "submenu":
            item.below = self._submenu(item)
        self._run.menu.append(item)

    def _submenu(self, item: Item) -> list[Item]:
        """Run a submenu's commands, as GRUB does when it is opened; return its items."""
        run = self._run
        before = run.menu, run.variables, run.arguments
        run.menu, run.variables, run.arguments = [], dict(run.variables), item.arguments
        self._enter()
        try:
            with contextlib.suppress(_EndError):
                self._block(item.body)
            return run.menu
        finally:
            self._depth -= 1
            run.menu, run.variables, run.arguments = before
