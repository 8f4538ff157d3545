"""`ringzero snapshot`: machines written down, to go on from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringzero.cli.verb import AS_IS, VERBS, Away, Group, Verb

if TYPE_CHECKING:
    from ringzero.registry import Registry


@VERBS.register("snapshot")
class Snapshot(Group):
    summary = "save machines as they are, and go on from there"
    away = Away(AS_IS)
    examples = """\
  ringzero snapshot save web ready             the machine web, as it is now, runs on
  ringzero snapshot tree
  ringzero snapshot restore ready --name web2  another machine that goes on from there
  ringzero snapshot export ready ready.rzs

`ringzero snapshot COMMAND --help` tells more.
"""

    def commands(self) -> Registry[type[Verb]]:
        from ringzero.cli.snapshot_action import ACTIONS

        return ACTIONS
