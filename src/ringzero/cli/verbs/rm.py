"""`ringzero rm`: remove machines."""

from collections.abc import Mapping
from typing import ClassVar

from ringzero.cli.action_verb import MachineVerb
from ringzero.cli.verb import VERBS


@VERBS.register("rm")
class Rm(MachineVerb):
    action = "remove"
    summary = "remove machines that ended, with what is kept of them"
    short: ClassVar[Mapping[str, str]] = {"force": "-f"}
    examples = """\
  ringzero rm web
  ringzero rm -f web      end it first
"""
