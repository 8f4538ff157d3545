"""`ringzero rename`: give a machine another name."""

from collections.abc import Mapping
from typing import ClassVar

from ringzero.cli.action_verb import MachineVerb
from ringzero.cli.verb import VERBS


@VERBS.register("rename")
class Rename(MachineVerb):
    action = "rename"
    several = False
    metavars: ClassVar[Mapping[str, str]] = {"name": "NEW"}
    examples = """\
  ringzero rename web web-old
"""
