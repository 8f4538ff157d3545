"""What of a jail this host allows: found by trying, in a process of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ringzero.host.jail import confine, landlock
from ringzero.host.jail.confine import Needs, Part
from ringzero.host.jail.landlock import Grant


def probe() -> list[Part]:
    """Return the parts of the strictest jail, and whether they hold here; changes nothing here."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            found = confine.confine(Needs((Grant(Path(os.devnull), landlock.READ),), alone=True))
            text = json.dumps([[part.name, part.holds, part.detail] for part in found])
            os.write(writing, text.encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as file:
            text = file.read().decode()
    finally:
        os.waitpid(child, 0)
    return [Part(*values) for values in json.loads(text or "[]")]
