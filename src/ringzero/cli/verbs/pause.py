"""`ringzero pause`: stop machines where they are."""

from ringzero.cli.action_verb import MachineVerb
from ringzero.cli.verb import VERBS


@VERBS.register("pause")
class Pause(MachineVerb):
    action = "pause"
    summary = "stop machines where they are, until `resume`"
    examples = """\
  ringzero pause web
"""
