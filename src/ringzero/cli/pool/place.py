"""Where pools are, and which one is a description's; read by every `run` while there is a pool.

    ROOT/KEY/lock       held by the pool's process; who holds it is the pool
    ROOT/KEY/machines   a socket on which each machine that is ready accepts one client
    ROOT/KEY/control    a socket on which the pool's process answers `pool status` and `stop`
    ROOT/KEY/asked-*    command lines, by hash, that the pool was found for: hints
    ROOT/KEY/log        what went wrong

ROOT and all in it are this user's alone. What is said there is in `ringzero.cli.pool.protocol`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.cli.pool import protocol
from ringzero.cli.pool.protocol import MACHINES, MESSAGE, PROGRAM
from ringzero.config.tree import config_to_tree
from ringzero.digest import blake2b
from ringzero.errors import RingzeroError
from ringzero.host.unixsocket import LONGEST_PATH
from ringzero.settings import POOL_DIR, TABLE

if TYPE_CHECKING:
    from ringzero.config.machine import MachineConfig

LOCK, CONTROL, LOG = "lock", "control", "log"


def key_of(config: MachineConfig) -> str | None:
    """Return the name of the pool of such machines, whether there is one or not.

    None where a file that it boots from cannot be read. What is equal is the whole description,
    the files that it boots from (inode, size, time of last change), and the program.
    """
    files = [config.kernel, config.initrd, *(disk.path for disk in config.disks)]
    try:
        found = [path.stat() for path in files if path is not None]
    except OSError:
        return None
    stamps = [(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found]
    text = json.dumps([protocol.VERSION, PROGRAM, config_to_tree(config), stamps], default=str)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def remember(key: str, own: Sequence[str]) -> None:
    """Note that a pool is that of such words of `run`, for `ringzero.cli.pool.quick`."""
    with contextlib.suppress(OSError):
        (root() / key / protocol.asked_for(list(own))).touch(0o600)


def settings() -> list[str]:
    """Return what this process has been set to, in words; what is known may depend on all of it."""
    found = []
    for setting in TABLE.values():
        try:
            found.append(str(setting.get()))
        except RingzeroError as fault:
            found.append(fault.message)
    return found


def root() -> Path:
    """Return the directory with all pools, whether it is there or not."""
    return POOL_DIR.get()


def fits(path: Path) -> bool:
    """Whether sockets of that pool have paths that the host takes."""
    return len(os.fsencode(path / MACHINES)) <= LONGEST_PATH


def connect(path: Path, timeout: float) -> socket.socket:
    """Return a connection to a socket of this user's; raises OSError."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        link.settimeout(timeout)
        link.connect(os.fspath(path))
        if not protocol.is_ours(link):
            raise PermissionError(f"{path} is another user's")
    except BaseException:
        link.close()
        raise
    return link


def encode(**content: Any) -> bytes:
    """Return a message; an error's text that is too long for one is cut."""
    data = json.dumps(content, default=str).encode()
    if len(data) > MESSAGE and isinstance(content.get("error"), dict):
        short = {**content["error"], "message": content["error"]["message"][:4096], "context": {}}
        data = json.dumps({**content, "error": short}, default=str).encode()
    return data


def decode(data: bytes) -> dict[str, Any]:
    """Return a message; {} for one that is none."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
