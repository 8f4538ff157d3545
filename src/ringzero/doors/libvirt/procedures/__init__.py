"""The programs of libvirt's remote protocol and all their procedures, as libvirt 9.0 has them."""

from __future__ import annotations

import functools

from ringzero.doors.libvirt.procedures.connect import CONNECT
from ringzero.doors.libvirt.procedures.domain import DOMAIN
from ringzero.doors.libvirt.procedures.events import EVENTS
from ringzero.doors.libvirt.procedures.migration import MIGRATION
from ringzero.doors.libvirt.procedures.misc import MISC
from ringzero.doors.libvirt.procedures.network import NETWORK
from ringzero.doors.libvirt.procedures.nodedevice import NODE_DEVICE
from ringzero.doors.libvirt.procedures.notation import Procedure, Program
from ringzero.doors.libvirt.procedures.qemu import QEMU
from ringzero.doors.libvirt.procedures.snapshot import SNAPSHOT
from ringzero.doors.libvirt.procedures.storage import STORAGE

# The programs' numbers on the wire; each is at its first version.
REMOTE_PROGRAM = 0x2000_8086
QEMU_PROGRAM = 0x2000_8087
VERSION = 1


@functools.cache
def remote() -> Program:
    """Return the program that has nearly everything."""
    texts = (CONNECT, DOMAIN, MIGRATION, SNAPSHOT, NETWORK, STORAGE, NODE_DEVICE, EVENTS, MISC)
    return Program("remote", REMOTE_PROGRAM, VERSION, texts)


@functools.cache
def qemu() -> Program:
    """Return the program with what QEMU alone has: its monitor, and commands of its agent."""
    return Program("qemu", QEMU_PROGRAM, VERSION, (QEMU,))


def program(number: int) -> Program | None:
    """Return the program with this number on the wire."""
    found = {REMOTE_PROGRAM: remote, QEMU_PROGRAM: qemu}.get(number)
    return None if found is None else found()


def find(program_number: int, number: int) -> Procedure | None:
    """Return a procedure by the numbers on the wire."""
    found = program(program_number)
    return None if found is None else found.procedures.get(number)
