"""How commands run in a guest whose root is a folder of the host's: `--root DIR`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ringzero.config.root import HostRoot

# Of the host's environment, what is as right in the guest on the host's own files.
_KEPT = ("PATH", "HOME", "LANG", "LANGUAGE", "TZ", "SHELL", "VIRTUAL_ENV", "PYTHONPATH", "TERM")
# Folders of the host that are the guest's own.
_OWN = ("proc", "sys", "dev", "run", "tmp")


def environment(root: HostRoot) -> list[tuple[str, str]]:
    """Return the host's variables for commands: none but where the files are the host's, too."""
    if not root.whole:
        return []
    return [(n, v) for n, v in os.environ.items() if n in _KEPT or n.startswith("LC_")]


def directory(root: HostRoot) -> str | None:
    """Return where commands begin: here, where the guest has this directory."""
    try:
        inside = Path.cwd().resolve().relative_to(root.folder)
    except (OSError, ValueError):
        return None
    return None if inside.parts[:1] and inside.parts[0] in _OWN else f"/{inside}"


def shell(root: HostRoot) -> list[str]:
    """Return what runs without a command: a login shell, or one that reads a script."""
    if not sys.stdin.isatty():
        return ["sh"]
    bash = (root.folder / "bin/bash").exists()
    return ["bash" if bash else "sh", "-l"]
