"""Domains for one life: created without being defined, or undefined while they run.

libvirt forgets them when they end. The mark stands among the machine's notes, so that a daemon
which comes after a killed one finds it. Where no daemon runs, a machine with it stays.
"""

from __future__ import annotations

import contextlib

from ringzero.control.host import notes
from ringzero.control.host.client import Host
from ringzero.errors import RingzeroError

# Among a machine's notes: a mark on one that goes when it has ended.
TRANSIENT = "libvirt:transient"


def sweep(host: Host) -> None:
    """Remove those that have ended."""
    for facts in host.machines():
        remove(host, facts["name"])


def remove(host: Host, name: str) -> None:
    """Remove a machine that has the mark, where it does not run."""
    with contextlib.suppress(RingzeroError):
        machine = host.machine(name)
        # Who takes the mark away meanwhile, because the machine is to stay, is not too late.
        with notes.changing(machine.directory.path):
            if TRANSIENT in machine.metadata()["elements"] and not machine.directory.alive:
                machine.remove()


def discard(host: Host, name: str) -> None:
    """Remove a machine that has the mark, and did not come up."""
    # Whoever hears that it has ended may be at it already; why it did not come up is to be told.
    with contextlib.suppress(RingzeroError):
        machine = host.machine(name)
        if TRANSIENT in machine.metadata()["elements"]:
            machine.remove(force=True)
