"""Secrets of a machine's command: its record says where they are, and never what they are.

A secret is a variable. In the command its word ends behind the "=" (`NAME=` or `--env=NAME=`), and
the value is read when the command starts, by the machine's process: {"file": PATH}, or {"env":
NAME} from the environment of that process, which is that of whoever started it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ringzero.control.host.records import MachineRecord
from ringzero.errors import HostError, MissingFileError
from ringzero.host.files import host_error, open_regular

# execve(2): the longest variable on hosts with pages of 4 KiB, less its name.
_LARGEST = 1 << 16


def words(names: Mapping[str, object], flag: str = "") -> list[str]:
    """Return the words by which a command has the secrets called so, without their values."""
    return [f"{flag}{name}=" for name in names]


def command_of(record: MachineRecord) -> tuple[str, ...]:
    """Return the machine's command with the values of its secrets.

    Raises MissingFileError, HostError where one cannot be read.
    """
    command = list(record.command)
    for name, source in record.secrets.items():
        at = next((n for n, word in enumerate(command) if _names(word, name)), None)
        if at is not None:
            command[at] += _read(name, source)
    return tuple(command)


def _names(word: str, name: str) -> bool:
    return word in (f"{name}=", f"--env={name}=")


def _read(name: str, source: Mapping[str, str]) -> str:
    if "env" in source:
        value = os.environ.get(source["env"])
        if value is None:
            raise HostError(
                f"the secret {name} is not there: no variable {source['env']} is set",
                hint=f"set {source['env']} where the machine is started, or `ringzero deploy` run",
            )
        return value
    path = Path(source.get("file", ""))
    try:
        with os.fdopen(open_regular(path.resolve()), "rb") as file:
            data = file.read(_LARGEST + 1)
    except FileNotFoundError as fault:
        raise MissingFileError(
            f"the secret {name} is not there: {path} does not exist", hint="make it again"
        ) from fault
    except OSError as fault:
        raise host_error(fault, f"read the secret {name} from", path) from fault
    if len(data) > _LARGEST or b"\0" in data:
        raise HostError(
            f"the secret {name} is no text of at most 64 KiB: {path}", hint="is it the right file?"
        )
    # As shells and Docker's images take a file's content: without the line's end.
    return os.fsdecode(data).removesuffix("\n").removesuffix("\r")
