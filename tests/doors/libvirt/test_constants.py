"""Numbers of the protocol, beside libvirt's own binding for Python where that is there."""

import enum
import json
import subprocess
from pathlib import Path

import pytest

from ringzero.doors.libvirt import constants
from ringzero.doors.libvirt.constants import ListDomains
from ringzero.doors.libvirt.lists import selected

SYSTEM_PYTHON = Path("/usr/bin/python3")
PREFIXES = {
    "DomainState": "VIR_DOMAIN_",
    "RunningReason": "VIR_DOMAIN_RUNNING_",
    "PausedReason": "VIR_DOMAIN_PAUSED_",
    "ShutoffReason": "VIR_DOMAIN_SHUTOFF_",
    "DomainEvent": "VIR_DOMAIN_EVENT_ID_",
    "Lifecycle": "VIR_DOMAIN_EVENT_",
    "StoppedDetail": "VIR_DOMAIN_EVENT_STOPPED_",
    "NetworkLifecycle": "VIR_NETWORK_EVENT_",
    "NetworkUpdate": "VIR_NETWORK_UPDATE_COMMAND_",
    "NetworkSection": "VIR_NETWORK_SECTION_",
    "PoolLifecycle": "VIR_STORAGE_POOL_EVENT_",
    "PoolState": "VIR_STORAGE_POOL_",
    "VolumeType": "VIR_STORAGE_VOL_",
    "MetadataType": "VIR_DOMAIN_METADATA_",
    "AddressSource": "VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_",
    "AddressType": "VIR_IP_ADDR_TYPE_",
    "GuestInfo": "VIR_DOMAIN_GUEST_INFO_",
    "MemoryTag": "VIR_DOMAIN_MEMORY_STAT_",
    "Affect": "VIR_DOMAIN_VCPU_",
    "XmlFlags": "VIR_DOMAIN_XML_",
    "StartFlags": "VIR_DOMAIN_START_",
    "UndefineFlags": "VIR_DOMAIN_UNDEFINE_",
    "ListDomains": "VIR_CONNECT_LIST_DOMAINS_",
    "ListObjects": "VIR_CONNECT_LIST_NETWORKS_",
    "Statistics": "VIR_DOMAIN_STATS_",
    "SnapshotCreate": "VIR_DOMAIN_SNAPSHOT_CREATE_",
    "SnapshotList": "VIR_DOMAIN_SNAPSHOT_LIST_",
    "SaveFlags": "VIR_DOMAIN_SAVE_",
    "SnapshotRevert": "VIR_DOMAIN_SNAPSHOT_REVERT_",
    "SnapshotDelete": "VIR_DOMAIN_SNAPSHOT_DELETE_",
}
# What drivers can is asked on the wire alone, and has no public names.
INTERNAL = ("Feature",)


def kinds():
    return {
        name: kind
        for name, kind in vars(constants).items()
        if isinstance(kind, enum.EnumMeta) and kind.__module__ == constants.__name__
    }


@pytest.mark.peer
def test_numbers_are_libvirts():
    assert set(kinds()) == {*PREFIXES, *INTERNAL}
    program = (
        "import json, libvirt\n"
        "print(json.dumps({n: v for n, v in vars(libvirt).items() if type(v) is int}))"
    )
    if not SYSTEM_PYTHON.exists():
        pytest.skip("no Python of the system's")
    done = subprocess.run(
        [SYSTEM_PYTHON, "-c", program], capture_output=True, text=True, timeout=60, env={}
    )
    if done.returncode:
        pytest.skip("no libvirt for the system's Python (package python3-libvirt)")
    theirs = json.loads(done.stdout)
    for name, prefix in PREFIXES.items():
        for member, value in kinds()[name].__members__.items():
            assert theirs[f"{prefix}{member}"] == value, f"{name}.{member}"


def test_lists_are_of_what_was_asked_for():
    def asked(flags, running=True, autostart=False):
        return selected(
            flags,
            {ListDomains.ACTIVE: running, ListDomains.INACTIVE: not running},
            {ListDomains.AUTOSTART: autostart, ListDomains.NO_AUTOSTART: not autostart},
        )

    assert asked(0)
    assert asked(ListDomains.ACTIVE)
    assert not asked(ListDomains.INACTIVE)
    assert asked(ListDomains.ACTIVE | ListDomains.INACTIVE)
    assert not asked(ListDomains.ACTIVE | ListDomains.AUTOSTART)
    assert asked(ListDomains.ACTIVE | ListDomains.NO_AUTOSTART)
    # What nobody knows asks for nothing.
    assert asked(1 << 20)
