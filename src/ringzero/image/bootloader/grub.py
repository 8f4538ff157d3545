"""GRUB 2: running grub.cfg as far as it chooses what is booted.

What is known: variables, if, test, loops, functions, search, load_env, source and configfile,
menuentry and submenu, blscfg, linux and initrd. Other commands succeed and do nothing. Menus come
from Debian, Ubuntu, Fedora, Arch, openSUSE and Alpine.
"""

from __future__ import annotations

from ringzero.errors import FileSystemError
from ringzero.image.bootloader.contract import BootEntry, Volume, Volumes, exists, listing
from ringzero.image.bootloader.grubscript.interpreter import Interpreter

PATHS = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub/grub.cfg", "/grub2/grub.cfg")
# Of the EFI system partition, below a directory that each distribution calls otherwise.
_ESP = "/EFI"


def find(volumes: Volumes) -> list[BootEntry]:
    """Return what GRUB's menu has, its default marked; nothing where there is no GRUB.

    Raises FileSystemError for a configuration that no GRUB could read.
    """
    fault: FileSystemError | None = None
    for volume, path in _configurations(volumes):
        try:
            found = Interpreter(volumes, volume, path).entries()
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
