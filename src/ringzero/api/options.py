"""What `Machine.run` takes: a module of its own, as to define it takes a millisecond."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypedDict


class RunOptions(TypedDict, total=False):
    """What `Machine.run` takes besides the command, as `subprocess.run` does."""

    input: bytes | str | None
    timeout: float | None
    env: Mapping[str, str] | None
    cwd: str | os.PathLike[str] | None
    user: str | None
    check: bool
