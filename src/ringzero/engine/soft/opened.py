"""The compiled engine of this host, found without LLVM.

Which one it is depends on what LLVM says of the host's CPU, and on all source that the generated
code comes from: to load the one and read the other takes longer than a guest that resumes takes to
answer. So the answer is noted in the cache, under a hash of what it can depend on: the CPU as the
kernel names it, Python, llvmlite, and the sources by inode, size and times of last change.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ringzero.digest import blake2b
from ringzero.host.private import is_trusted, is_trusted_directory
from ringzero.host.progress import QUIET, Steps
from ringzero.records import record
from ringzero.settings import CACHE_DIR

if TYPE_CHECKING:
    from ringzero.engine.soft.linked import Objects

# The guest of who asks for none, as of `ringzero.jit.build`.
DEFAULT_GUEST = "x86_64"
_ROOT = Path(__file__).parents[2]
# Packages whose source decides the generated code, as of `ringzero.jit.build`.
_SOURCES = ("native", "isa", "jit")
_COMPLETE = "complete.json"
_CPU = Path("/proc/cpuinfo")
# The first of the host's CPUs is told within so many bytes; all are alike.
_FIRST_CPU = 4096
# What of it changes from moment to moment.
_MOMENTARY = (b"cpu MHz", b"bogomips")
# What this process has found, by cache and guest.
_PREPARED: dict[tuple[Path, str], Objects] = {}


@record
class Noted:
    """A compiled engine on disk, as an `EngineObjects` of `ringzero.jit.build`.

    `handlers` is how many each unit has.
    """

    directory: Path
    key: str
    units: list[str]
    handlers: dict[str, int]

    def read(self, name: str) -> bytes:
        """Return one of its files. Raises OSError."""
        return (self.directory / name).read_bytes()


def prepared(steps: Steps = QUIET, guest: str = DEFAULT_GUEST) -> Objects:
    """As `ensure`; what was found is known from then on, as long as it is there."""
    place = CACHE_DIR.get(), guest
    found = _PREPARED.get(place)
    if found is None or not found.directory.is_dir():
        found = _PREPARED[place] = ensure(steps, guest)
    return found


def ensure(steps: Steps = QUIET, guest: str = DEFAULT_GUEST) -> Objects:
    """Return a guest's compiled engine, compiling it where there is none.

    Raises what `ringzero.jit.build.ensure` does.
    """
    note = _note(guest)
    found = _read(note)
    if found is not None:
        return found
    from ringzero.jit import build

    objects = build.ensure(steps, guest)
    with contextlib.suppress(OSError):
        _write(note, Noted(objects.directory, objects.key, objects.units, handlers_of(objects)))
    return objects


def handlers_of(objects: Objects) -> dict[str, int]:
    """Return how many handlers each unit of an engine has."""
    if isinstance(objects, Noted):
        return objects.handlers
    return {unit: len(json.loads(objects.read(f"{unit}.places"))) for unit in objects.units}


def _note(guest: str) -> Path:
    """Return where the engine of a guest is noted."""
    digest = blake2b(guest.encode(), digest_size=16)
    digest.update(sys.version.encode())
    for text in _facts():
        digest.update(text)
    return CACHE_DIR.get() / "engine" / f"noted-{digest.hexdigest()}"


def _facts() -> Iterator[bytes]:
    """Yield all that the generated code, and the choice of it, depends on."""
    try:
        with _CPU.open("rb") as file:
            lines = file.read(_FIRST_CPU).split(b"\n\n")[0].splitlines()
        yield b"\n".join(line for line in lines if not line.startswith(_MOMENTARY))
    except OSError:
        # Nothing tells this host from another one.
        yield os.urandom(16)
    # As `importlib.util.find_spec`, without what that loads.
    specs = (finder.find_spec("llvmlite", None) for finder in sys.meta_path)
    spec = next((spec for spec in specs if spec is not None), None)
    if spec is not None and spec.origin is not None:
        yield _stamp(spec.origin, os.stat(spec.origin))  # noqa: PTH116 - one of many, and timed
    pending = [str(_ROOT / name) for name in _SOURCES]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if entry.name.endswith(".py"):
                    yield _stamp(entry.path, entry.stat())
                elif entry.is_dir() and entry.name[0] not in "._":
                    pending.append(entry.path)


def _stamp(name: str, status: os.stat_result) -> bytes:
    parts = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return f"{name} {parts}\n".encode()


def _read(note: Path) -> Noted | None:
    """Return the engine that a note names, where it still is and nobody else could change it."""
    try:
        with note.open("rb") as file:
            if not is_trusted(os.fstat(file.fileno())):
                return None
            noted = json.loads(file.read())
        directory = Path(noted["directory"])
        if not is_trusted_directory(directory):
            return None
        told = json.loads((directory / _COMPLETE).read_bytes())
        if told["key"] != noted["key"]:
            return None
        handlers = {str(unit): int(count) for unit, count in noted["handlers"].items()}
        if handlers.keys() != set(told["units"]):
            return None
        return Noted(directory, str(told["key"]), list(told["units"]), handlers)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(note: Path, found: Noted) -> None:
    note.parent.mkdir(parents=True, exist_ok=True)
    temporary = note.with_name(f"building-{note.name}-{os.urandom(4).hex()}")
    try:
        temporary.touch(0o644)
        told = {"directory": str(found.directory), "key": found.key, "handlers": found.handlers}
        temporary.write_text(json.dumps(told))
        temporary.replace(note)
    finally:
        temporary.unlink(missing_ok=True)
