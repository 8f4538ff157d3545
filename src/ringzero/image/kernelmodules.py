"""All modules of an image's kernel, as a folder that a guest can have at /lib/modules.

    modules/DIGEST/RELEASE/kernel/...       the modules, uncompressed
    modules/DIGEST/RELEASE/modules.dep ...  what depmod(8) makes of them

An image's initrd has only those that the agent and disks need. A guest whose root is a folder of
the host has none of its kernel's: they come from here, made of the kernel's package when they are
first wanted, and kept in the cache.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ringzero.errors import GuestImageError, RingzeroError
from ringzero.host.files import atomic_directory, require_space
from ringzero.host.progress import QUIET, Progress
from ringzero.image import archives, deb, micro
from ringzero.image.moduleindex import index
from ringzero.image.modules import Module, canonical, dependency_file, modinfo
from ringzero.settings import CACHE_DIR
from ringzero.units import MIB

# Debian 12's full kernel has 400 MiB of them, the cloud kernel 90.
_ROOM = 500 * MIB
# Folders of kernels that nobody has asked for so long, in seconds, are removed.
_UNUSED_AGE = 30 * 86400
_NUMBER = re.compile(r"(char|block)-major-(\d+)-(\d+)")
# Files of the package that say what is built in, and in which order modules are tried.
_TOLD = ("modules.builtin", "modules.builtin.modinfo", "modules.order")


def ensure(image: micro.BootFiles, *, progress: Progress = QUIET) -> Path | None:
    """Return the folder RELEASE of an image's kernel, made if need be.

    None where its package cannot be had any more, as without a network.
    """
    top = CACHE_DIR.get() / "modules"
    place = top / image.digest
    if found := _release(place):
        place.touch()
        return found
    try:
        package = _package(image, progress)
        require_space(top, _ROOM, "the kernel's modules")
        with (
            progress.step("unpacking the kernel's modules"),
            atomic_directory(place) as work,
        ):
            unpack(package, work)
    except RingzeroError:
        return None
    _forget_old(top)
    return _release(place)


def _release(place: Path) -> Path | None:
    return next((path for path in place.glob("*") if (path / "modules.dep").exists()), None)


def _package(image: micro.BootFiles, progress: Progress) -> Path:
    """Return the package with the image's kernel. Raises NotFoundError, HostError."""
    name, _, version = image.packages[0].partition("=")
    archive = archives.debian(progress=progress)
    (package,) = archive.resolve([name], dependencies=False)
    if package.version != version:
        raise GuestImageError(f"{name} is not there in the version {version} any more")
    return archive.download([package])[0]


def _forget_old(top: Path) -> None:
    now = time.time()
    for place in top.iterdir():
        if now - place.stat().st_mtime > _UNUSED_AGE:
            shutil.rmtree(place, ignore_errors=True)


def unpack(package: Path, place: Path) -> None:
    """Write the modules of a kernel package below `place`, with their indexes.

    Raises GuestImageError, HostError.
    """
    release = ""
    modules: dict[str, Module] = {}
    told: dict[str, bytes] = {}
    for info, data in deb.files(package):
        _, found, path = info.name.partition("lib/modules/")
        if not found or not info.isreg():
            continue
        release, _, path = path.partition("/")
        if ".ko" in path:
            module = Module(canonical(path), path.removesuffix(".xz"), micro.plain(path, data))
            modules[module.name] = module
        elif path in _TOLD:
            told[path] = data
    if not modules:
        raise GuestImageError(f"{package.name} holds no kernel modules", path=package)
    files = {module.path: module.data for module in modules.values()}
    files |= told | dict(indexes(modules, told))
    for path, data in files.items():
        target = place / release / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def indexes(
    modules: Mapping[str, Module], told: Mapping[str, bytes]
) -> Iterator[tuple[str, bytes]]:
    """Yield depmod's files for `modules`, by name. `told` has those of the package."""
    order = {
        canonical(line): number
        for number, line in enumerate(told.get("modules.order", b"").decode().split())
    }
    ordered = sorted(modules.values(), key=lambda m: (order.get(m.name, len(order)), m.path))
    dependencies = dependency_file(ordered)
    yield "modules.dep", dependencies.encode()
    lines = dict(zip((m.name for m in ordered), dependencies.splitlines(), strict=True))
    rank = {module.name: number for number, module in enumerate(ordered)}
    yield "modules.dep.bin", index({name: [(rank[name], line)] for name, line in lines.items()})
    pairs = [
        (alias, module.name)
        for module in ordered
        for alias in modinfo(module.data).get("alias", ())
    ]
    yield "modules.alias", "".join(f"alias {a} {m}\n" for a, m in pairs).encode()
    yield "modules.alias.bin", index(_grouped((_normal(a), rank[m], m) for a, m in pairs))
    softdep = [
        f"softdep {module.name} {text}\n"
        for module in ordered
        for text in modinfo(module.data).get("softdep", ())
    ]
    yield "modules.softdep", "".join(softdep).encode()
    nodes = filter(None, map(_device_node, ordered))
    yield "modules.devname", "".join(nodes).encode()
    built_in = told.get("modules.builtin", b"").decode().split()
    yield "modules.builtin.bin", index({canonical(path): [(0, "")] for path in built_in})


def _device_node(module: Module) -> str:
    """Return the line of a module that is loaded when its device's node is opened, or ""."""
    aliases = modinfo(module.data).get("alias", ())
    names = [alias.removeprefix("devname:") for alias in aliases if alias.startswith("devname:")]
    numbers = [found for alias in aliases if (found := _NUMBER.fullmatch(alias))]
    if not names or not numbers:
        return ""
    kind, major, minor = numbers[0].groups()
    return f"{module.name} {names[0]} {kind[0]}{major}:{minor}\n"


def _normal(alias: str) -> str:
    """Return an alias as it is compared: "-" is "_", but not in brackets."""
    return re.sub(r"\[[^\]]*\]|-", lambda m: "_" if m[0] == "-" else m[0], alias)


def _grouped(items: Iterable[tuple[str, int, str]]) -> dict[str, list[tuple[int, str]]]:
    found: dict[str, list[tuple[int, str]]] = {}
    for key, priority, value in items:
        found.setdefault(key, []).append((priority, value))
    return {key: sorted(values) for key, values in found.items()}
