"""Descriptions of machines: what their programs write, and what hostile ones say."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.errors import GuestImageError
from ringzero.image.appliance import descriptions
from ringzero.image.appliance.descriptions import Appliance
from ringzero.image.export import appliance
from ringzero.units import MIB

# As VMware Workstation 17 writes it, shortened.
VMX = b"""\
.encoding = "UTF-8"
config.version = "8"
virtualHW.version = "19"
memsize = "2048"
numvcpus = "2"
displayName = "web"
scsi0.present = "TRUE"
scsi0:0.fileName = "web.vmdk"
scsi0:0.present = "TRUE"
scsi0:1.fileName = "off.vmdk"
scsi0:1.present = "FALSE"
sata0:1.deviceType = "cdrom-image"
sata0:1.fileName = "install.iso"
nvme0:0.fileName = "data.vmdk"
ethernet0.present = "TRUE"
ethernet1.present = "FALSE"
"""
# As VirtualBox 7 writes it, shortened.
VBOX = b"""\
<?xml version="1.0"?>
<VirtualBox xmlns="http://www.virtualbox.org/" version="1.19-linux">
  <Machine uuid="{1}" name="web">
    <MediaRegistry><HardDisks>
      <HardDisk uuid="{d1}" location="web.vdi" format="VDI" type="Normal"/>
      <HardDisk uuid="{d2}" location="spare.vdi" format="VDI" type="Normal"/>
    </HardDisks></MediaRegistry>
    <Hardware>
      <CPU count="2"/><Memory RAMSize="1024"/>
      <Network><Adapter slot="0" enabled="true"/><Adapter slot="1" enabled="true"/>
        <Adapter slot="2" enabled="false"/></Network>
      <StorageControllers><StorageController name="SATA" type="AHCI">
        <AttachedDevice type="HardDisk" port="0" device="0"><Image uuid="{d1}"/></AttachedDevice>
        <AttachedDevice passthrough="false" type="DVD" port="1" device="0"/>
      </StorageController></StorageControllers>
    </Hardware>
  </Machine>
</VirtualBox>
"""
OVF = appliance.ovf(appliance.Appliance("web & co", 3, 700 * MIB, 64 * MIB), "web-1.vmdk", 10)


def test_what_they_say():
    assert descriptions.vmx(VMX) == Appliance(("data.vmdk", "web.vmdk"), 2048 * MIB, 2, 1)
    assert descriptions.vbox(VBOX) == Appliance(("web.vdi",), 1024 * MIB, 2, 2)
    assert descriptions.ovf(OVF) == Appliance(("web-1.vmdk",), 700 * MIB, 3, 1)
    assert descriptions.box(b'{"provider": "libvirt"}') == ("libvirt", ())
    disks = b'{"provider": "libvirt", "disks": [{"path": "a.img"}, {"path": "b.img"}]}'
    assert descriptions.box(disks) == ("libvirt", ("a.img", "b.img"))


def test_a_vagrantfile_is_read_for_numbers():
    data = b"""\
  config.vm.provider "libvirt" do |lv|
    lv.memory = 2048
    lv.cpus = ENV["CPUS"] || 2
    other.memory_backing = 1
"""
    assert descriptions.vagrantfile(data) == (2048 * MIB, None)
    assert descriptions.vagrantfile(b"  v.cpus = '4'\n  v.memory=0") == (None, 4)
    assert descriptions.vagrantfile(b"\xff" * 9) == (None, None)


def test_ovf_of_others():
    """Other prefixes, units and kinds of items."""
    data = OVF.replace(b"byte * 2^20", b"GigaBytes").replace(b">700<", b">4<")
    assert descriptions.ovf(data).memory == 4096 * MIB
    data = OVF.replace(b"<Item>", b"<StorageItem>").replace(b"</Item>", b"</StorageItem>")
    assert descriptions.ovf(data).disks == ("web-1.vmdk",)
    assert descriptions.ovf(OVF.replace(b">700<", b">none<")).memory is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (OVF.replace(b"web-1.vmdk", b"../../etc/passwd"), "leads elsewhere"),
        (OVF.replace(b"web-1.vmdk", b"/etc/passwd"), "none beside"),
        (OVF.replace(b"web-1.vmdk", b"http://h/disk"), "none beside"),
        (OVF.replace(b'ovf:fileRef="file1"', b""), "no disk"),
        (OVF.replace(b"ovf:size", b'ovf:compression="gzip" ovf:size'), "compressed"),
        (OVF.replace(b"VirtualSystem ", b"Other "), "no XML"),
        (b"<Envelope/>", "0 machines"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "document type"),
        (b"", "no XML"),
        (b"\0" * 100, "no XML"),
        (b"<a>" * 100, "no XML"),
        (b'<?xml version="1.0" encoding="none"?><a/>', "no XML"),
    ],
)
def test_bad_ovf(data, said):
    with pytest.raises(GuestImageError, match=said):
        descriptions.ovf(data)


def test_bad_ones_of_the_others():
    with pytest.raises(GuestImageError, match="leads elsewhere"):
        descriptions.vmx(VMX.replace(b"web.vmdk", b"a/../../web.vmdk"))
    with pytest.raises(GuestImageError, match="none beside"):
        descriptions.vmx(VMX.replace(b"web.vmdk", b"C:\\web.vmdk"))
    with pytest.raises(GuestImageError, match="no version"):
        descriptions.vmx(b'scsi0:0.fileName = "web.vmdk"')
    inner = b'<HardDisk uuid="{0}" location="b.vdi"><HardDisk uuid="{d1}" location="web.vdi"'
    snapshot = VBOX.replace(b'<HardDisk uuid="{d1}" location="web.vdi"', inner)
    snapshot = snapshot.replace(b'format="VDI" type="Normal"/>', b'format="VDI"/></HardDisk>', 1)
    with pytest.raises(GuestImageError, match="of a snapshot"):
        descriptions.vbox(snapshot)
    for data in (b"", b"[]", b"{}", b'{"provider": 7}', b"[" * 100_000):
        with pytest.raises(GuestImageError, match="names no provider"):
            descriptions.box(data)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([VMX, VBOX, OVF]), st.integers(0, 3000), st.binary(max_size=12))
def test_any_change_is_read_or_refused(data, at, change):
    data = data[:at] + change + data[at + len(change) :]
    for read in (descriptions.vmx, descriptions.vbox, descriptions.ovf):
        try:
            found = read(data)
        except GuestImageError:
            continue
        assert found.disks and not any(".." in name.split("/") for name in found.disks)
