"""Domains' XML and machines: what clients define is carried out and kept, and told back.

What a client has sent is kept among the machine's notes, so that elements which ringzero has no
part for come back as they were; which these are is told to the log by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ringzero.api.values import MachineSummary, MetadataSummary
from ringzero.config.machine import MachineConfig
from ringzero.config.tree import config_from_tree
from ringzero.control.host import description
from ringzero.control.host.actions import define_machine
from ringzero.control.host.client import Host
from ringzero.doors.libvirt import attachments, inventory
from ringzero.doors.libvirt.context import RefusedError
from ringzero.doors.libvirt.faults import ErrorCode
from ringzero.doors.libvirt.inventory import Domain
from ringzero.doors.libvirt.transient import TRANSIENT
from ringzero.doors.libvirt.values import uuid_text
from ringzero.doors.libvirt.xml import facts, machine
from ringzero.doors.libvirt.xml.capabilities import EMULATOR
from ringzero.doors.libvirt.xml.domain import DOMAIN, DomainXml
from ringzero.doors.libvirt.xml.machine import Abilities, Definition
from ringzero.errors import ConfigError, InvalidValueError, RingzeroError
from ringzero.storage import pools, volumes

# Among a machine's notes: the XML that it was defined by.
SENT = "libvirt"
_ABILITIES = Abilities(cpus=("x86-64-v2", "x86-64-v3", "max"))


def read(document: str) -> DomainXml:
    """Return a domain's XML as a record. Raises RefusedError."""
    try:
        return DOMAIN.parse(document)
    except InvalidValueError as fault:
        raise RefusedError(ErrorCode.XML_ERROR, fault.message) from fault


def definition(domain: DomainXml) -> Definition:
    """Return the machine that a domain is. Raises RefusedError."""
    try:
        return machine.definition(domain, _ABILITIES, volume_path)
    except ConfigError as fault:
        raise RefusedError(ErrorCode.CONFIG_UNSUPPORTED, "; ".join(fault.faults)) from fault


def define(host: Host, document: str, *, transient: bool = False) -> tuple[Domain, Definition]:
    """Make or change a machine as a document says; return it.

    Raises RefusedError where the name or the UUID is another's.
    """
    sent = read(document)
    old = _same(host, sent)
    before = () if old is None else xml(host, old, inactive=True).interfaces
    sent = attachments.with_addresses(sent, before)
    wanted = definition(sent)
    # As it is rendered: secrets in it are not kept.
    elements: dict[str, Any] = {SENT: DOMAIN.render(sent)}
    if not transient:
        elements[TRANSIENT] = None
    elif old is None:
        # One that was defined before stays when this life of it is over.
        elements[TRANSIENT] = "yes"
    notes: dict[str, Any] = {
        "title": sent.title or "",
        "description": sent.description or "",
        "metadata": elements,
    }
    if old is None:
        notes |= {"uuid": sent.uuid or None}
        define_machine(host.where, wanted.fields, wanted.name, notes, serial=wanted.serial)
    else:
        if transient and old.active:
            text = f"domain '{old.name}' is already active"
            raise RefusedError(ErrorCode.OPERATION_INVALID, text)
        there = host.machine(old.name)
        config = MachineConfig.create(name=old.name, **wanted.fields)
        config = attachments.with_untold(config, config_from_tree(there.next()))
        description.redefine(
            there.directory, config.with_room_for_shares(), serial=wanted.serial, notes=notes
        )
    return inventory.by_name(host, wanted.name), wanted


def xml(host: Host, domain: Domain, *, inactive: bool = False) -> DomainXml:
    """Return a domain as it is now, or as it is from its next start on."""
    where = host.machine(domain.name)
    summary, notes = where.inspect() if domain.active else where.directory.summary(), None
    notes = where.metadata()
    tree = where.next() if inactive else summary["config"]
    return facts.domain(_facts(domain, summary, notes, tree, live=domain.active and not inactive))


def change(host: Host, name: str, tree: dict[str, Any], document: DomainXml | None = None) -> None:
    """Describe a machine anew from its next start on; what runs in it stays.

    A domain's XML is kept beside what its machine is: it comes back as it is.
    """
    where = host.machine(name).directory
    coming = where.coming()
    description.redefine(
        where,
        MachineConfig.create(**{**tree, "name": name}).with_room_for_shares(),
        image=coming.image,
        command=coming.command,
        timeout=coming.timeout,
        serial=coming.serial,
        notes=None if document is None else {"metadata": {SENT: DOMAIN.render(document)}},
    )


def agent_answers(summary: MachineSummary) -> bool:
    """Return whether the agent in a guest has said that it is there."""
    return bool((summary.get("agent") or {}).get("ready"))


def xml_as(host: Host, domain: Domain, tree: dict[str, Any]) -> DomainXml:
    """Return a domain as it is with another description: that of a snapshot."""
    where = host.machine(domain.name)
    summary, notes = where.directory.summary(), where.metadata()
    return facts.domain(_facts(domain, summary, notes, tree, live=False))


def _facts(
    domain: Domain,
    summary: MachineSummary,
    notes: MetadataSummary,
    tree: dict[str, Any],
    *,
    live: bool,
) -> facts.MachineFacts:
    sent = None
    if SENT in notes["elements"]:
        try:
            sent = DOMAIN.parse(notes["elements"][SENT])
        except RingzeroError:
            # Of another version, perhaps: what the machine is, is told without it.
            sent = None
    config = config_from_tree(tree)
    formats = {
        disk.path: kind
        for disk in config.disks
        if disk.format is None and (kind := _format(disk.path)) is not None
    }
    return facts.MachineFacts(
        domain.name,
        uuid_text(domain.uuid),
        config,
        id=domain.handle.id if live else None,
        engine=summary["engine"],
        emulator=EMULATOR,
        title=notes["title"] or None,
        description=notes["description"] or None,
        metadata=sent.metadata if sent is not None else (),
        agent_up=agent_answers(summary),
        formats=formats,
        sent=sent,
    )


def _same(host: Host, sent: DomainXml) -> Domain | None:
    """Return the machine that a document is about, where there is one. Raises RefusedError."""
    try:
        named = inventory.by_name(host, sent.name)
    except RefusedError:
        named = None
    if not sent.uuid:
        return named
    if named is not None and uuid_text(named.uuid) == sent.uuid:
        return named
    other = next((d for d in inventory.domains(host) if uuid_text(d.uuid) == sent.uuid), None)
    clash = named or other
    if clash is not None:
        text = f"domain '{clash.name}' already exists with uuid {uuid_text(clash.uuid)}"
        raise RefusedError(ErrorCode.OPERATION_FAILED, text)
    return None


def _format(path: Path) -> str | None:
    from ringzero.disk.probing import probe
    from ringzero.disk.storage import FileStorage

    try:
        storage = FileStorage(path, read_only=True, lock=False)
    except RingzeroError:
        return None
    try:
        return probe(storage)
    except RingzeroError:
        return None
    finally:
        storage.close()


def volume_path(pool: str, name: str) -> str:
    """Return the path of a pool's volume. Raises NotFoundError, InvalidValueError."""
    return str(volumes.find(pools.find(pool), name).path)
