"""Whether standard input is ours to read; loads nothing."""

import os


def can_read_stdin() -> bool:
    """Tell whether standard input may be read: it is open, and not another job's terminal."""
    try:
        if os.isatty(0):
            return os.tcgetpgrp(0) == os.getpgrp()
        os.fstat(0)
    except OSError:
        return False
    return True
