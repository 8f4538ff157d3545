"""GRUB's menu: what stands behind `menuentry` and `submenu`, and which item is the default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ringzero.image.bootloader.grubscript.environment import Item
from ringzero.image.bootloader.grubscript.script import Statement

_WITH_VALUE = ("--class", "--users", "--hotkey", "--source", "--id")


def item(words: Sequence[str], body: tuple[Statement, ...], variables: Mapping[str, str]) -> Item:
    """Return the item of `[OPTIONS] TITLE [ARGUMENT ...] { body }`."""
    title, identifier, rest = "", "", []
    at = 0
    while at < len(words):
        word = words[at]
        if word in _WITH_VALUE:
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
    return Item(title, identifier, body, (title, *rest), dict(variables))


def choose(menu: list[Item], wanted: str) -> Item | None:
    """Return the item that `wanted` names: a number, title or id, for each level of menus."""
    chosen: Item | None = None
    level: list[Item] | None = menu
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


def _named(level: Sequence[Item], name: str) -> Item | None:
    """Return the item of a menu with a number, a title or an id."""
    if name.isdecimal() and int(name[:6]) < len(level):
        return level[int(name[:6])]
    ids = [name, name.removesuffix(".conf")]
    return next((i for i in level if (i.id and i.id in ids) or i.title == name), None)
