"""The process's entry: quiet under Ctrl-C from its first moment to its last.

While modules are loaded, and after the work is done, the signal ends the
process as it would end a program in C; in between `ringzero.cli.signals` has it.
"""

# The C half of `signal`, which takes no time to load: that of Python's own is enough for a Ctrl-C.
from _signal import (  # type: ignore[import-not-found]  # isort: skip
    SIG_DFL,
    SIGINT,
    raise_signal,
    signal,
)

try:
    signal(SIGINT, SIG_DFL)
except KeyboardInterrupt:
    # The signal came while the interpreter itself was loaded.
    signal(SIGINT, SIG_DFL)
    raise_signal(SIGINT)

import gc
import os
import sys

# A start makes some ten thousand objects, a build more, and all of them stay: looking for garbage
# among them again and again, as by default after 700, took a seventh of its time.
gc.set_threshold(100_000)
# Commands whose modules are kept in one file, and which end without taking them down.
_OFTEN = (["run"], ["image", "build"])


def _hold_streams() -> None:
    """Occupy descriptors 0 to 2 where they are closed.

    Else the next file opened, such as a guest's memory, would be standard input or output.
    What is written to them fails, as it does where they are closed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)
    # None would make print() fall back on the other one.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the process's life
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the process's life


def _run_quickly(words: list[str]) -> None:
    """Run the command line in a machine that is ready, and end; return where there is none."""
    from ringzero.cli.pool import quick

    code = quick.run(words)
    if code is not None:
        # Nothing is open, or waits to be written, but what has been told.
        os._exit(code)


def main() -> int:
    """Run the command line of this process; return the exit code."""
    _hold_streams()
    # With RINGZERO_HOST it is about the machines of another host.
    if sys.argv[1:2] == ["run"] and "RINGZERO_HOST" not in os.environ:
        _run_quickly(sys.argv[1:])
    from ringzero.host import bundle

    modules = bundle.install()
    from ringzero.cli.codes import INTERRUPTED
    from ringzero.cli.main import main as run

    often = any(sys.argv[1 : 1 + len(words)] == words for words in _OFTEN)
    try:
        code = run()
        if often:
            bundle.write(modules)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        code = end.code
    finally:
        signal(SIGINT, SIG_DFL)
        # All goes with the process; to look for garbage once more took a tenth of a start.
        gc.freeze()
    if often:
        _end(code)
    return code


def _end(code: int) -> None:
    """End the process at once: to take module after module down takes a twentieth of a start.

    What has asked to be called at the end is. Returns where a thread is to be waited for, or an
    output cannot be written.
    """
    import atexit
    import threading

    if any(not thread.daemon for thread in threading.enumerate()[1:]):
        return
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
