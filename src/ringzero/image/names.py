"""The images that a machine can be built from by name: `Machine(image="micro")`.

Images are made by a layer above this one. Each is a module of
`ringzero.image.catalog`, which the registry loads when its name is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ringzero.host.progress import QUIET, Progress
from ringzero.registry import Registry

if TYPE_CHECKING:
    from ringzero.api.values import HealthCheck
    from ringzero.image.machinespec import MachineSpec


class BootFiles(Protocol):
    """What a boot needs: kernel and initrd files, and the kernel's command line; or disks."""

    @property
    def name(self) -> str:
        """The image's name."""
        ...

    @property
    def digest(self) -> str:
        """Hexadecimal digits that change with anything that a boot reads of the image."""
        ...

    @property
    def kernel(self) -> Path | None:
        """A bzImage or vmlinux; None where the first of `disks` has it."""
        ...

    @property
    def initrd(self) -> Path | None:
        """The initial RAM disk, whose /init speaks the protocol of `ringzero.vm.guest.protocol`."""
        ...

    @property
    def command_line(self) -> str:
        """The kernel's command line."""
        ...

    @property
    def root(self) -> Path | None:
        """An EROFS image whose tree becomes the guest's root; None: the initrd is the root."""
        ...

    @property
    def disks(self) -> Sequence[Path]:
        """The disks of an imported machine, which boots from the first (qcow2); none of others."""
        ...

    @property
    def machine(self) -> MachineSpec | None:
        """What of the machine the image asks for; None for nothing."""
        ...

    @property
    def health(self) -> HealthCheck | None:
        """What tells whether the image's program is well; None where nothing is asked."""
        ...

    def words(self, command: Sequence[str], entrypoint: str | None = None) -> list[str]:
        """Return what to run: `command`, or what the image says; empty for a shell."""
        ...


class ImageMaker(Protocol):
    """Returns an image's files from the cache, making them first if need be."""

    def __call__(self, *, progress: Progress = QUIET, refresh: bool = False) -> BootFiles:
        """`refresh` asks for newer packages. Raises HostError, NotFoundError, GuestImageError."""
        ...


IMAGES: Registry[ImageMaker] = Registry("image", "ringzero.image.catalog")


def is_here(name: str) -> bool:
    """Whether no registry has to be asked for the image called `name`.

    Raises InvalidValueError for what can be no image's name.
    """
    if name in IMAGES:
        return True
    from ringzero.image.oci import boot

    return boot.is_here(name)


def find(name: str) -> ImageMaker:
    """Return what makes the image called `name`: one of ours, or a container's.

    Raises InvalidValueError for what can be no image's name.
    """
    if name in IMAGES:
        return IMAGES.get(name)
    from ringzero.image.oci import boot, reference

    reference.parse(name)
    return partial(boot.find, name)
