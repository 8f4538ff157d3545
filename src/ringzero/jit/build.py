"""Compiles the engine once, keeps it in the cache, and links it in milliseconds afterwards.

An engine is known by a key: the content of every source file that the generated
code depends on, and the target. For this host's own CPU, that is LLVM's version and
the CPU's features; a portable engine runs on every host of a level of x86-64. A
directory appears by rename when it is complete, so a build cut short leaves nothing
half-made. What it had compiled is found again among the objects, which are kept by
content.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
import tempfile
import time
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ringzero.digest import blake2b
from ringzero.host.files import host_error, require_space
from ringzero.jit.compile.llvm import PORTABLE, Library, Target, host_identity, host_target
from ringzero.records import record
from ringzero.settings import CACHE_DIR

if TYPE_CHECKING:
    from ringzero.jit.workers import Progress

# The package's own directory.
_ROOT = Path(__file__).parent.parent
# Packages in it whose source decides the generated code.
_SOURCES = ("native", "isa", "jit")
# Where `make wheel` puts engines into the package, each in a directory called as its target.
SHIPPED = _ROOT / "_engine"
_COMPLETE = "complete.json"
# A compiled engine, the objects it is made of, and its first saved translations, in bytes.
_SIZE = 12 << 20
# Seconds after which a build is taken to have died, and an engine or object to be of no use.
BUILDING_AGE = 3600
UNUSED_AGE = 14 * 24 * 3600


@record
class EngineObjects:
    """A compiled engine on disk."""

    directory: Path
    key: str
    units: list[str]
    target: str

    def read(self, name: str) -> bytes:
        return (self.directory / name).read_bytes()


@functools.cache
def _source_digest() -> bytes:
    digest = blake2b(digest_size=16)
    for package in _SOURCES:
        for path in sorted((_ROOT / package).rglob("*.py")):
            digest.update(path.relative_to(_ROOT).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.digest()


def cache_key(target: Target | None = None) -> str:
    """Return the key of the engine that this source needs on a target, by default this host."""
    # Objects of a portable engine come from another Python and LLVM than those that load them.
    identity = target.identity if target and target.needs else f"{host_identity()} {sys.version}"
    digest = blake2b(_source_digest(), digest_size=16)
    digest.update(identity.encode())
    return digest.hexdigest()


def compiled() -> Iterator[EngineObjects]:
    """Yield the engines of this source that are there and run on this host, the best first."""
    engines = CACHE_DIR.get() / "engine"
    portable = [target for target in PORTABLE if target.runs_here()]
    places = [(target, engines / cache_key(target)) for target in (host_target(), *portable)]
    places += [(target, SHIPPED / target.name) for target in portable]
    for target, directory in places:
        found = _read(directory, target)
        if found is not None:
            yield found


def kept(target: Target) -> EngineObjects | None:
    """Return the engine for a target that is in the cache."""
    return _read(CACHE_DIR.get() / "engine" / cache_key(target), target)


def _read(directory: Path, target: Target) -> EngineObjects | None:
    """Return the engine in a directory when it is whole, of this source and this target."""
    try:
        record = json.loads((directory / _COMPLETE).read_text())
        units, key = record["units"], record["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return EngineObjects(directory, key, units, target.name) if key == cache_key(target) else None


def ensure(progress: Progress | None = None) -> EngineObjects:
    """Return the compiled engine, compiling it for this host first when there is none."""
    return next(compiled(), None) or build(host_target(), progress)


def build(
    target: Target, progress: Progress | None = None, directory: Path | None = None
) -> EngineObjects:
    """Compile the engine for `target`, into `directory` (default: the cache).

    Raises HostError, EngineError.
    """
    from ringzero.jit import units
    from ringzero.jit.workers import compile_all
    from ringzero.jit.x86 import assembly

    key = cache_key(target)
    kept = directory is None
    directory = directory or CACHE_DIR.get() / "engine" / key
    names = units.names()
    stencils = [f"stencils{n}" for n in range(assembly.SHARES)]
    work = None
    require_space(directory.parent, _SIZE, "compiling the software engine")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="building-", dir=directory.parent))
        # The slowest first, so that all workers end at about the same time.
        compile_all([*names[:1], *stencils, *names[1:]], work, target, progress)
        _write_tables(names, work)
        assembly.assemble(work)
        for name in stencils:
            (work / f"{name}.json").unlink()
        record = {"units": names, "key": key, "target": target.name}
        (work / _COMPLETE).write_text(json.dumps(record))
        # Others may use it: an image that it is baked into, a user other than root.
        work.chmod(0o755)
        try:
            work.rename(directory)
        except OSError:
            # Somebody else was faster, or an incomplete or older directory is in the way.
            if not kept or not (directory / _COMPLETE).exists():
                shutil.rmtree(directory, ignore_errors=True)
                work.rename(directory)
    except OSError as fault:
        raise host_error(fault, "write", directory) from fault
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
    if kept:
        _sweep(directory)
    return EngineObjects(directory, key, names, target.name)


def remove() -> list[Path]:
    """Remove all compiled engines, objects and translations of the cache; return what it was.

    Raises HostError.
    """
    gone = []
    for name in ("engine", "objects", "translations"):
        path = CACHE_DIR.get() / name
        if path.is_symlink() or path.exists():
            try:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            except OSError as fault:
                raise host_error(fault, "remove", path) from fault
            gone.append(path)
    return gone


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
