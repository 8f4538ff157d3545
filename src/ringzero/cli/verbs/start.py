"""`ringzero start`: start machines again."""

from ringzero.cli.action_verb import MachineVerb
from ringzero.cli.verb import VERBS


@VERBS.register("start")
class Start(MachineVerb):
    action = "start"
    summary = "start machines again that have ended, as they were described"
    examples = """\
  ringzero start web
"""
