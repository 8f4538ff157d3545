"""`ringzero kill`: end machines at once."""

from ringzero.cli.action_verb import MachineVerb
from ringzero.cli.verb import VERBS


@VERBS.register("kill")
class Kill(MachineVerb):
    action = "kill"
    summary = "end machines at once, as if the power had failed"
    examples = """\
  ringzero kill web
"""
