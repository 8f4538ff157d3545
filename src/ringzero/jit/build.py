"""Compiles the engine once, keeps it in the cache, and links it in milliseconds afterwards.

An engine serves guests of one ISA (`ringzero.jit.guest`). It is known by a key: the content of
every source file that the generated code depends on, the guest, and the target. For this
host's own CPU, that is LLVM's version and the CPU's features; a portable engine runs on every
host of a level of x86-64. A directory appears by rename when it is complete, so a build cut
short leaves nothing half-made. What it had compiled is found again among the objects, which
are kept by content. Of several processes that need the same engine one compiles it and the
others wait; should it die, the next one goes on.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ringzero.digest import blake2b
from ringzero.host.files import host_error, locked, require_space
from ringzero.host.private import is_trusted_directory
from ringzero.host.progress import QUIET, Steps
from ringzero.jit.compile.llvm import (
    PORTABLE,
    Library,
    Target,
    host_identity,
    host_target,
    target_named,
)
from ringzero.records import record
from ringzero.settings import CACHE_DIR

# The guests of who asks for none: those that run as they are on the hosts there are.
DEFAULT_GUEST = "x86_64"
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
_WAITING = "another process prepares the engine, this one waits"
UNUSED_AGE = 14 * 24 * 3600


@record
class EngineObjects:
    """A compiled engine on disk."""

    directory: Path
    key: str
    units: list[str]
    target: str
    guest: str = DEFAULT_GUEST

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


def cache_key(target: Target | None = None, guest: str = DEFAULT_GUEST) -> str:
    """Return the key of a guest's engine of this source on a target, by default this host."""
    # Objects of a portable engine come from another Python and LLVM than those that load them.
    identity = target.identity if target and target.needs else f"{host_identity()} {sys.version}"
    digest = blake2b(_source_digest(), digest_size=16)
    digest.update(f"{guest} {identity}".encode())
    return digest.hexdigest()


def compiled(guest: str = DEFAULT_GUEST) -> Iterator[EngineObjects]:
    """Yield a guest's engines of this source that there are for this host, the best first."""
    engines = CACHE_DIR.get() / "engine"
    portable = [target for target in PORTABLE if target.runs_here()]
    places = [(target, engines / cache_key(target, guest)) for target in (host_target(), *portable)]
    places += [(target, SHIPPED / target.name) for target in portable]
    for target, directory in places:
        found = _read(directory, target, guest)
        # Whoever may change the package may have us run anything.
        if found is not None and (directory.parent == SHIPPED or may_run(directory)):
            yield found


def kept(target: Target, guest: str = DEFAULT_GUEST) -> EngineObjects | None:
    """Return a guest's engine for a target that is in the cache."""
    found = _read(CACHE_DIR.get() / "engine" / cache_key(target, guest), target, guest)
    return found if found is not None and may_run(found.directory) else None


def _read(directory: Path, target: Target, guest: str) -> EngineObjects | None:
    """Return the engine in a directory when it is whole, of this source, target and guest."""
    try:
        record = json.loads((directory / _COMPLETE).read_text())
        units, key = record["units"], record["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if key != cache_key(target, guest):
        return None
    return EngineObjects(directory, key, units, target.name, guest)


def may_run(directory: Path) -> bool:
    """Whether what is in a directory is as it was compiled, for all that others could have done."""
    if is_trusted_directory(directory):
        return True
    from ringzero.jit import trust

    return trust.is_known(directory)


def ensure(steps: Steps = QUIET, guest: str = DEFAULT_GUEST) -> EngineObjects:
    """Return a guest's compiled engine, compiling it for this host first when there is none.

    One that completes another guest's is compiled for the target of that one.
    """
    found = next(compiled(guest), None)
    if found is not None:
        return found
    from ringzero.jit.guest import GUESTS

    base = GUESTS.get(guest).base
    target = host_target() if base is None else target_named(ensure(steps, base).target)
    return build(target, steps, guest=guest)


def build(
    target: Target,
    steps: Steps = QUIET,
    directory: Path | None = None,
    guest: str = DEFAULT_GUEST,
) -> EngineObjects:
    """Compile a guest's engine for `target`, into `directory`.

    By default into the cache, if it is not there.

    Raises HostError, EngineError, NotFoundError for a guest that no engine is made for.
    """
    from ringzero.jit.guest import GUESTS

    GUESTS.get(guest)
    require_space(directory or CACHE_DIR.get() / "engine", _SIZE, "compiling the software engine")
    if directory is not None:
        return _compile(target, steps, directory, guest, again=True)
    directory = CACHE_DIR.get() / "engine" / cache_key(target, guest)
    with locked(directory.with_suffix(".lock"), steps, _WAITING):
        found = kept(target, guest) or _compile(target, steps, directory, guest, again=False)
    _sweep(directory)
    return found


def _compile(
    target: Target, steps: Steps, directory: Path, guest: str, *, again: bool
) -> EngineObjects:
    """Compile the engine into `directory`; `again`: in place of one that is there."""
    from ringzero.jit.guest import GUESTS
    from ringzero.jit.workers import compile_all

    code = GUESTS.get(guest)()
    key = cache_key(target, guest)
    base = None if code.base is None else _base(target, steps, code.base)
    work = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="building-", dir=directory.parent))
        if base is not None:
            shutil.copytree(base.directory, work, dirs_exist_ok=True)
            (work / _COMPLETE).unlink()
        # The slowest first, so that all workers end at about the same time.
        units = code.units()
        whom = target.name if target.needs else "this host"
        why = f", anew: others may have changed {directory}" if directory.exists() else ", once"
        what = "the software engine" if base is None else "further instructions of it"
        with steps.step(f"compiling {what} for {whom}{why}") as step:
            compile_all(
                *(guest, units, work, target),
                lambda done, total: step.update(done / total, f"{done} of {total}"),
            )
        code.assemble(work)
        names = list(code.objects)
        record = {"units": names, "key": key, "target": target.name}
        (work / _COMPLETE).write_text(json.dumps(record))
        # Others may use it: an image that it is baked into, a user other than root. And nobody
        # may change it, whatever the umask.
        work.chmod(0o755)
        for path in work.iterdir():
            path.chmod(0o644)
        try:
            work.rename(directory)
        except OSError:
            # Somebody else was faster, or what is in the way is incomplete, older, or not ours.
            if again or not (directory / _COMPLETE).exists() or not may_run(directory):
                shutil.rmtree(directory, ignore_errors=True)
                work.rename(directory)
        if not is_trusted_directory(directory):
            from ringzero.jit import trust

            trust.note(directory)
    except OSError as fault:
        raise host_error(fault, "write", directory) from fault
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
    return EngineObjects(directory, key, names, target.name, guest)


def _base(target: Target, steps: Steps, guest: str) -> EngineObjects:
    """Return the engine of another guest for a target, to be completed."""
    there = (found for found in compiled(guest) if found.target == target.name)
    return next(there, None) or build(target, steps, guest=guest)


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


def link(objects: EngineObjects, symbols: Iterable[str]) -> Library:
    """Link the compiled engine into this process; `symbols` are those that will be asked for."""
    return Library([objects.read(f"{name}.o") for name in objects.units], symbols)
