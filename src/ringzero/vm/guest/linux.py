"""What a Linux guest says of its own end on its serial line."""

from __future__ import annotations

# How every Linux begins its last words.
PANIC_MARK = "Kernel panic - not syncing"
# What Linux says before it reboots, by a triple fault if it was told reboot=t.
RESTART_MARK = "reboot: Restarting system"
# The restart is the last line, but for what a driver may say after it, in characters.
_RESTART_WITHIN = 200


def panicked(said: str) -> bool:
    """Whether the end of the serial line tells of a panic."""
    return PANIC_MARK in said


def restarted(said: str) -> bool:
    """Whether the serial line ends with an orderly reboot."""
    return RESTART_MARK in said[-_RESTART_WITHIN:]


def panic_cause(said: str) -> str:
    """Return the cause that the last panic in `said` names, in one line; "" where none does."""
    _, found, rest = said.rpartition(PANIC_MARK)
    return rest.partition("\n")[0].strip(": ") if found else ""
