"""The process's entry: quiet under Ctrl-C from its first moment to its last.

While modules are loaded, and after the work is done, the signal ends the
process as it would end a program in C; in between it is a KeyboardInterrupt,
which `main` turns into an exit code.
"""

import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> int:
    """Run the command line of this process; return the exit code."""
    from ringzero.cli.main import main as run

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
