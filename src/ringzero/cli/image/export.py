"""`ringzero image export`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ringzero.cli.image_action import ACTIONS, add_image, add_json, one
from ringzero.cli.verb import CARRIED, FETCHED, Away, Verb, print_json

if TYPE_CHECKING:
    from ringzero.image.oci.store import StoredImage

_FORMATS = ("tar", "raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi", "ova", "box")


@ACTIONS.register("export")
class Export(Verb):
    summary = "write an image's files as a tar, or as a disk that boots by itself"
    away = Away(CARRIED, files={"file": FETCHED})
    examples = """\
  ringzero image export web:1 web.tar         its files, its layers merged
  ringzero image export web:1 - | tar -t
  ringzero image export web:1 web.qcow2       a disk for QEMU, libvirt, OpenStack
  ringzero image export web:1 web.ova --memory 2G --cpus 2    for VMware and VirtualBox
  ringzero image export web:1 web.vhdx --size 20G             for Hyper-V
  ringzero image export web:1 web.box --provider virtualbox   for Vagrant

A disk has Debian's kernel and GRUB, for a BIOS and for UEFI, and runs the image's services and
program. `ringzero run --disk FILE` boots it, too.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add_image(parser)
        add("file", metavar="FILE|-", help="- is standard output (tar)")
        add("--format", choices=_FORMATS, metavar="FORMAT",
            help=f"{', '.join(_FORMATS)} (default: by the suffix, or tar)")  # fmt: skip
        add("--size", metavar="SIZE", help="of the disk (default: 1G free)")
        add("--memory", metavar="SIZE", help="of an OVA's or box's machine (default: the image's)")
        add("--cpus", type=int, metavar="N", help="the same")
        add("--provider", choices=("libvirt", "virtualbox"), help="of a box (default: libvirt)")
        add("--force", action="store_true", help="overwrite a disk that is there")
        add("--refresh", action="store_true", help="ask for a newer kernel")
        add_json(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.errors import InvalidValueError
        from ringzero.image.export import formats

        image = one(arguments.name)
        kind = arguments.format or formats.by_name(arguments.file) or "tar"
        if kind != "tar":
            return _disk(image, arguments, kind)
        given = (arguments.size, arguments.memory, arguments.cpus, arguments.provider)
        if any(value is not None for value in given):
            raise InvalidValueError(
                "a tar has no size, memory, cpus or provider",
                hint="these are of disks: --format qcow2, ova ...",
            )
        return _tar(image, arguments)


def _disk(image: StoredImage, arguments: argparse.Namespace, kind: str) -> int:
    from ringzero.errors import InvalidValueError
    from ringzero.host.progress import Progress
    from ringzero.image.export import formats
    from ringzero.settings import CACHE_DIR
    from ringzero.units import parse_size

    if arguments.file == "-":
        raise InvalidValueError(f"{kind} is not written to standard output", hint="name a file")
    if arguments.cpus is not None and not 0 < arguments.cpus <= 255:
        raise InvalidValueError(f"a machine has 1 to 255 CPUs, not {arguments.cpus}")
    if arguments.provider and kind != "box":
        raise InvalidValueError(f"{kind} has no provider", hint="that is of boxes: --format box")
    wishes = formats.Wishes(
        size=parse_size(arguments.size) if arguments.size else None,
        memory=parse_size(arguments.memory) if arguments.memory else None,
        cpus=arguments.cpus,
        provider=arguments.provider or formats.PROVIDERS[0],
        overwrite=arguments.force,
        refresh=arguments.refresh,
    )
    target = Path(arguments.file)
    cache, progress = CACHE_DIR.get(), Progress()
    size = formats.export(image, target, kind, wishes, cache=cache, progress=progress)
    if arguments.json:
        told = {"path": arguments.file, "format": kind, "disk_size": size}
        print_json({**told, "size": target.stat().st_size})
    return 0


def _tar(image: StoredImage, arguments: argparse.Namespace) -> int:
    from ringzero.build.flatten import flatten
    from ringzero.host.files import atomic_file, host_error
    from ringzero.host.progress import Progress
    from ringzero.settings import CACHE_DIR

    cache = CACHE_DIR.get()
    if arguments.file == "-":
        flatten(image, sys.stdout.buffer, cache=cache, progress=Progress())
        sys.stdout.buffer.flush()
        return 0
    path = Path(arguments.file)
    try:
        with atomic_file(path) as file:
            made = flatten(image, file, cache=cache, progress=Progress())
    except OSError as fault:
        raise host_error(fault, "write", path) from fault
    if arguments.json:
        print_json({"path": arguments.file, "digest": made.digest, "size": made.size})
    return 0
