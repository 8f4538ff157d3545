"""How the process ends, in numbers (Firecracker's FcExitCode)."""

from __future__ import annotations

OK, GENERIC, BAD_CONFIGURATION, ARGUMENTS = 0, 1, 152, 153
