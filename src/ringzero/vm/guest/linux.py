"""What a Linux guest says of its own end on its serial line."""

from __future__ import annotations

import re

# Colours and other sequences that systemd writes.
ESCAPES = r"\x1b\[[0-9;?]*[A-Za-z]"
# Beside a few words of our own, in characters.
_LONGEST_SHOWN = 100
# How every Linux begins its last words.
PANIC_MARK = "Kernel panic - not syncing"
# What Linux says before it reboots, by a triple fault if it was told reboot=t.
RESTART_MARK = "reboot: Restarting system"
# The restart is the last line, but for what a driver may say after it, in characters.
_RESTART_WITHIN = 200
# How many lines of a bad end are shown.
LAST_LINES = 20
# The panic and its cause, and not the line "---[ end Kernel panic ..." behind it.
_PANIC = rf"(?<!end ){PANIC_MARK}(.*)"
# How Linux begins to tell of a fault that it may panic of, on x86 and elsewhere; and how many
# lines of registers and stacks there are between the two at most.
_FAULT = (
    r"\] (BUG: |Oops: |general protection fault|Unable to handle|Internal error: |kernel BUG at "
    r"|divide error: |VFS: Cannot open root|VFS: Unable to mount root)"
)
_FAULT_WITHIN = 120


def panicked(said: str) -> bool:
    """Whether the end of the serial line tells of a panic."""
    return PANIC_MARK in said


def restarted(said: str) -> bool:
    """Whether the serial line ends with an orderly reboot."""
    return RESTART_MARK in said[-_RESTART_WITHIN:]


def panic_cause(said: str) -> str:
    """Return the cause that the last panic in `said` names, in one line; "" where none does."""
    found = re.findall(_PANIC, said)
    return str(found[-1]).strip(": \r") if found else ""


def last_line(said: bytes) -> str:
    """Return the last line of what a serial line has said, for a person, without colours."""
    text = re.sub(ESCAPES, "", said.decode("utf-8", "replace").replace("\r", "\n"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    shown = "".join(c if c.isprintable() else "?" for c in lines[-1]) if lines else ""
    return shown[:_LONGEST_SHOWN]


def last_words(said: str, lines: int = LAST_LINES) -> str:
    """Return the end of what the serial line said, for a person: at most so many lines.

    After a panic they begin with its cause, which may be a fault that stands before it; the
    registers and stacks that follow are what is cut.
    """
    shown = [line for line in said.replace("\r", "").splitlines() if line.strip()]
    cause = _cause_line(shown)
    return "\n".join(shown[-lines:] if cause is None else shown[cause : cause + lines])


def _cause_line(lines: list[str]) -> int | None:
    """Return the index of the line with which the last panic began, if there was one."""
    panic = next((n for n in reversed(range(len(lines))) if re.search(_PANIC, lines[n])), None)
    if panic is None:
        return None
    before = range(max(0, panic - _FAULT_WITHIN), panic)
    return next((n for n in before if re.search(_FAULT, lines[n])), panic)
