"""Every format of an exported disk, its peers' readers, and what stands in archives."""

import hashlib
import json
import subprocess
import tarfile
from xml.etree import ElementTree

import pytest

from ringzero.disk import open_disk
from ringzero.errors import InvalidValueError
from ringzero.image.bootable import examine
from ringzero.image.export import formats, kit
from ringzero.image.export.formats import Wishes
from ringzero.units import MIB
from tests.image.export import made
from tests.image.fs.made import tool

RASD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"


@pytest.fixture
def export(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    found = made.kit(tmp_path / "kit")
    monkeypatch.setattr(kit, "ensure", lambda *_, **__: found)
    config = {"Machine": {"Memory": 768 * MIB, "CPUs": 3}}
    image = made.image(tmp_path / "layout", cache, config=config)

    def run(name, kind=None, **wishes):
        kind = kind or formats.by_name(name)
        wishes.setdefault("size", 64 * MIB)
        formats.export(image, tmp_path / name, kind, Wishes(**wishes), cache=cache)
        # Nothing else is left there.
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
        return tmp_path / name

    return run


def boots(path):
    with open_disk(path, read_only=True) as disk:
        assert disk.size == 64 * MIB
        assert examine(disk).choose().command_line.startswith("root=UUID=")


@pytest.mark.parametrize("name", ["d.img", "d.qcow2", "d.vmdk", "d.vhdx", "d.vdi", "d.ova"])
def test_formats_boot(export, name):
    boots(export(name))


def test_a_vhd_has_its_geometry(export):
    """Whose size may be a little more than was asked for."""
    with open_disk(export("d.vhd"), read_only=True) as disk:
        assert disk.size >= 64 * MIB
        assert examine(disk).choose()


@pytest.mark.peer
@pytest.mark.parametrize("name", ["d.qcow2", "d.vmdk", "d.vhdx", "d.vdi"])
def test_qemu_reads_the_same(export, name):
    raw, other = export("d.img"), export(name)
    subprocess.run([tool("qemu-img"), "compare", "-q", raw, other], check=True)


def test_an_ova_is_what_its_manifest_says(export, tmp_path):
    path = export("web.ova", memory=2048 * MIB)
    with tarfile.open(path) as archive:
        names = archive.getnames()
        archive.extractall(tmp_path / "out", filter="data")
    stem = names[0].removesuffix(".ovf")
    assert names == [f"{stem}.ovf", f"{stem}.mf", f"{stem}-disk001.vmdk"]
    for line in (tmp_path / "out" / names[1]).read_text().splitlines():
        name, _, digest = line.removeprefix("SHA256(").partition(")= ")
        data = (tmp_path / "out" / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
    root = ElementTree.parse(tmp_path / "out" / names[0]).getroot()
    space = root.tag[: root.tag.index("}") + 1]
    file, disk = root.find(f".//{space}File"), root.find(f".//{space}Disk")
    assert file.get(f"{space}href") == names[2]
    assert int(file.get(f"{space}size")) == (tmp_path / "out" / names[2]).stat().st_size
    assert int(disk.get(f"{space}capacity")) == 64 * MIB
    items = {i.find(f"{RASD}ResourceType").text: i for i in root.iter(f"{space}Item")}
    quantities = {t: i.findtext(f"{RASD}VirtualQuantity") for t, i in items.items()}
    assert (quantities["3"], quantities["4"]) == ("3", "2048")
    # The disk hangs on the controller, and the network is there.
    assert items["17"].findtext(f"{RASD}Parent") == items["6"].findtext(f"{RASD}InstanceID")
    assert items["10"].findtext(f"{RASD}ResourceSubType") == "E1000"


@pytest.mark.parametrize("provider", formats.PROVIDERS)
def test_boxes(export, tmp_path, provider):
    path = export("web.box", provider=provider)
    with tarfile.open(path, "r:gz") as archive:
        archive.extractall(tmp_path / "out", filter="data")
    told = json.loads((tmp_path / "out/metadata.json").read_text())
    assert told["provider"] == provider
    assert f'config.vm.provider "{provider}"' in (tmp_path / "out/Vagrantfile").read_text()
    if provider == "libvirt":
        assert told | {"format": "qcow2", "virtual_size": 1} == told
        boots(tmp_path / "out/box.img")
    else:
        assert b"box-disk001.vmdk" in (tmp_path / "out/box.ovf").read_bytes()
        boots(tmp_path / "out/box-disk001.vmdk")


def test_what_is_there_is_overwritten_only_by_force(export, tmp_path):
    (tmp_path / "d.qcow2").write_bytes(b"mine")
    with pytest.raises(InvalidValueError, match="exists"):
        export("d.qcow2")
    assert (tmp_path / "d.qcow2").read_bytes() == b"mine"
    boots(export("d.qcow2", overwrite=True))


def test_suffixes():
    known = {"a.img": "raw", "A.QCOW2": "qcow2", "a.vpc": "vhd", "a.ova": "ova", "a.tar": None,
             "a": None, "raw": "raw", "d.box/x": None}  # fmt: skip
    assert {name: formats.by_name(name) for name in known} == known
