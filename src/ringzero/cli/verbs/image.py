"""`ringzero image`: the guests' images in the cache, ringzero's own and those of containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringzero.cli.verb import AS_IS, VERBS, Away, Group, Verb

if TYPE_CHECKING:
    from ringzero.registry import Registry


@VERBS.register("image")
class Image(Group):
    summary = "build, list, compare, ship and remove guest images"
    away = Away(AS_IS)
    examples = """\
  ringzero image build -t web:1 .     from the Vmfile (or Dockerfile) of this directory
  ringzero image ls                   ours, and those of containers (`ringzero pull`)
  ringzero image inspect debian:12    what it runs, its layers, where its root file system is
  ringzero image history web:1        its steps, and the size of each one's layer
  ringzero image diff web:1 web:2     what was added, changed and removed
  ringzero image save web:1 ./layout  the OCI image layout, which `run oci:./layout` takes
  ringzero image prune                images without a name, and layers that none needs

`ringzero image COMMAND --help` tells more.
"""

    def commands(self) -> Registry[type[Verb]]:
        from ringzero.cli.image_action import ACTIONS

        return ACTIONS
