"""Starting, asking and ending pools, for the command line."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.cli.pool import place
from ringzero.cli.pool.place import CONTROL, LOG
from ringzero.cli.pool.protocol import MESSAGE
from ringzero.config.tree import config_to_tree
from ringzero.errors import ControlError, HostError, InvalidValueError, from_dict
from ringzero.host.files import host_error
from ringzero.host.private import open_private
from ringzero.host.progress import Progress

if TYPE_CHECKING:
    from ringzero.config.machine import MachineConfig

# How long a pool may take to answer, in seconds: it answers between two forks.
_PATIENCE = 5.0
# How long the end of a pool may take, in seconds.
_END = 10.0


def start(config: MachineConfig, words: list[str], size: int, idle: float) -> dict[str, Any]:
    """Start the pool of such machines, and return it as plain data when all are ready.

    `words` are those of `run` for such a machine.

    Raises ConflictError where there is one, and what building a machine raises.
    """
    key = place.key_of(config)
    if key is None:
        raise HostError("a file that the machine boots from cannot be read")
    directory = _make(place.root(), key)
    # The engine is compiled here, where somebody sees for how long.
    _prepare(config)
    request = {"config": config_to_tree(config), "words": words}
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        with Progress().step("starting the pool"):
            try:
                process = _spawn(directory, size, idle, writing)
            finally:
                os.close(writing)
            process.communicate(json.dumps(request).encode())
            answer = place.decode(_line(reading))
    except KeyboardInterrupt:
        stop(key)
        raise
    except OSError as fault:
        raise host_error(fault, "start a pool in", directory) from fault
    finally:
        os.close(reading)
    match answer:
        case {"pool": dict(facts)}:
            return facts
        case {"error": dict(error)}:
            raise from_dict(error)
    raise ControlError("the pool's process ended while it started", hint=f"see {directory / LOG}")


def _line(descriptor: int) -> bytes:
    """Return what the pool's process says before it closes its report, or its forks theirs."""
    data = b""
    while not data.endswith(b"\n") and (more := os.read(descriptor, MESSAGE)):
        data += more
    return data


def _prepare(config: MachineConfig) -> None:
    from ringzero.board.contract import BOARDS
    from ringzero.engine import select

    architecture = BOARDS.get(config.board).architecture
    engine = select.choose(config.engine, architecture)
    engine.prepare(Progress(), architecture, config.cpu or architecture.default_model)


def _make(root: Path, key: str) -> Path:
    """Return the pool's directory. Raises HostError, StateError."""
    directory = root / key
    if not place.fits(directory):
        raise InvalidValueError(
            f"sockets in {root} have paths that are too long for this system",
            hint="RINGZERO_POOL_DIR=/run/user/... is a shorter place",
        )
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        for path in (root, directory):
            path.mkdir(0o700, exist_ok=True)
            os.close(open_private(path, directory=True))
    except OSError as fault:
        raise host_error(fault, "create", directory) from fault
    return directory


def _spawn(directory: Path, size: int, idle: float, report: int) -> subprocess.Popen[bytes]:
    """Start the process that becomes the pool's parent and goes."""
    package = str(Path(__file__).parents[3])
    paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH", ""))))
    log = os.open(directory / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    words = [str(directory), str(size), str(idle), str(report)]
    try:
        return subprocess.Popen(
            # -P: the current directory is no place to import from.
            [sys.executable, "-P", "-m", "ringzero.cli.pool.process", *words],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(report,),
            env=os.environ | {"PYTHONPATH": paths},
        )
    finally:
        os.close(log)


def pools() -> list[dict[str, Any]]:
    """Return all pools that answer, as plain data."""
    found = [_ask(path, "status") for path in _directories()]
    return [facts for facts in found if facts is not None]


def stop(identifier: str) -> dict[str, Any] | None:
    """End a pool; return what it was, None where it is gone already. Raises ControlError."""
    path = place.root() / identifier
    facts = _ask(path, "status")
    if facts is None:
        return None
    try:
        process = os.pidfd_open(int(facts["pid"]))
    except ProcessLookupError:
        return facts
    try:
        _ask(path, "stop")
        poller = select.poll()
        poller.register(process, select.POLLIN)
        if not poller.poll(_END * 1000):
            raise ControlError(
                f"the pool {identifier} does not end", hint=f"`kill -9 {facts['pid']}` ends it"
            )
    finally:
        os.close(process)
    return facts


def _directories() -> list[Path]:
    try:
        return sorted(path for path in place.root().iterdir() if (path / CONTROL).exists())
    except OSError:
        return []


def _ask(path: Path, what: str) -> dict[str, Any] | None:
    """Return what a pool answers; None where there is none any more. Raises ControlError."""
    try:
        link = place.connect(path / CONTROL, _PATIENCE)
    except OSError:
        return None
    try:
        link.send(place.encode(ask=what))
        return place.decode(link.recv(MESSAGE)) or None
    except TimeoutError:
        raise ControlError(
            f"the pool {path.name} does not answer", hint=f"see {path / LOG}"
        ) from None
    except OSError:
        return None
    finally:
        link.close()
