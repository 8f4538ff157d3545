"""How a machine ended, in the name that its directory has while it is removed.

Whoever watches the machines hears of that name, however late: the files may be gone by then.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from ringzero.api.values import ExitRecord

# What is left of a name of 255 bytes (NAME_MAX) beside the prefix and the random digits.
_LONGEST = 224


def name_of_removed(prefix: str, digits: str, ended: ExitRecord | None) -> str:
    """Return a directory's name that begins with `prefix` and `digits` and tells the end."""
    return prefix + digits + ("" if ended is None else _written(ended))


def end_of_removed(path: Path) -> ExitRecord | None:
    """Return how the machine ended whose directory was renamed to `path`, or None."""
    _, found, text = path.name.partition("[")
    with contextlib.suppress(ValueError, TypeError):
        return ExitRecord(*json.loads(found + text))
    return None


def _written(ended: ExitRecord) -> str:
    detail = ended.detail[:_LONGEST]
    while True:
        facts = (ended.reason, detail, ended.exit_code, ended.time)
        # JSON is ASCII here, and a slash is the only character of it that no name may have.
        text = json.dumps(facts, separators=(",", ":")).replace("/", "\\u002f")
        if len(os.fsencode(text)) <= _LONGEST or not detail:
            return text
        detail = detail[:-8]
