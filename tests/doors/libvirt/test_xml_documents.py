"""Documents of real clients: understood, written again without a loss, and valid by the schemas."""

import shutil
import subprocess
from collections import Counter

import pytest

from ringzero.doors.libvirt.xml.domain import DOMAIN
from ringzero.doors.libvirt.xml.network import NETWORK
from ringzero.doors.libvirt.xml.snapshot import SNAPSHOT
from ringzero.doors.libvirt.xml.storage import POOL, VOLUME
from ringzero.doors.libvirt.xml.tree import parse
from ringzero.records import replace
from ringzero.units import MIB
from tests.doors.libvirt.documents import DOCUMENTS, WHOLE, of_kind, shape_of, validate

# Sizes are written in another unit than they came in.
SIZES = ("memory", "currentMemory", "capacity", "allocation", "physical", "available")


def facts(element, path=""):
    """Return all that a document says: attributes and texts by their paths, sizes left out."""
    place = f"{path}/{element.name}"
    if element.name in SIZES:
        return Counter()
    found = Counter()
    for key, value in element.attributes.items():
        found[f"{place}/@{key}", value] += 1
    if element.text.strip():
        found[place, element.text.strip()] += 1
    for child in element:
        found += facts(child, place)
    return found


@pytest.mark.parametrize("name", DOCUMENTS)
def test_nothing_is_lost(name):
    shape = shape_of(name)
    item = shape.parse(DOCUMENTS[name])
    document = shape.render(item)
    assert shape.parse(document) == item
    assert not facts(parse(DOCUMENTS[name])) - facts(parse(document))


@pytest.mark.peer
@pytest.mark.parametrize("kind", WHOLE)
def test_what_is_written_is_valid(tmp_path, kind):
    names = of_kind(kind)
    assert names
    shape = shape_of(names[0])
    validate(tmp_path, [shape.render(shape.parse(DOCUMENTS[name])) for name in names])


def test_a_domain_of_virt_install():
    found = DOMAIN.parse(DOCUMENTS["virt-install-import"])
    assert (found.type, found.memory, found.vcpus) == ("qemu", 256 * MIB, 2)
    assert found.os.machine == "q35"
    assert found.acpi
    assert found.apic
    (disk,) = found.disks
    assert (disk.path, disk.format, disk.target, disk.bus) == (
        disk.file,
        "qcow2",
        "vda",
        "virtio",
    )
    (net,) = found.interfaces
    assert (net.type, net.network, net.model) == ("network", "default", "virtio")
    assert "libosinfo" in found.metadata[0]
    assert {"devices/controller", "clock/timer"} <= set(DOMAIN.unknown(found))


def test_a_domain_of_vagrant_has_empty_elements():
    found = DOMAIN.parse(DOCUMENTS["vagrant-domain"])
    assert (found.uuid, found.title) == (None, None)
    assert (found.os.kernel, found.os.initrd, found.os.command_line) == (None, None, None)
    assert found.cpu.model is None
    assert found.cpu.mode == "host-model"
    assert found.disks[0].alias == "ua-box-volume-0"


def test_a_network():
    found = NETWORK.parse(DOCUMENTS["libvirtd-network"])
    assert (found.name, found.forward, found.bridge) == ("vagrant-libvirt", "nat", "virbr1")
    (ip,) = found.ips
    assert (ip.address, ip.netmask) == ("192.168.121.1", "255.255.255.0")
    assert (ip.ranges[0].start, ip.ranges[0].end) == ("192.168.121.1", "192.168.121.254")


def test_a_network_with_everything():
    text = """
    <network><name>n</name><forward mode="open"/><mac address="02:00:00:00:00:01"/>
    <dns><host ip="10.0.0.5"><hostname>a</hostname><hostname>b</hostname></host></dns>
    <ip family="ipv4" address="10.0.0.1" prefix="24"><dhcp><range start="10.0.0.2" end="10.0.0.9"/>
    <host mac="02:00:00:00:00:02" name="web" ip="10.0.0.5"/></dhcp></ip></network>"""
    found = NETWORK.parse(text)
    assert list(NETWORK.unknown(found)) == []
    assert found.dns_hosts[0].names == ("a", "b")
    assert found.ips[0].prefix == 24
    assert found.ips[0].hosts[0].name == "web"
    assert NETWORK.parse(NETWORK.render(found)) == found


def test_volumes_and_pools():
    volume = VOLUME.parse(DOCUMENTS["virsh-volume"])
    assert volume.capacity == 5 * MIB
    box = VOLUME.parse(DOCUMENTS["vagrant-box-volume"])
    assert box.permissions.mode == 0o744
    assert box.format == "qcow2"
    backing = VOLUME.parse(DOCUMENTS["vagrant-volume"])
    assert backing.backing_path.endswith("_box.img")
    assert backing.backing_format == "qcow2"
    pool = POOL.parse(DOCUMENTS["virt-install-pool"])
    assert (pool.type, pool.path) == ("dir", "/var/lib/libvirt/images")


def test_a_snapshot_holds_its_domain():
    found = SNAPSHOT.parse(DOCUMENTS["libvirtd-snapshot"])
    assert found.domain.name == "vm1"
    assert found.created > 1_700_000_000
    assert SNAPSHOT.parse(DOCUMENTS["virsh-snapshot"]).domain is None


def test_a_password_is_read_and_never_told():
    screen = "<graphics type='vnc' passwd='geheim'/>"
    found = DOMAIN.parse(f"<domain type='kvm'><name>a</name><devices>{screen}</devices></domain>")
    assert found.graphics[0].password == "geheim"
    assert "passwd" not in DOMAIN.render(found)


@pytest.mark.peer
def test_libvirt_itself_understands_what_is_written(tmp_path):
    """libvirt's test driver, which runs in virsh itself, defines our XML and says it again."""
    if shutil.which("virsh") is None:
        pytest.skip("no virsh (package libvirt-clients)")
    found = replace(DOMAIN.parse(DOCUMENTS["virt-install-location"]), type="test")
    path = tmp_path / "domain.xml"
    path.write_text(DOMAIN.render(found))
    done = subprocess.run(
        ["virsh", "-c", "test:///default", f"define {path}; dumpxml {found.name}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    theirs = DOMAIN.parse(done.stdout[done.stdout.index("<domain") :])
    assert (theirs.name, theirs.uuid, theirs.memory) == (found.name, found.uuid, found.memory)
    assert [d.path for d in theirs.disks] == [d.path for d in found.disks]
    assert [n.mac for n in theirs.interfaces] == [n.mac for n in found.interfaces]
    assert theirs.os.kernel == found.os.kernel
    assert theirs.metadata == found.metadata
