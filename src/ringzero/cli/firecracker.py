"""The program `ringzero-firecracker`: `ringzero firecracker` under a name of its own.

Clients start a program by a path, /usr/local/bin/firecracker most often: a link to this one.
"""

from __future__ import annotations

import sys

from ringzero.cli import entry
from ringzero.doors.firecracker.exitcodes import ARGUMENTS, BAD_CONFIGURATION, GENERIC
from ringzero.errors import InvalidValueError

# What ends by a signal has a code above.
_SIGNALS = 128


def main() -> int:
    """Run the command line of this process; return the exit code, one of Firecracker's."""
    sys.argv.insert(1, "firecracker")
    code = entry.main()
    if code == InvalidValueError.exit_code:
        return ARGUMENTS
    return code if code in (0, BAD_CONFIGURATION) or code > _SIGNALS else GENERIC


if __name__ == "__main__":
    sys.exit(main())
