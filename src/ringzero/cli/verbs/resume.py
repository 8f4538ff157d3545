"""`ringzero resume`: let paused machines go on."""

from ringzero.cli.action_verb import MachineVerb
from ringzero.cli.verb import VERBS


@VERBS.register("resume")
class Resume(MachineVerb):
    action = "resume"
    summary = "let paused machines go on"
    examples = """\
  ringzero resume web
"""
