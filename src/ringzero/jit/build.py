"""Compiles the engine once, keeps it in the cache, and links it in milliseconds afterwards.

The cache key is the content of every source file that the generated code
depends on, with LLVM's version and the host CPU. A cache directory appears by
rename when it is complete, so a build cut short leaves nothing half-made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ringzero.errors import EngineError, HostError
from ringzero.host.files import CACHE_HINT, host_error
from ringzero.jit.compile.llvm import Library, host_identity
from ringzero.settings import CACHE_DIR

# called with (units done, units in all, what is being compiled)
Progress = Callable[[int, int, str], None]
# The package's own directory.
_ROOT = Path(__file__).parent.parent
# Packages in it whose source decides the generated code.
_SOURCES = ("native", "isa", "jit")
_COMPLETE = "complete.json"
# Exit code of a unit's compiler when the host refuses a file (sysexits.h, EX_IOERR).
NO_ROOM = 74
# Seconds after which a build is taken to have died, and an engine or object to be of no use.
BUILDING_AGE = 3600
UNUSED_AGE = 14 * 24 * 3600


@dataclass(frozen=True)
class EngineObjects:
    """A compiled engine on disk."""

    directory: Path
    key: str
    units: list[str]

    def read(self, name: str) -> bytes:
        return (self.directory / name).read_bytes()


def cache_key() -> str:
    """Return the key of the engine that this source and this host need."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(host_identity().encode())
    digest.update(sys.version.encode())
    for package in _SOURCES:
        for path in sorted((_ROOT / package).rglob("*.py")):
            digest.update(path.relative_to(_ROOT).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def ensure(progress: Progress | None = None) -> EngineObjects:
    """Return the compiled engine, compiling it first when the cache has none."""
    key = cache_key()
    directory = CACHE_DIR.get() / "engine" / key
    try:
        units = json.loads((directory / _COMPLETE).read_text())["units"]
    except (OSError, ValueError, KeyError):
        units = _build(directory, progress)
    return EngineObjects(directory, key, units)


def _build(directory: Path, progress: Progress | None) -> list[str]:
    from ringzero.jit import units
    from ringzero.jit.x86 import assembly

    names = units.names()
    stencils = [f"stencils{n}" for n in range(assembly.SHARES)]
    work = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="building-", dir=directory.parent))
        _compile_all([*stencils, *names], work, progress)
        _write_tables(names, work)
        assembly.assemble(work)
        for name in stencils:
            (work / f"{name}.json").unlink()
        (work / _COMPLETE).write_text(json.dumps({"units": names}))
        try:
            work.rename(directory)
        except OSError:
            # Somebody else was faster, or an incomplete directory is in the way.
            if not (directory / _COMPLETE).exists():
                shutil.rmtree(directory, ignore_errors=True)
                work.rename(directory)
    except OSError as fault:
        raise host_error(fault, "write", directory) from fault
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
    _sweep(directory)
    return names


def _sweep(used: Path) -> None:
    """Remove engines and objects that nobody has made or used for long, and builds cut short."""
    now = time.time()
    for path in (*used.parent.iterdir(), *(used.parent.parent / "objects").glob("*")):
        age = BUILDING_AGE if path.name.startswith("building-") else UNUSED_AGE
        try:
            if path != used and now - path.stat().st_mtime > age:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:
            continue  # somebody else was faster, or uses it


def _compile_all(names: list[str], work: Path, progress: Progress | None) -> None:
    waiting = list(names)
    running: dict[str, subprocess.Popen[bytes]] = {}
    done = 0
    workers = max(1, len(os.sched_getaffinity(0)))
    source = str(_ROOT.parent)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    }
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                name = waiting.pop(0)
                command = [sys.executable, "-m", "ringzero.jit.compile_unit", name, str(work)]
                running[name] = subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
                )
            if progress:
                progress(done, len(names), ", ".join(running))
            name = _first_finished(running)
            process = running.pop(name)
            _, complaint = process.communicate()
            if process.returncode == NO_ROOM:
                reason = complaint.decode(errors="replace").strip()
                raise HostError(
                    f"cannot write the compiled engine to {work}: {reason}", hint=CACHE_HINT
                )
            if process.returncode != 0:
                raise EngineError(
                    f"compiling the engine failed in unit {name}",
                    hint="run with RINGZERO_DEBUG=3 and report the output",
                    detail=complaint.decode(errors="replace")[-2000:],
                )
            done += 1
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    if progress:
        progress(done, len(names), "")


def _first_finished(running: dict[str, subprocess.Popen[bytes]]) -> str:
    pids = {process.pid: name for name, process in running.items()}
    while True:
        for process in running.values():
            try:
                process.wait(timeout=0.02)
            except subprocess.TimeoutExpired:
                continue
            return pids[process.pid]


def _write_tables(names: list[str], work: Path) -> None:
    """Write the decoder's tables, with handlers as indices into all units' arrays in order."""
    from ringzero.isa.x86.table.decoder import build_tables, entry_flags, immediates
    from ringzero.isa.x86.table.entry import SLOTS, FormEntry
    from ringzero.isa.x86.table.instructions import all_forms

    forms = all_forms()
    tables = build_tables(forms)
    (work / "opcodes.bin").write_bytes(tables.opcodes.tobytes())
    (work / "groups.bin").write_bytes(tables.groups.tobytes())
    words = FormEntry.size // 8
    entries = array("Q", bytes(FormEntry.size * len(forms)))
    # Index + 1 into the concatenated handler arrays; 0: no handler.
    number = 0
    for name in names:
        for form, slot in json.loads((work / f"{name}.places").read_text()):
            number += 1
            entries[form * words + slot] = number
    for form in forms:
        first, second = immediates(form)
        entries[form.index * words + SLOTS] = entry_flags(form) | first << 32 | second << 40
    (work / "forms.bin").write_bytes(entries.tobytes())
    (work / "names.json").write_text(json.dumps([f.mnemonic for f in forms]))


def link(objects: EngineObjects, symbols: Iterable[str]) -> Library:
    """Link the compiled engine into this process; `symbols` are those that will be asked for."""
    return Library([objects.read(f"{name}.o") for name in objects.units], symbols)
