"""Copies of a running machine, each in a process of its own.

The guest stands still for the milliseconds in which its seed is taken. Then
the machine's process forks, once for all copies, and again for each of them,
so that they are nobody's children. A forked process has the engine, with the
code that it has translated, and the seed in its memory already; it takes what
it is handed by those who asked for it (`ringzero.control.host.copies`), builds
a machine of its own and lets go of everything else.

What makes a fork of a process with threads safe here: the new process uses no
object that another thread may have had in its hands, but for the seed and the
engine, which nobody changes; the original machine's objects stay in its memory
untouched, and are never finalized, because it ends by _exit(2).
"""

from __future__ import annotations

import gc
import os
import socket
from typing import Any, NoReturn

from ringzero.control.host import handing
from ringzero.control.host.directory import Claim
from ringzero.control.host.report import Reporter
from ringzero.control.machine.become import Lent, become
from ringzero.control.machine.keeper import Keeper
from ringzero.host import memory
from ringzero.vm.guest.contract import KeptGuest
from ringzero.vm.guest.identity import Identity

# The original machine of a forked process: its memory and code are mapped still, and nothing
# of it may be finalized.
_originals: list[Keeper] = []


def fork(keeper: Keeper, count: int, link: int) -> None:
    """Make copies of the machine, which take what is theirs from the socket `link`.

    They are not up yet when this returns. Raises HostError.
    """
    machine = keeper.machine
    # At the fork no device may be at work, and no lock of a disk held.
    with machine.frozen(), machine.seed(count) as seed, machine.disks_still():
        machine.keep_from_children()
        readers = seed.share()
        try:
            number = os.fork()
            if number == 0:
                _make_processes(keeper, seed, count, link)
        finally:
            for reader in readers:
                reader.complete()
    os.waitpid(number, 0)


def _make_processes(keeper: Keeper, seed: Any, count: int, link: int) -> NoReturn:
    """In the middle process: fork one for each copy and end."""
    status = 1
    try:
        for _ in range(count):
            if os.fork() == 0:
                _become(keeper, seed, link)
        status = 0
    finally:
        os._exit(status)


def _become(origin: Keeper, seed: Any, link: int) -> NoReturn:
    """In a copy's process: be that machine until its end."""
    try:
        os.setsid()
        _originals.append(origin)
        # What is there is never garbage, and looking for some would copy all of it.
        gc.freeze()
        with socket.socket(fileno=link) as source:
            handed = handing.take(source)
        pagemap = handing.await_go(handed.report)
        if pagemap is not None:
            memory.lend_pagemap(pagemap)
        origin.leave()
    except BaseException:
        os._exit(1)

    def grow() -> KeptGuest:
        machine: KeptGuest = origin.machine.grow(seed, Identity(name=handed.directory.name))
        seed.close()
        return machine

    become(
        Claim(handed.directory, handed.lock),
        Reporter(handed.report),
        origin.handlers,
        grow,
        resumed=True,
        lent=Lent.of(handed, origin.directory),
    )
