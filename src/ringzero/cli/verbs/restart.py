"""`ringzero restart`: stop machines and start them again."""

from ringzero.cli.action_verb import MachineVerb
from ringzero.cli.verb import VERBS


@VERBS.register("restart")
class Restart(MachineVerb):
    action = "restart"
    summary = "stop machines that run, and start them again"
    examples = """\
  ringzero restart web
  ringzero restart --timeout 60 db
"""
