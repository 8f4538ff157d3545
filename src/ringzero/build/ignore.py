"""`.vmignore` and `.dockerignore`: which files of a build's directory do not belong to it.

Patterns as in Go's filepath.Match, with `**` for any number of directories; the last one that
fits decides, `!` takes files back in, and a directory that is left out takes its content along.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# The first that is there counts.
NAMES = (".vmignore", ".dockerignore")


class Ignore:
    """The patterns of one file; no file is none."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self._rules: list[tuple[bool, re.Pattern[str]]] = []
        for line in lines:
            text = line.strip()
            if not text or line.startswith("#"):
                continue
            back = text.startswith("!")
            parts = [p for p in text.removeprefix("!").strip().split("/") if p not in ("", ".")]
            if parts:
                expression = pattern("/".join(parts)) + r"(?:/.*)?"
                self._rules.append((back, re.compile(expression, re.DOTALL)))
        self.takes_back = any(back for back, _ in self._rules)

    def leaves_out(self, path: str) -> bool:
        """Whether `path`, relative to the directory, does not belong to the build."""
        out = False
        for back, expression in self._rules:
            if out == back and expression.fullmatch(path):
                out = not back
        return out


def pattern(text: str) -> str:
    """Return a pattern as a regular expression, without anchors; a bad class is literal."""
    found, at = [], 0
    while at < len(text):
        character = text[at]
        if text.startswith("**/", at):
            found.append("(?:.*/)?")
            at += 3
            continue
        if text.startswith("**", at):
            found.append(".*")
            at += 2
            continue
        if character == "*":
            found.append("[^/]*")
        elif character == "?":
            found.append("[^/]")
        elif character == "\\" and at + 1 < len(text):
            at += 1
            found.append(re.escape(text[at]))
        elif character == "[" and (match := _CLASS.match(text, at)):
            inside = re.sub(r"([\[\]&~|])", r"\\\1", match[2])
            found.append(f"[{'^' if match[1] else ''}{inside}]")
            at = match.end() - 1
        else:
            found.append(re.escape(character))
        at += 1
    return "".join(found)


_CLASS = re.compile(r"\[(\^?)((?:\\.|[^\]\\])+)\]")
