"""The default guest image, `micro`: a Debian kernel with a busybox userland.

It is put together from Debian's packages, without root, and cached by the
content of all that goes into it:

    images/<digest>/vmlinux or vmlinuz    the kernel, as `board.kernel` reads it
    images/<digest>/initrd                an uncompressed newc archive
    images/<digest>/manifest.json         what went in
    images/<name>-<recipe>.json           the digest in use for this recipe
    images/<name>-<sources>.noted         which recipe these sources make

The recipe is a hash of this module's own inputs (package names, init script),
so that a new ringzero makes a new image, and a start with an image in the
cache asks nobody anything.
"""

from __future__ import annotations

import binascii
import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ringzero.errors import GuestImageError, InvalidValueError, NotFoundError
from ringzero.host.files import atomic_directory, atomic_file, locked, require_space
from ringzero.host.progress import QUIET, Progress
from ringzero.records import record
from ringzero.settings import CACHE_DIR, MIRROR
from ringzero.units import MIB

if TYPE_CHECKING:
    from ringzero.image.archives import Archive
    from ringzero.image.modules import Module
    from ringzero.image.rootfs import Rootfs

# Modules that a guest of this system can make use of: the virtio drivers of
# its devices, and the file systems that people have on their disks.
MODULES = (
    *("virtio_mmio", "virtio_pci", "virtio_console", "virtio_blk", "virtio_rng", "virtio_net"),
    *("virtio_balloon", "vmw_vsock_virtio_transport", "virtiofs", "pvpanic_mmio"),
    *("9p", "9pnet_virtio"),
    *("ext4", "vfat", "nls_ascii", "nls_cp437", "isofs", "squashfs", "erofs", "overlay", "loop"),
)

# With this line the kernel runs 0.35 thousand million instructions from its first to
# /init, and 0.42 until /init takes commands (counted by QEMU's -icount, 256 MiB, 1 CPU).
# quiet             every character on the serial line costs an exit
# mitigations=off   no page-table switch and no retpolines: nothing to protect here from itself
# init_on_alloc=0   Debian clears every page twice otherwise
# tsc=reliable      no watchdog and no calibration against other timers
# no_timer_check    no wait for legacy timer interrupts
# panic=-1          a panic ends the machine at once
# reboot=a          by the reset register that the ACPI tables name
# nokaslr           the same addresses in every boot, for caches of translated code
# initcall_blacklist=pci_arch_init
#                   a board without PCI is "PCI: Fatal" to it; one that has PCI must do without this
# cryptomgr.notests no self-tests of ciphers while a disk's modules load
# psi=0             no pressure figures: their averages wake an idle guest every two seconds
COMMAND_LINE = (
    "console=ttyS0 quiet mitigations=off init_on_alloc=0 tsc=reliable no_timer_check "
    "initcall_blacklist=pci_arch_init nokaslr panic=-1 reboot=a rcupdate.rcu_expedited=1 "
    "cryptomgr.notests psi=0 ringzero.agent"
)

_FORMAT = 2
# The scripts and programs of the guest.
_GUEST = Path(__file__).with_name("guest")
_RUNNER = _GUEST / "runner"
_MANIFEST = "manifest.json"
# An image that no recipe leads to is kept for this long after its last use, in seconds: a
# machine may be starting from it, and two versions of ringzero may share one cache.
_UNUSED_AGE = 86400


@record
class BootFiles:
    """What a direct boot needs: kernel and initrd files, command line, and what they are."""

    name: str
    digest: str
    kernel: Path
    initrd: Path
    command_line: str
    packages: tuple[str, ...]
    size: int

    @property
    def root(self) -> None:
        """The initrd is the guest's root."""
        return

    @property
    def disks(self) -> tuple[Path, ...]:
        """None: it boots from files."""
        return ()

    @property
    def machine(self) -> None:
        """It asks for nothing."""
        return

    @property
    def health(self) -> None:
        """Nothing is asked."""
        return

    def words(self, command: Sequence[str], entrypoint: str | None = None) -> list[str]:
        """Return what to run: `command`, or nothing, for a shell. Raises InvalidValueError."""
        if entrypoint is not None:
            raise InvalidValueError(
                f"the image {self.name} has no entrypoint", hint="give the command behind --"
            )
        return list(command)


