"""An image of the store as what a machine boots.

A container's is a root, with its own kernel or the default guest's; an imported machine has disks,
with all that it boots on the first of them.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from ringzero.api.values import HealthCheck
from ringzero.digest import blake2b
from ringzero.errors import InvalidValueError
from ringzero.host.progress import QUIET, Progress
from ringzero.image import micro
from ringzero.image.machinespec import MachineSpec
from ringzero.image.oci.reference import Local, Reference, parse
from ringzero.image.oci.store import FORMAT, Store, StoredImage
from ringzero.records import record, replace
from ringzero.settings import CACHE_DIR, IMAGE_POLICY


@record
class ContainerFiles:
    """What a direct boot needs, and the image whose tree becomes the guest's root."""

    name: str
    kernel: Path
    initrd: Path
    command_line: str
    image: StoredImage
    # Of the image whose kernel and initrd these are.
    base: str

    @property
    def digest(self) -> str:
        """Of all that boots: the image's manifest, how its root is written, kernel and initrd.

        The same wherever the image came from, and by whichever name.
        """
        inputs = f"{self.image.digest} {FORMAT} {self.base}"
        return blake2b(inputs.encode(), digest_size=12).hexdigest()

    @property
    def root(self) -> Path:
        """The EROFS image with the guest's root."""
        return self.image.root

    @property
    def disks(self) -> tuple[Path, ...]:
        """None: it boots from files."""
        return ()

    @property
    def machine(self) -> MachineSpec:
        """What of the machine the image asks for."""
        return self.image.machine

    @property
    def health(self) -> HealthCheck | None:
        """What tells whether the image's program is well."""
        return self.image.health

    def words(self, command: Sequence[str], entrypoint: str | None = None) -> list[str]:
        """Return the program to run, and its words, by Docker's rules.

        `command` stands for the image's own; an `entrypoint`, of several words perhaps, leaves
        out the image's command, too. Raises InvalidValueError where there is nothing to run.
        """
        first, default = self.image.entrypoint, self.image.cmd
        if entrypoint is not None:
            try:
                first, default = tuple(shlex.split(entrypoint)), ()
            except ValueError as fault:
                raise InvalidValueError(f"--entrypoint {entrypoint!r}: {fault}") from fault
        words = [*first, *(command or default)]
        if not words and self.machine.services:
            # They are what it runs.
            return []
        if not words:
            raise InvalidValueError(
                f"the image {self.image.name} does not say what to run",
                hint=f"ringzero run {self.image.name} -- CMD",
            )
        return words


@record
class DiskFiles:
    """An imported machine, whose first disk has the kernel that it boots."""

    name: str
    image: StoredImage
    kernel: None = None
    initrd: None = None
    command_line: str = ""
    root: None = None
    health: None = None

    @property
    def digest(self) -> str:
        """Of its manifest, in hexadecimal digits."""
        return self.image.digest.partition(":")[2]

    @property
    def disks(self) -> tuple[Path, ...]:
        """Its disks, to which nobody writes: a machine has an overlay on each."""
        return self.image.disks

    @property
    def machine(self) -> MachineSpec:
        """What of the machine the imported one had."""
        return self.image.machine

    def words(self, command: Sequence[str], entrypoint: str | None = None) -> list[str]:
        """Return `command`; without one its own system runs. Raises InvalidValueError."""
        if entrypoint is not None:
            raise InvalidValueError(
                f"{self.image.name} is an imported machine, and has no entrypoint",
                hint="give the command behind --",
            )
        return list(command)


def find(
    text: str,
    *,
    progress: Progress = QUIET,
    refresh: bool = False,
    opened: Callable[[Callable[[], object]], object] = lambda close: None,
) -> ContainerFiles | DiskFiles:
    """Return the files of the image called `text`; it is pulled where it is not in the store.

    With `refresh` it is pulled in any case. What lies on this machine's disk is read again each
    time. `opened` is as in `pull`. Raises InvalidValueError, NotFoundError, HostError,
    GuestImageError, SignatureError.
    """
    name = absolute(parse(text))
    cache = CACHE_DIR.get()
    image = None
    if isinstance(name, Reference) and not refresh:
        image = Store(cache).named(name)
    if image is None:
        from ringzero.image.oci.pull import pull

        image = pull(name, cache=cache, progress=progress, opened=opened)
    elif IMAGE_POLICY.get() is not None:
        from ringzero.image.oci.signing import admission

        admission.check(image, name)
    if image.disks:
        return DiskFiles(machine_name(name), image)
    return files(machine_name(name), image, progress=progress)


def files(name: str, image: StoredImage, *, progress: Progress = QUIET) -> ContainerFiles:
    """Return what a machine called `name` boots that runs a container's image of the store.

    Raises InvalidValueError for an imported machine.
    """
    if image.disks:
        raise InvalidValueError(
            f"{image.name} is an imported machine, whose own system runs, and no container's image",
            hint=f"ringzero run {image.name}",
        )
    base = micro.ensure(cache=CACHE_DIR.get(), progress=progress)
    kernel, initrd = base.kernel, base.initrd
    if image.machine.kernel is not None:
        from ringzero.image.oci import ownkernel

        kernel, initrd = ownkernel.ensure(image, base, progress=progress)
    return ContainerFiles(name, kernel, initrd, base.command_line, image, base.digest)


def imported(text: str) -> DiskFiles | None:
    """Return the imported machine called `text`, where it is in the store.

    Raises InvalidValueError for what can be no image's name, SignatureError.
    """
    name = parse(text)
    image = Store(CACHE_DIR.get()).named(name) if isinstance(name, Reference) else None
    if image is None or not image.disks:
        return None
    found = find(text)
    return found if isinstance(found, DiskFiles) else None


def is_here(text: str) -> bool:
    """Whether no registry is asked for the image called `text`. Raises InvalidValueError."""
    name = parse(text)
    return isinstance(name, Local) or Store(CACHE_DIR.get()).named(name) is not None


def absolute(name: Reference | Local) -> Reference | Local:
    """Return the same with a path that means the same in every directory."""
    return replace(name, path=name.path.absolute()) if isinstance(name, Local) else name


def machine_name(name: Reference | Local) -> str:
    """Return what a machine and its guest are called that run an image."""
    path = name.path.rpartition("/")[2] if isinstance(name, Reference) else name.path.stem
    text = "".join(c if c.isascii() and c.isalnum() else "-" for c in path)
    return text.strip("-")[:60] or "machine"
