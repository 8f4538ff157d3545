"""What is asked of the user's own ssh client: the words of its command line."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from ringzero import basedirs
from ringzero.errors import MissingToolError
from ringzero.remote.address import Address
from ringzero.settings import END_WITH_CALLER

# How long a connection without commands is kept for the next one, in seconds.
_KEPT = 60
# What ssh itself ends with where it fails (ssh(1)); and a shell where there is no such command,
# or none that can be run (POSIX, 2.8.2).
FAILED, NO_COMMAND = 255, (126, 127)
# The longest path of a Unix socket (unix(7)), less what ssh puts behind it while it is made.
_LONGEST = 108 - 20
# Hexadecimal digits of SHA-1, for which %C stands (ssh_config(5)).
_DIGEST = 40
# Where pip puts programs of one user, which shells without a person often do not know.
_PATH = 'PATH="$PATH:$HOME/.local/bin"'


def command(address: Address, words: Sequence[str], *, tty: bool = False) -> list[str]:
    """Return the command that runs ringzero with `words` on another host.

    Raises MissingToolError.
    """
    program = shlex.quote(address.path or "ringzero")
    # A terminal's end is a hangup; without one the command looks for its caller's end itself.
    before = _PATH if tty else f"{_PATH} {END_WITH_CALLER.name}=1"
    return shell(address, f"{before} {program} {shlex.join(words)}".strip(), tty=tty)


def shell(address: Address, line: str, *, tty: bool = False) -> list[str]:
    """Return the command that runs a line of a POSIX shell there. Raises MissingToolError."""
    program = shutil.which("ssh")
    if program is None:
        raise MissingToolError("this host has no ssh", hint="install openssh-client")
    found = [program, "-t" if tty else "-T", *_sharing()]
    if address.port is not None:
        found += ["-p", str(address.port)]
    if address.user:
        found += ["-l", address.user]
    # The login shell may be another one; this one is everywhere.
    return [*found, "--", address.host, f"exec sh -c {shlex.quote(line)}"]


def _sharing() -> list[str]:
    """Return options by which the next command needs no new connection, where that can be."""
    place = basedirs.runtime()
    if not place or len(place) + len("/ssh-") + _DIGEST > _LONGEST:
        return []
    with contextlib.suppress(OSError):
        Path(place).mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(place, os.W_OK):
        return []
    options = (f"ControlPath={place}/ssh-%C", "ControlMaster=auto", f"ControlPersist={_KEPT}")
    return [word for option in options for word in ("-o", option)]
