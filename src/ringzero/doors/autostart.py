"""Starts the machines that are to start by themselves, once after each boot of the host."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ringzero.control.host.client import Host
from ringzero.errors import RingzeroError
from ringzero.host.files import host_error
from ringzero.host.process import boot_id

_STAMP = "autostarted"


def start_once(host: Host, where: Path) -> list[tuple[str, str]]:
    """Start all, as `start_all` does, where that was not done since the host has booted.

    A daemon that is killed and started again starts nothing that somebody has stopped; one that
    was killed while it did this begins anew. Raises HostError.
    """
    stamp, boot = where / _STAMP, boot_id()
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if stamp.read_text() == boot:
            return []
    found = start_all(host)
    try:
        stamp.write_text(boot)
    except OSError as fault:
        raise host_error(fault, "write", stamp) from fault
    return found


def start_all(host: Host) -> list[tuple[str, str]]:
    """Start those that do not run, pools before; return names, each with "" or what is wrong."""
    found = []
    for pool in host.storage_pools():
        if pool["autostart"] and not pool["active"]:
            try:
                host.change_storage_pool(pool["name"], active=True)
            except RingzeroError as fault:
                found.append((f"storage pool {pool['name']}", fault.message))
    for network in host.networks():
        if network["autostart"] and not network["active"]:
            try:
                host.describe_network(network["name"], active=True)
            except RingzeroError as fault:
                found.append((f"network {network['name']}", fault.message))
    for facts in host.machines():
        machine = host.machine(facts["name"])
        try:
            if machine.directory.alive or not machine.metadata()["autostart"]:
                continue
            machine.start()
        except RingzeroError as fault:
            found.append((machine.name, fault.message))
        else:
            found.append((machine.name, ""))
    return found
