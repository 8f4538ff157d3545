"""Disks with a description of their machine: OVF packages (OVA) and boxes of Vagrant.

OVF is that of DMTF's DSP0243 1.1, which VMware's products and VirtualBox import: a disk (VMDK,
streamOptimized), the hardware that it wants, and a manifest with the digests of both. An OVA is
these files in one tar, the description first. A box is a tar, packed by gzip, with metadata.json, a
Vagrantfile, and what its provider takes: an OVF of VirtualBox, or a qcow2 of libvirt.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO
from xml.sax.saxutils import escape, quoteattr

from ringzero.records import record
from ringzero.units import GIB, MIB

# All that is written here is as if it had been made at the same moment.
_MTIME = 0
# Linux, 64 bits, other than those with a number (CIM_OperatingSystem, OsType).
_LINUX_64 = 101
_OVF = """\
<?xml version="1.0" encoding="UTF-8"?>
<Envelope vmw:buildId="1" xmlns="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
  xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
  xmlns:vmw="http://www.vmware.com/schema/ovf">
  <References>
    <File ovf:href={file} ovf:id="file1" ovf:size="{file_size}"/>
  </References>
  <DiskSection>
    <Info>Virtual disks</Info>
    <Disk ovf:capacity="{capacity}" ovf:capacityAllocationUnits="byte" ovf:diskId="disk1"
      ovf:fileRef="file1"
      ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
  </DiskSection>
  <NetworkSection>
    <Info>Networks</Info>
    <Network ovf:name="NAT"><Description>NAT</Description></Network>
  </NetworkSection>
  <VirtualSystem ovf:id={name_attribute}>
    <Info>A virtual machine</Info>
    <Name>{name}</Name>
    <OperatingSystemSection ovf:id="{system}" vmw:osType="otherLinux64Guest">
      <Info>The guest operating system</Info>
      <Description>Linux, 64 bits</Description>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Virtual hardware</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>vmx-10</vssd:VirtualSystemType>
      </System>
      <Item>
        <rasd:AllocationUnits>hertz * 10^6</rasd:AllocationUnits>
        <rasd:Description>Number of virtual CPUs</rasd:Description>
        <rasd:ElementName>{cpus} virtual CPU(s)</rasd:ElementName>
        <rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>{cpus}</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>
        <rasd:Description>Memory size</rasd:Description>
        <rasd:ElementName>{memory} MB of memory</rasd:ElementName>
        <rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>{memory}</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:Address>0</rasd:Address>
        <rasd:Description>SCSI controller</rasd:Description>
        <rasd:ElementName>scsi0</rasd:ElementName>
        <rasd:InstanceID>3</rasd:InstanceID>
        <rasd:ResourceSubType>lsilogic</rasd:ResourceSubType>
        <rasd:ResourceType>6</rasd:ResourceType>
      </Item>
      <Item>
        <rasd:AddressOnParent>0</rasd:AddressOnParent>
        <rasd:ElementName>disk1</rasd:ElementName>
        <rasd:HostResource>ovf:/disk/disk1</rasd:HostResource>
        <rasd:InstanceID>4</rasd:InstanceID>
        <rasd:Parent>3</rasd:Parent>
        <rasd:ResourceType>17</rasd:ResourceType>
      </Item>
      <Item>
        <rasd:AddressOnParent>0</rasd:AddressOnParent>
        <rasd:AutomaticAllocation>true</rasd:AutomaticAllocation>
        <rasd:Connection>NAT</rasd:Connection>
        <rasd:Description>Network adapter</rasd:Description>
        <rasd:ElementName>ethernet0</rasd:ElementName>
        <rasd:InstanceID>5</rasd:InstanceID>
        <rasd:ResourceSubType>E1000</rasd:ResourceSubType>
        <rasd:ResourceType>10</rasd:ResourceType>
      </Item>
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
"""


@record
class Appliance:
    """What a machine is called and wants: `memory` in bytes, `capacity` of its disk in bytes."""

    name: str
    cpus: int
    memory: int
    capacity: int


def ovf(about: Appliance, disk: str, disk_size: int) -> bytes:
    """Return the description of a machine whose disk is in the file `disk` of `disk_size` bytes."""
    text = _OVF.format(
        file=quoteattr(disk),
        file_size=disk_size,
        capacity=about.capacity,
        name=escape(about.name),
        name_attribute=quoteattr(about.name),
        system=_LINUX_64,
        cpus=about.cpus,
        memory=-(-about.memory // MIB),
    )
    return text.encode()


def write_ova(about: Appliance, disk: Path, stem: str, file: BinaryIO) -> None:
    """Write an OVA with a disk (VMDK, streamOptimized); its files begin with `stem`."""
    name = f"{stem}-disk001.vmdk"
    description = ovf(about, name, disk.stat().st_size)
    with disk.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    manifest = (
        f"SHA256({stem}.ovf)= {hashlib.sha256(description).hexdigest()}\nSHA256({name})= {digest}\n"
    )
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        _put(archive, f"{stem}.ovf", description)
        _put(archive, f"{stem}.mf", manifest.encode())
        _put(archive, name, disk)


def write_box(provider: str, about: Appliance, disk: Path, file: BinaryIO) -> None:
    """Write a box for VirtualBox ("virtualbox"; a VMDK) or libvirt ("libvirt"; a qcow2)."""
    files: dict[str, bytes | Path] = {}
    if provider == "virtualbox":
        metadata: Mapping[str, object] = {"provider": "virtualbox"}
        name = "box-disk001.vmdk"
        files = {"box.ovf": ovf(about, name, disk.stat().st_size), name: disk}
        settings = f"vb.memory = {about.memory // MIB}\n    vb.cpus = {about.cpus}"
        letter = "vb"
    else:
        # In whole GB, rounded up (vagrant-libvirt, "Version 1").
        metadata = {
            "provider": "libvirt",
            "format": "qcow2",
            "virtual_size": -(-about.capacity // GIB),
        }
        files = {"box.img": disk}
        settings = f"lv.memory = {about.memory // MIB}\n    lv.cpus = {about.cpus}"
        letter = "lv"
    vagrantfile = (
        'Vagrant.configure("2") do |config|\n'
        f'  config.vm.provider "{provider}" do |{letter}|\n    {settings}\n  end\n'
        # Images of containers have no folders for it, and mostly no rsync.
        '  config.vm.synced_folder ".", "/vagrant", disabled: true\nend\n'
    )
    files = {
        "metadata.json": json.dumps(metadata).encode(),
        "Vagrantfile": vagrantfile.encode(),
        **files,
    }
    with tarfile.open(
        fileobj=file, mode="w:gz", format=tarfile.GNU_FORMAT, compresslevel=1
    ) as archive:
        for name, content in files.items():
            _put(archive, name, content)


def _put(archive: tarfile.TarFile, name: str, content: bytes | Path) -> None:
    info = tarfile.TarInfo(name)
    info.mtime, info.mode = _MTIME, 0o644
    if isinstance(content, bytes):
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
        return
    info.size = content.stat().st_size
    with content.open("rb") as source:
        archive.addfile(info, source)
