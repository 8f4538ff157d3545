"""GRUB's commands that choose what is booted (GRUB manual, "Commands").

Each takes the environment and its arguments, and returns whether it has succeeded. Those that run
further statements (configfile, source, menuentry) are the interpreter's.
"""

from __future__ import annotations

from collections.abc import Callable

from ringzero.errors import FileSystemError, NotFoundError
from ringzero.image.bootloader import bls
from ringzero.image.bootloader.contract import read_text
from ringzero.image.bootloader.grubscript.environment import (
    Environment,
    Item,
    Loaded,
    device_of,
    saved_variables,
)
from ringzero.image.bootloader.grubscript.expression import Test
from ringzero.image.bootloader.grubscript.words import MAX_WORD

MAX_ENTRIES = 500


def assign(run: Environment, arguments: list[str]) -> bool:
    """set NAME=VALUE."""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals:
            run.variables[name] = value[:MAX_WORD]
    return True


def _unset(run: Environment, arguments: list[str]) -> bool:
    for name in arguments:
        run.variables.pop(name, None)
    return True


def _linux(run: Environment, arguments: list[str]) -> bool:
    if not arguments:
        return False
    kernel = run.place(arguments[0])
    if kernel is None:
        return False
    run.loaded = Loaded(kernel, " ".join(arguments[1:]))
    return True


def _initrd(run: Environment, arguments: list[str]) -> bool:
    places = [run.place(path) for path in arguments if not path.startswith("-")]
    run.initrds += tuple(place for place in places if place is not None)
    return None not in places


def _search(run: Environment, arguments: list[str]) -> bool:
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
        "uuid": run.volumes.by_uuid,
        "label": run.volumes.by_label,
        "file": run.volumes.with_file,
    }.get(how)
    volume = look(name) if look and name else None
    if volume is None:
        return False
    run.variables[variable or "root"] = device_of(volume)
    return True


def _search_by(option: str) -> Callable[[Environment, list[str]], bool]:
    """search.KIND NAME VARIABLE [HINT]."""

    def search(run: Environment, arguments: list[str]) -> bool:
        name, variable = [*arguments, "", ""][:2]
        return _search(run, [option, f"--set={variable or 'root'}", name])

    return search


def _probe(run: Environment, arguments: list[str]) -> bool:
    """probe --set=VARIABLE --fs-uuid|--label|--fs DEVICE."""
    variable = next((a[6:] for a in arguments if a.startswith("--set=")), "")
    if not variable and "--set" in arguments[:-1]:
        variable = arguments[arguments.index("--set") + 1]
    volume = run.volume(arguments[-1].strip("()")) if arguments else None
    if volume is None or not variable:
        return False
    files = volume.files
    kinds = {"--fs-uuid": files.uuid, "-u": files.uuid, "--label": files.label}
    run.variables[variable] = next((v for k, v in kinds.items() if k in arguments), files.name)
    return True


def _load_env(run: Environment, arguments: list[str]) -> bool:
    path = f"{run.variables.get('prefix', '')}/grubenv"
    for at, word in enumerate(arguments):
        if word in ("-f", "--file") and at + 1 < len(arguments):
            path = arguments[at + 1]
        elif word.startswith("--file="):
            path = word.removeprefix("--file=")
    place = run.place(path)
    if place is None:
        return False
    try:
        text = read_text(place.volume, place.path)
    except (NotFoundError, FileSystemError):
        return False
    run.variables.update(saved_variables(text))
    return True


def _blscfg(run: Environment, arguments: list[str]) -> bool:
    """Fedora's: the entries of the specification, with GRUB's variables in them."""
    volume = run.volume(run.variables.get("root", ""))
    if volume is None:
        return False
    wanted = [run.variables.get("blsdir", ""), "/loader/entries", "/boot/loader/entries"]
    if run.variables.get("blsdir"):
        place = run.place(run.variables["blsdir"])
        wanted[0] = place.path if place else ""
    for directory in filter(None, wanted):
        found = bls.entries(volume, directory, run.value)
        if found:
            for entry in found[:MAX_ENTRIES]:
                run.menu.append(Item(entry.title, entry.id, (), (), {}, known=entry))
            return True
    return False


def _test(run: Environment, arguments: list[str]) -> bool:
    def is_file(option: str, path: str) -> bool:
        place = run.place(path)
        if place is None:
            return False
        try:
            node = place.volume.files.stat(place.path)
        except (NotFoundError, FileSystemError):
            return False
        return {"-d": node.is_directory, "-f": node.is_file, "-s": node.size > 0}.get(option, True)

    return Test(arguments, is_file).result()


def _fail(run: Environment, arguments: list[str]) -> bool:
    return False


COMMANDS: dict[str, Callable[[Environment, list[str]], bool]] = {
    "set": assign,
    "unset": _unset,
    "search": _search,
    "search.fs_uuid": _search_by("--fs-uuid"),
    "search.fs_label": _search_by("--label"),
    "search.file": _search_by("--file"),
    "probe": _probe,
    "load_env": _load_env,
    "blscfg": _blscfg,
    "test": _test,
    "[": lambda run, arguments: _test(run, arguments[:-1]),
    **dict.fromkeys(("linux", "linux16", "linuxefi", "kernel"), _linux),
    **dict.fromkeys(("initrd", "initrd16", "initrdefi"), _initrd),
    # There is no keyboard, no font, and no pattern matching.
    **dict.fromkeys(
        ("false", "keystatus", "loadfont", "regexp", "smbios", "mdadm", "cryptomount"), _fail
    ),
}
