"""What a read-only connection may call: what reads, and nothing else."""

import re

import pytest

from ringzero.doors.libvirt.access import reads_only
from ringzero.doors.libvirt.procedures import QEMU_PROGRAM, REMOTE_PROGRAM, qemu, remote
from tests.doors.libvirt.recordings import packets

CHANGES = re.compile(
    r"_(SET|CREATE|DEFINE|UNDEFINE|DELETE|DESTROY|ATTACH|DETACH|UPDATE|SHUTDOWN|REBOOT|RESET|SUSPEND"
    r"|RESUME|SAVE|RESTORE|MIGRATE|OPEN_CONSOLE|OPEN_CHANNEL|OPEN_GRAPHICS|UPLOAD|DOWNLOAD|WIPE"
    r"|RESIZE|BUILD|REFRESH|PIN|SEND|INJECT|REVERT|RENAME|BLOCK_(PULL|COPY|COMMIT|REBASE|PEEK)"
    r"|MEMORY_PEEK|SCREENSHOT|DUMP|ABORT|ADD|DEL|BEGIN|COMMIT|ROLLBACK|FSTRIM|FSFREEZE|FSTHAW"
    r"|ALLOC|RE_ATTACH|DETTACH|MONITOR|AGENT|GET_VALUE|SSH_KEYS|START)(_|$)"
)
# They bear such a word and change nothing.
HARMLESS = {
    "AUTH_SASL_START",
    "CONNECT_SET_IDENTITY",
    "DOMAIN_GET_EMULATOR_PIN_INFO",
    "DOMAIN_GET_VCPU_PIN_INFO",
    "DOMAIN_HAS_MANAGED_SAVE_IMAGE",
}


def allowed(name, **arguments):
    return reads_only(REMOTE_PROGRAM, remote().by_name[name], {"flags": 0, **arguments})


def test_what_changes_something_is_refused():
    bear = {p.name for p in remote().procedures.values() if CHANGES.search(p.name)}
    assert {name for name in bear if allowed(name)} == HARMLESS
    for procedure in qemu().procedures.values():
        assert not reads_only(QEMU_PROGRAM, procedure, {"flags": 0})


def test_events_are_no_calls():
    for procedure in remote().procedures.values():
        if procedure.event:
            assert not reads_only(REMOTE_PROGRAM, procedure, {})


@pytest.mark.parametrize(
    "client", ["virsh list", "virsh dominfo", "virt-viewer", "virsh domstats", "virsh net-list"]
)
def test_what_readers_call_is_allowed(client):
    """What these programs do on libvirt's read-only socket, by the recordings."""
    called = {p.procedure for name, p in packets() if name == f"{client} (C)" and p.type == 0}
    for number in called:
        procedure = remote().procedures[number]
        assert reads_only(REMOTE_PROGRAM, procedure, procedure.arguments.types), procedure


def test_flags_that_show_secrets_are_refused():
    assert allowed("DOMAIN_GET_XML_DESC", flags=2)
    assert not allowed("DOMAIN_GET_XML_DESC", flags=1)
    assert not allowed("DOMAIN_GET_XML_DESC", flags=8)
    assert not allowed("DOMAIN_SNAPSHOT_GET_XML_DESC", flags=1)
    assert allowed("DOMAIN_GET_VCPUS_FLAGS", flags=4)
    assert not allowed("DOMAIN_GET_VCPUS_FLAGS", flags=8)
    assert allowed("DOMAIN_INTERFACE_ADDRESSES", source=0)
    assert not allowed("DOMAIN_INTERFACE_ADDRESSES", source=1)
    assert not allowed("SECRET_GET_VALUE")
    assert not allowed("DOMAIN_GET_HOSTNAME")
