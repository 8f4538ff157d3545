"""What can be known of the death of a machine's process that left no word of it."""

from __future__ import annotations

import re
from pathlib import Path

from ringzero.control.host.records import ProcessRecord
from ringzero.host.process import boot_id, oom_kills

# What `faulthandler` writes first.
_FATAL = re.compile(r"^Fatal Python error: (.*)$", re.MULTILINE)


def cause_of_death(process: ProcessRecord | None, log: str, where: Path) -> str:
    """Return why `process` died, for people; `log` is the end of its log, which is at `where`."""
    if process is None:
        return "the command that started it was killed before the machine ran"
    if process.boot != boot_id():
        return "the host was restarted"
    fatal = _FATAL.search(log)
    if fatal is not None:
        return f"its process crashed: {fatal[1]} ({where})"
    kills = oom_kills(process.cgroup)
    if kills is not None and process.oom_kills is not None and kills > process.oom_kills:
        return "its process was killed, probably because memory ran out"
    return "its process was killed (kill -9, or the host ran out of memory)"
