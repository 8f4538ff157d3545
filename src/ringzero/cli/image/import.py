"""`ringzero image import`."""  # noqa: N999 - an action is called like its module

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ringzero.cli.image_action import ACTIONS, add_json, show
from ringzero.cli.verb import CARRIED, SENT, Away, Verb


@ACTIONS.register("import")
class Import(Verb):
    summary = "bring a machine of another system, a disk or a tar of files into the store"
    away = Away(CARRIED, files={"file": SENT})
    examples = """\
  ringzero image import web.ova                   web:latest; then: ringzero run web
  ringzero image import debian.box deb:12         Vagrant's: libvirt, VirtualBox, VMware
  ringzero image import "Web Server.vmx" web:1    also .vbox, .ovf
  ringzero image import cloud.qcow2               also raw, vmdk, vhd, vhdx, vdi; .xz, .gz, .zst
  ringzero image import web.ova --memory 4G --cpus 4
  ringzero image import rootfs.tar.xz base:1      a system's files: an image of containers

Memory, CPUs and network interfaces are those that the file tells of. Each machine of the image
writes on disks of its own; one with a name keeps them until `ringzero rm`.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("file", metavar="FILE", help="OVA, OVF, .box, .vmx, .vbox, a disk image, or a tar")
        add("name", metavar="NAME", nargs="?", help="NAME[:TAG] (default: the file's own)")
        add("--memory", metavar="SIZE", help="of its machines (default: what the file says)")
        add("--cpus", type=int, metavar="N", help="the same")
        add("--quiet", "-q", action="store_true", help="show no progress")
        add_json(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.errors import InvalidValueError
        from ringzero.host.progress import QUIET, Progress
        from ringzero.image.machinespec import MOST_CPUS
        from ringzero.image.names import IMAGES
        from ringzero.image.oci.importing import import_file
        from ringzero.image.oci.loading import stem
        from ringzero.image.oci.reference import parse_reference
        from ringzero.settings import CACHE_DIR
        from ringzero.units import parse_size

        path = Path(arguments.file)
        name = arguments.name or stem(path.name)
        if name in IMAGES:
            raise InvalidValueError(
                f"{name} is an image of ringzero's own", hint="give another name behind the file"
            )
        if arguments.cpus is not None and not 0 < arguments.cpus <= MOST_CPUS:
            raise InvalidValueError(f"a machine has 1 to {MOST_CPUS} CPUs, not {arguments.cpus}")
        found = import_file(
            path,
            [parse_reference(name)],
            cache=CACHE_DIR.get(),
            memory=parse_size(arguments.memory) if arguments.memory else None,
            cpus=arguments.cpus,
            progress=QUIET if arguments.quiet else Progress(),
        )
        for note in found.notes:
            print(f"ringzero: {path}: {note}: `run` will not boot it", file=sys.stderr)
        show([found.image.summary()], as_json=arguments.json)
        return 0
