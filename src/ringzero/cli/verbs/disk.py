"""`ringzero disk`: make, look at, convert and mend disk images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringzero.cli.verb import REFUSED, VERBS, Away, Group, Verb

if TYPE_CHECKING:
    from ringzero.registry import Registry


@VERBS.register("disk")
class Disk(Group):
    summary = "make, look at, convert and mend disk images"
    away = Away(REFUSED, why="it works on files: run it on the host that has them")
    examples = """\
  ringzero disk create -f qcow2 disk.qcow2 20G
  ringzero disk info disk.qcow2
  ringzero disk convert -O vhdx disk.vmdk disk.vhdx
  ringzero disk compare disk.vmdk disk.vhdx

Names and options are those of qemu-img. `ringzero disk COMMAND --help` tells more.
"""

    def split(self, words: list[str]) -> tuple[list[str], None]:
        """Return the words as they are: behind "--" stand names of files, and no command."""
        return words, None

    def commands(self) -> Registry[type[Verb]]:
        from ringzero.cli.disk_action import ACTIONS

        return ACTIONS