@record
class Recipe:
    """What an image is made of.

    `kernel` names a Debian kernel package or the meta package that depends on
    one; `packages` come with their dependencies; `suite` is another Debian
    release than the machine's, or None.
    """

    name: str
    kernel: str = "linux-image-cloud-amd64"
    packages: tuple[str, ...] = ()
    suite: str | None = None
    architecture: str = "amd64"
    # Packages of other architectures, "name:architecture", unpacked without dependencies.
    foreign: tuple[str, ...] = ()

    def digest(self) -> str:
        """Return a hash of everything here that shapes the image, except package versions."""
        import hashlib

        return hashlib.sha256(self.inputs().encode()).hexdigest()[:16]

    def inputs(self) -> str:
        """Return everything here that shapes the image, except package versions."""
        from ringzero.image.guest import become, enter, identity, launch, relay, runner, static_net

        programs = [p.build().hex() for p in (become, enter, identity, launch, relay, static_net)]
        # To compile that one takes longer than to look for an image that has it.
        programs += [runner.source()]
        guest = [script(name).decode() for name in ("init", "dhcp", "execute", "share")] + programs
        inputs = [vars(self), MODULES, guest, COMMAND_LINE, _FORMAT, MIRROR.get()]
        return json.dumps(inputs, sort_keys=True)

    def sources(self) -> str:
        """Return what changes whenever `inputs` does, without reading it."""
        places = [Path(__file__), *sorted(_GUEST.iterdir()), *sorted(_RUNNER.iterdir())]
        stamps = [
            (path.name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
            for path in places
            if (s := path.stat()) and path.is_file()
        ]
        return json.dumps([vars(self), MIRROR.get(), str(_GUEST), stamps], sort_keys=True)


MICRO = Recipe("micro")


def ensure(
    recipe: Recipe = MICRO,
    *,
    cache: Path | None = None,
    progress: Progress = QUIET,
    refresh: bool = False,
) -> BootFiles:
    """Return the image of `recipe` from the cache, building it first if it is not there.

    `refresh` asks the archive for newer packages. Raises what `archives.Archive` raises.
    """
    cache = cache if cache is not None else CACHE_DIR.get()
    # To put together what goes into the guest takes longer than to look whether it has changed.
    sources = recipe.sources()
    note = _pointer(recipe.name, sources, cache).with_suffix(".noted")
    found = None if refresh else _load_noted(note, sources, cache)
    if found is None:
        inputs = recipe.inputs()
        pointer = _pointer(recipe.name, inputs, cache)
        found = _ensure(recipe, pointer, inputs, cache, progress, refresh)
        with contextlib.suppress(OSError), atomic_file(note) as file:
            file.write(json.dumps({"sources": sources, "pointer": pointer.name}).encode())
    _mark_used(found)
    return found


def _ensure(
    recipe: Recipe, pointer: Path, inputs: str, cache: Path, progress: Progress, refresh: bool
) -> BootFiles:
    found = None if refresh else _load(pointer, inputs, cache)
    if found is not None:
        return found
    with locked(cache / "images" / "lock", progress):
        found = None if refresh else _load(pointer, inputs, cache)
        if found is None:
            digest = _build(recipe, cache, progress, refresh)
            with atomic_file(pointer) as file:
                file.write(json.dumps({"digest": digest, "recipe": inputs}).encode())
            found = _load(pointer, inputs, cache)
            _forget_old(recipe.name, cache)
    if found is None:
        raise GuestImageError(f"the image {recipe.name} vanished while it was built", path=pointer)
    return found


def image_of(kernel: Path | None) -> str:
    """Return the name of the image in the cache that a kernel's file belongs to, or ""."""
    if kernel is None or kernel.parent.parent != CACHE_DIR.get() / "images":
        return ""
    image = _read(kernel.parent)
    return "" if image is None else image.name


def list_images(cache: Path | None = None) -> list[BootFiles]:
    """Return the images in the cache, by name."""
    cache = cache if cache is not None else CACHE_DIR.get()
    manifests = sorted((cache / "images").glob(f"*/{_MANIFEST}"))
    images = [image for path in manifests if (image := _read(path.parent)) is not None]
    return sorted(images, key=lambda image: (image.name, image.digest))


def remove(name: str, cache: Path | None = None) -> list[BootFiles]:
    """Remove the images called `name`, or whose digest begins so; raises NotFoundError."""
    cache = cache if cache is not None else CACHE_DIR.get()
    with locked(cache / "images" / "lock"):
        chosen = [i for i in list_images(cache) if name == i.name or i.digest.startswith(name)]
        if not chosen:
            known = ", ".join(sorted({i.name for i in list_images(cache)})) or "none"
            raise NotFoundError(f"no image called {name!r}", hint=f"in the cache: {known}")
        for image in chosen:
            for pointer in (cache / "images").glob(f"{image.name}-*.json"):
                with contextlib.suppress(OSError, ValueError, KeyError):
                    if json.loads(pointer.read_text())["digest"] == image.digest:
                        pointer.unlink()
            _remove_tree(cache / "images" / image.digest)
    return chosen


def _forget_old(name: str, cache: Path) -> None:
    """Remove the images called `name` that have not been used for a day."""
    now = time.time()
    for image in list_images(cache):
        if image.name != name:
            continue
        place = cache / "images" / image.digest
        with contextlib.suppress(OSError):
            if now - (place / _MANIFEST).stat().st_mtime > _UNUSED_AGE:
                _remove_tree(place)


def _mark_used(image: BootFiles) -> None:
    """Note that the image is in use, which keeps it from being removed for a day."""
    with contextlib.suppress(OSError):
        os.utime(image.kernel.parent / _MANIFEST)


def _remove_tree(place: Path) -> None:
    import shutil

    shutil.rmtree(place, ignore_errors=True)


def _pointer(name: str, inputs: str, cache: Path) -> Path:
    # No cryptographic hash, whose library takes milliseconds to load: `_load` compares.
    return cache / "images" / f"{name}-{binascii.crc32(inputs.encode()):08x}.json"


def _load(pointer: Path, inputs: str, cache: Path) -> BootFiles | None:
    """Return the image that `pointer` names, or None when anything about it is amiss."""
    try:
        found = json.loads(pointer.read_text())
        if found["recipe"] != inputs:
            return None
        digest = found["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _read(cache / "images" / str(digest))


def _load_noted(note: Path, sources: str, cache: Path) -> BootFiles | None:
    """Return the image of the pointer that is noted for `sources`, as `_load` does."""
    try:
        told = json.loads(note.read_text())
        if told["sources"] != sources:
            return None
        digest = json.loads((note.parent / Path(told["pointer"]).name).read_text())["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _read(cache / "images" / str(digest))


def _read(place: Path) -> BootFiles | None:
    try:
        manifest = json.loads((place / _MANIFEST).read_text())
        image = BootFiles(
            name=manifest["name"],
            digest=place.name,
            kernel=place / "vmlinuz",
            initrd=place / "initrd",
            command_line=manifest["command_line"],
            packages=tuple(manifest["packages"]),
            size=sum(manifest["sizes"].values()),
        )
        whole = all((place / n).stat().st_size == size for n, size in manifest["sizes"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return image if whole else None


def _build(recipe: Recipe, cache: Path, progress: Progress, refresh: bool) -> str:
    """Put the image together and return its digest."""
    import hashlib

    from ringzero.image import archives

    apt = archives.debian(
        architecture=recipe.architecture, suite=recipe.suite, cache=cache, progress=progress
    )
    if refresh:
        apt.refresh(max_age=0)
    kernel_name = real_kernel(apt, recipe.kernel)
    packages = apt.resolve([kernel_name], dependencies=False)
    packages += apt.resolve(["busybox-static"], dependencies=False)
    if recipe.packages:
        chosen = {package.name for package in packages}
        # With real programs there goes a real shell: busybox's prefers its own.
        resolved = apt.resolve([*recipe.packages, "dash"])
        packages += [package for package in resolved if package.name not in chosen]
    paths = apt.download(packages)
    for name in recipe.foreign:
        base, _, architecture = name.partition(":")
        other = archives.debian(architecture=architecture, cache=cache, progress=progress)
        foreign = other.resolve([base], dependencies=False)
        packages += foreign
        paths += other.download(foreign)
    inputs = json.dumps([recipe.digest(), [p.sha256 for p in packages]])
    digest = hashlib.sha256(inputs.encode()).hexdigest()[:24]
    place = cache / "images" / digest
    if _read(place) is not None:
        return digest
    _remove_tree(place)
    # Less will not do: the kernel, the modules of the smallest image, the packages unpacked. An
    # image that takes more and does not fit is told when it is written.
    size = 14 * MIB + 2 * sum(path.stat().st_size for path in paths[1:])
    require_space(place.parent, size, f"the image {recipe.name}")
    with progress.step(f"building the image {recipe.name}"), atomic_directory(place) as work:
        kernel, modules = split_kernel(paths[0])
        tree = _tree(paths[1 : len(paths) - len(recipe.foreign)], modules)
        for path in paths[len(paths) - len(recipe.foreign) :]:
            _add_foreign(tree, path)
        (work / "vmlinuz").write_bytes(kernel)
        with (work / "initrd").open("wb") as file:
            tree.write_cpio(file)
        manifest = {
            "name": recipe.name,
            "command_line": COMMAND_LINE,
            "packages": [f"{p.name}={p.version}" for p in packages],
            "sizes": {n: (work / n).stat().st_size for n in ("vmlinuz", "initrd")},
        }
        (work / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return digest


def real_kernel(apt: Archive, name: str) -> str:
    """Return the package that holds the kernel: `name`, or what the meta package depends on."""
    for needed in apt.depends(name):
        if needed.startswith("linux-image-"):
            return needed
    return name


def split_kernel(package: Path) -> tuple[bytes, Mapping[str, Module]]:
    """Return the kernel file and all modules of a Debian kernel package."""
    from ringzero.image import deb
    from ringzero.image.modules import canonical

    kernel = b""
    packed: dict[str, tuple[str, bytes]] = {}
    for info, data in deb.files(package):
        path = info.name.removeprefix("./")
        if path.startswith("boot/vmlinuz-"):
            kernel = data
        elif ".ko" in path and info.isreg():
            packed[canonical(path)] = path, data
    if not kernel:
        raise GuestImageError(f"{package.name} holds no kernel", path=package)
    return kernel, _Modules(packed)


class _Modules(Mapping[str, "Module"]):
    """A package's modules by name, each unpacked when it is asked for: few of thousands are."""

    def __init__(self, packed: dict[str, tuple[str, bytes]]) -> None:
        self._packed = packed
        self._plain: dict[str, Module] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._packed

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def __getitem__(self, name: str) -> Module:
        from ringzero.image.modules import Module

        found = self._plain.get(name)
        if found is None:
            path, data = self._packed[name]
            found = Module(name, path.removesuffix(".xz"), plain(path, data))
            self._plain[name] = found
        return found


def plain(path: str, data: bytes) -> bytes:
    """Return a module's content uncompressed and unsigned, as the guest loads it fastest."""
    from ringzero.image.modules import unsigned

    if path.endswith(".xz"):
        import lzma

        data = lzma.decompress(data)
    return unsigned(data)


def _tree(packages: Sequence[Path], modules: Mapping[str, Module]) -> Rootfs:
    from ringzero.image.guest import become, enter, identity, launch, relay, runner, static_net
    from ringzero.image.modules import with_dependencies
    from ringzero.image.rootfs import Rootfs

    tree = Rootfs()
    for path in packages:
        tree.add_package(path)
    for name in ("dev", "proc", "sys", "run", "tmp", "mnt", "root", "etc"):
        tree.add_directory(name, mode=0o1777 if name == "tmp" else 0o755)
    tree.add_device("dev/console", "c", 5, 1, mode=0o600)
    tree.add_device("dev/null", "c", 1, 3, mode=0o666)
    tree.add_file("init", script("init"), mode=0o755)
    tree.add_file("sbin/dhcp", script("dhcp"), mode=0o755)
    tree.add_file("sbin/share", script("share"), mode=0o755)
    tree.add_file("sbin/execute", script("execute"), mode=0o755)
    tree.add_file("sbin/static-net", static_net.build(), mode=0o755)
    tree.add_file("sbin/identity", identity.build(), mode=0o755)
    tree.add_file("sbin/enter", enter.build(), mode=0o755)
    tree.add_file("sbin/become", become.build(), mode=0o755)
    tree.add_file("sbin/launch", launch.build(), mode=0o755)
    tree.add_file("sbin/relay", relay.build(), mode=0o755)
    tree.add_file("sbin/runner", runner.build(), mode=0o755)
    busybox = tree["bin/busybox"].data
    for applet in applets(busybox):
        if f"bin/{applet}" not in tree and f"sbin/{applet}" not in tree:
            tree.add_link(f"bin/{applet}", "busybox")
    for name, text in _ETC.items():
        if name not in tree:
            tree.add_file(name, text.encode())
    add_modules(tree, with_dependencies(MODULES, modules))
    return tree


def add_modules(tree: Rootfs, wanted: Sequence[Module]) -> str:
    """Put modules into a tree, with modules.dep; return the directory of it, "/" at the end."""
    from ringzero.image.modules import dependency_file

    for module in wanted:
        tree.add_file(module.path, module.data)
    if not wanted:
        return ""
    # [usr/]lib/modules/RELEASE/kernel/...; modules.dep has paths from RELEASE on.
    base = wanted[0].path.partition("/kernel/")[0] + "/"
    tree.add_file(f"{base}modules.dep", dependency_file(wanted).replace(base, "").encode())
    return base


_ETC = {
    "etc/passwd": "root::0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/hostname": "micro\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/profile": "export PS1='root@\\h:\\w\\$ '\n",
    "etc/os-release": 'NAME="ringzero micro"\nID=ringzero\nPRETTY_NAME="ringzero micro"\n',
}


def _add_foreign(tree: Rootfs, path: Path) -> None:
    """Put the programs of another architecture's package into /opt/<architecture>."""
    from ringzero.image import deb

    architecture = path.stem.rsplit("_", 1)[-1]
    for info, data in deb.files(path):
        name = info.name.removeprefix("./")
        if info.isreg() and info.mode & 0o111:
            tree.add_file(f"opt/{architecture}/{name}", data, mode=info.mode & 0o7777)


def applets(busybox: bytes) -> list[str]:
    """Return the names of the commands in a busybox program.

    They stand in it as one sorted run of strings that begins with "[" and ends
    with an empty one; reading them there works for every architecture.
    """
    start = busybox.find(b"[\0[[\0")
    end = busybox.find(b"\0\0", start)
    if start < 0 or end < 0:
        raise GuestImageError("the busybox package holds no busybox that is understood")
    names = [name.decode("ascii", "replace") for name in busybox[start:end].split(b"\0")]
    return [name for name in names if "/" not in name]


def script(name: str) -> bytes:
    """Return a script of those that run in guests."""
    return (Path(__file__).parent / "guest" / name).read_bytes()
