"""`ringzero stop`: switch machines off in order."""

from ringzero.cli.action_verb import MachineVerb
from ringzero.cli.verb import VERBS


@VERBS.register("stop")
class Stop(MachineVerb):
    action = "stop"
    summary = "have machines switch themselves off"
    examples = """\
  ringzero stop web
  ringzero stop --timeout 60 db      a minute for its disks, then the power goes
"""
