"""Texts and bytes of a guest's, as they may be shown on the user's terminal."""

from __future__ import annotations

import re

# What makes a terminal send an answer, which a shell then takes for what its user typed
# (ECMA-48, xterm's control sequences): ENQ; DECID; DA, DSR, DECREQTPARM, window reports,
# modes, kitty's keyboard; colours, clipboard and fonts asked for by OSC "?"; DCS and APC requests.
_QUERY = re.compile(
    rb"\x05"
    rb"|\x1bZ"
    rb"|\x1b\[[=>?<]?[0-9;]*c"
    rb"|\x1b\[\??[0-9;]*n"
    rb"|\x1b\[[0-9;]*x"
    rb"|\x1b\[(?:1[13-9]|2[01])(?:;[0-9]*)*t"
    rb"|\x1b\[\??[0-9;]*\$p"
    rb"|\x1b\[[?>][0-9;]*[uqm]"
    rb"|\x1b\][^\x07\x1b]*;\?[^\x07\x1b]*(?:\x07|\x1b\\)"
    rb"|\x1b\]52;[^\x07\x1b]*(?:\x07|\x1b\\)"
    rb"|\x1b[P_^X][^\x1b\x07]*(?:\x1b\\|\x07)"
)
# The beginning of a sequence at the end of what has come: it is held until the rest is there.
_BEGUN = re.compile(rb"(?:\x1b(?:\[[0-9;?<=>$]*|[\]P_^X][^\x07\x1b]*\x1b?)?|\xc2)\Z")
# The controls U+0080 to U+009F in UTF-8, which stand for ESC and the byte 64 below theirs.
_C1 = re.compile(rb"\xc2([\x80-\x9f])")
# Longer ones are no sequences: they are shown, without their first byte.
_LONGEST = 4096
# Everything in a text that a terminal does not print as itself, but for tabs and new lines.
_CONTROL = re.compile(
    r"\x1b\[[0-9;?<=>!$ ]*[@-~]|\x1b[\]P_^X][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


class TerminalFilter:
    """Takes out of a stream of bytes what would make a terminal type something."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return what may be shown of `data` and what was held before."""
        plain = _C1.sub(lambda found: bytes((0x1B, found[1][0] - 0x40)), self._held + data)
        clean = _QUERY.sub(b"", plain)
        begun = _BEGUN.search(clean)
        self._held = begun[0] if begun is not None else b""
        clean = clean[: len(clean) - len(self._held)]
        if len(self._held) > _LONGEST:
            clean, self._held = clean + self._held[1:], b""
        return clean

    def end(self) -> bytes:
        """Return what was held for a rest that did not come, harmless."""
        held, self._held = self._held, b""
        return held.lstrip(b"\x1b")


def printable(text: str) -> str:
    """Return a text of a guest's without what would control the user's terminal."""
    return _CONTROL.sub("", text)
