"""Removes the directory of a machine that was to leave none, when its process has ended.

For a jailed one, which comes to nothing but what it writes while it runs: a process that is forked
before, and does nothing else.
"""

from __future__ import annotations

import contextlib
import os
import signal

from ringzero.control.host.directory import MachineDirectory
from ringzero.errors import RingzeroError
from ringzero.host.process import ProcessIdentity, set_title

# More than any process of ours has open.
_ALL = 1 << 16


def attend(directory: MachineDirectory) -> None:
    """Have a machine's directory removed after the end of the calling process."""
    machine = ProcessIdentity.own()
    if os.fork():
        return
    try:
        os.closerange(3, _ALL)
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        set_title(f"rz-rm-{directory.name}")
        while not machine.wait(3600.0):
            pass
        with contextlib.suppress(RingzeroError):
            directory.remove()
    finally:
        os._exit(0)
