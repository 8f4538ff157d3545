"""Which procedures change nothing: those that a read-only connection may call.

Everything that is not listed may not. What is missing among the readers is missing because libvirt
itself refuses it there: it shows secrets, asks the guest's agent, looks into memory and disks, or
runs a program of the host's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ringzero.doors.libvirt.procedures import REMOTE_PROGRAM
from ringzero.doors.libvirt.procedures.notation import Procedure

# Of the domain's XML: with its secrets; for migration, which has them, too.
_XML_SECURE, _XML_MIGRATABLE = 1 << 0, 1 << 3
# virDomainInterfaceAddresses: as the guest's agent says.
_BY_AGENT = 1
# virDomainGetVcpusFlags: as the guest says.
_VCPU_GUEST = 1 << 3

_READERS = re.compile(
    r"AUTH_\w+|CONNECT_(OPEN|CLOSE|SUPPORTS_FEATURE|IS_SECURE|SET_IDENTITY|COMPARE_CPU|"
    r"BASELINE_CPU|(UN)?REGISTER_CLOSE_CALLBACK|GET_(?!DOMAIN_CAPABILITIES)\w+|LIST_\w+|NUM_OF_\w+|"
    r"\w+_EVENT_(CALLBACK_)?(DE)?REGISTER(_ANY)?)"
    r"|NODE_GET_\w+|NODE_(NUM_OF|LIST)_DEVICES"
    r"|(DOMAIN|NETWORK|NETWORK_PORT|STORAGE_POOL|STORAGE_VOL|NODE_DEVICE|INTERFACE|NWFILTER|"
    r"NWFILTER_BINDING|SECRET|DOMAIN_SNAPSHOT|DOMAIN_CHECKPOINT)_"
    r"(LOOKUP_BY_\w+|IS_\w+|HAS_\w+|NUM\w*|LIST_\w+|GET_\w+|CURRENT)"
    r"|DOMAIN_(BLOCK_STATS(_FLAGS)?|INTERFACE_STATS|MEMORY_STATS|INTERFACE_ADDRESSES)"
    r"|NETWORK_GET_\w+|STORAGE_POOL_(LIST|NUM_OF)_\w+"
)
_NOT = frozenset(
    (
        "DOMAIN_GET_FSINFO",
        "DOMAIN_GET_GUEST_INFO",
        "DOMAIN_GET_GUEST_VCPUS",
        "DOMAIN_GET_HOSTNAME",
        "DOMAIN_GET_TIME",
        "DOMAIN_GET_LAUNCH_SECURITY_INFO",
        "NODE_GET_SEV_INFO",
        "SECRET_GET_VALUE",
    )
)


def reads_only(program: int, procedure: Procedure, arguments: Mapping[str, Any]) -> bool:
    """Return whether a call changes nothing and shows no secrets."""
    name = procedure.name
    if program != REMOTE_PROGRAM or name in _NOT or not _READERS.fullmatch(name):
        return False
    flags = arguments.get("flags", 0)
    if name.startswith("DOMAIN_") and name.endswith("GET_XML_DESC"):
        return not flags & (_XML_SECURE | _XML_MIGRATABLE)
    if name == "DOMAIN_GET_VCPUS_FLAGS":
        return not flags & _VCPU_GUEST
    if name == "DOMAIN_INTERFACE_ADDRESSES":
        return bool(arguments["source"] != _BY_AGENT)
    return True
