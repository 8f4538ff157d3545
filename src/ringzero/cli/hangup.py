"""The end of a command whose caller, at the other end of ssh, has gone.

Without a terminal there, sshd tells a command nothing when its connection ends: one that prints
nothing, or waits, would go on for nobody.
"""

from __future__ import annotations

import os
import select
import signal
import threading

# sshd closes the first alone where a shared connection stays.
_OUTPUTS = (1, 2)


def watch() -> None:
    """Have this process end as at a hangup when nobody reads one of its outputs any more."""
    threading.Thread(target=_watch, name="hangup", daemon=True).start()


def _watch() -> None:
    poller = select.poll()
    # A pipe, or a socket, whose other end is closed is in error whatever is asked for (poll(2)).
    for descriptor in _OUTPUTS:
        poller.register(descriptor, 0)
    if any(events & (select.POLLERR | select.POLLHUP) for _, events in poller.poll()):
        os.kill(os.getpid(), signal.SIGHUP)
