"""Puts compiled engines into a wheel, where `make wheel` has made them: see docs/soft.md.

RINGZERO_WHEEL_ENGINES names a directory with a directory for each target. Without it the
wheel is pure Python, and its users compile the engine at their first start.
"""

from __future__ import annotations

import os
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The engines refer to nothing of the host's libraries: musl's hosts load them as glibc's do.
TAG = "py3-none-manylinux_2_17_x86_64.musllinux_1_1_x86_64"


class EngineHook(BuildHookInterface[Any]):
    """Hatchling's custom build hook."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the engines to what is built, unless the package is installed in place."""
        engines = os.environ.get("RINGZERO_WHEEL_ENGINES")
        if engines and version != "editable":
            build_data["force_include"][engines] = "ringzero/_engine"
            build_data["pure_python"] = False
            build_data["tag"] = TAG
