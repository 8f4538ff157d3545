"""Storage pools, volumes and networks by an unmodified virsh."""

import re
import subprocess

import pytest

from ringzero.control.host import client
from ringzero.disk import open_disk
from ringzero.units import MIB
from tests.control.fake import start
from tests.doors.libvirt.test_virsh import Virsh, pytestmark, virsh

__all__ = ["pytestmark", "virsh"]


@pytest.fixture(autouse=True)
def networks(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_NETWORKS_DIR", str(tmp_path / "networks"))


@pytest.fixture
def pool(virsh, tmp_path):
    virsh("pool-define-as", "p1", "dir", "--target", tmp_path / "p1")
    virsh("pool-build", "p1")
    virsh("pool-start", "p1")
    return tmp_path / "p1"


def test_the_life_of_a_pool(virsh, pool, tmp_path):
    rows = virsh.table("pool-list", "--all")
    assert rows == [["default", "active", "no"], ["p1", "active", "no"]]
    virsh("pool-autostart", "p1")
    assert virsh.table("pool-list", "--autostart") == [["p1", "active", "yes"]]
    uuid = virsh("pool-uuid", "p1")
    assert virsh("pool-name", uuid) == "p1"
    info = virsh("pool-info", "p1")
    assert re.search(r"State: +running", info)
    assert re.search(r"Persistent: +yes", info)
    told = virsh("pool-dumpxml", "p1")
    path = tmp_path / "pool.xml"
    path.write_text(told)
    subprocess.run(["virt-xml-validate", path], check=True, capture_output=True)
    virsh("pool-define", path)
    assert "still active" in virsh("pool-delete", "p1", fails=True)
    virsh("pool-refresh", "p1")
    virsh("pool-destroy", "p1")
    assert virsh.table("pool-list", "--inactive") == [["p1", "inactive", "yes"]]
    assert "not active" in virsh("vol-list", "p1", fails=True)
    virsh("pool-delete", "p1")
    assert not pool.exists()
    virsh("pool-undefine", "p1")
    assert "failed to get pool 'p1'" in virsh("pool-info", "p1", fails=True)
    virsh("pool-create-as", "p2", "dir", "--target", tmp_path / "p2")
    assert "p2" in virsh("pool-list")
    wrong = virsh("pool-define-as", "p3", "logical", "--source-name", "vg", fails=True)
    assert "'dir'" in wrong


def test_volumes(virsh, pool, tmp_path):
    virsh("vol-create-as", "p1", "a.qcow2", "10M", "--format", "qcow2")
    assert virsh.table("vol-list", "p1") == [["a.qcow2", str(pool / "a.qcow2")]]
    info = virsh("vol-info", "a.qcow2", "p1")
    assert re.search(r"Capacity: +10.00 MiB", info)
    assert virsh("vol-path", "a.qcow2", "p1") == str(pool / "a.qcow2")
    assert virsh("vol-key", "a.qcow2", "p1") == str(pool / "a.qcow2")
    assert virsh("vol-name", pool / "a.qcow2") == "a.qcow2"
    assert virsh("vol-pool", pool / "a.qcow2") == "p1"
    virsh("vol-resize", "a.qcow2", "12M", "p1")
    virsh("vol-resize", "a.qcow2", "2M", "p1", "--delta")
    with open_disk(pool / "a.qcow2", "qcow2", read_only=True) as disk:
        assert disk.size == 14 * MIB
    assert "shrink" in virsh("vol-resize", "a.qcow2", "1M", "p1", fails=True)
    backing = ("--backing-vol", "a.qcow2", "--backing-vol-format", "qcow2")
    virsh("vol-create-as", "p1", "top.qcow2", "14M", "--format", "qcow2", *backing)
    told = virsh("vol-dumpxml", "top.qcow2", "p1")
    assert str(pool / "a.qcow2") in told
    path = tmp_path / "volume.xml"
    path.write_text(told)
    subprocess.run(["virt-xml-validate", path], check=True, capture_output=True)
    virsh("vol-clone", "top.qcow2", "copy.qcow2", "--pool", "p1")
    assert "already exists" in virsh("vol-clone", "top.qcow2", "copy.qcow2", "p1", fails=True)
    virsh("vol-wipe", "copy.qcow2", "p1")
    with open_disk(pool / "top.qcow2", "qcow2"):
        assert "error:" in virsh("vol-delete", "top.qcow2", "p1", fails=True)
    for name in ("top.qcow2", "a.qcow2", "copy.qcow2"):
        virsh("vol-delete", name, "p1")
    assert virsh.table("vol-list", "p1") == []
    for name in ("../x", "a/b", ""):
        assert "error:" in virsh("vol-create-as", "p1", name, "1M", fails=True)


def test_bytes_up_and_down(virsh, pool, tmp_path):
    virsh("vol-create-as", "p1", "a.img", "4M", "--format", "raw")
    data = bytes(range(256)) * 4096 * 4
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data)
    virsh("vol-upload", "a.img", source, "p1")
    virsh("vol-download", "a.img", target, "p1")
    assert target.read_bytes() == data
    virsh("vol-download", "a.img", target, "p1", "--offset", 256, "--length", 1000)
    assert target.read_bytes() == data[256:1256]
    with source.open("wb") as file:
        file.truncate(3 * MIB)
        file.write(b"begin")
        file.seek(2 * MIB)
        file.write(b"end")
    virsh("vol-create-as", "p1", "s.img", "3M", "--format", "raw")
    virsh("vol-upload", "s.img", source, "p1", "--sparse")
    assert (pool / "s.img").read_bytes() == source.read_bytes()
    reader = Virsh(tmp_path / "lv-ro", "-r")
    assert "error:" in reader("vol-upload", "a.img", source, "p1", fails=True)
    with open_disk(pool / "a.img", "raw"):
        assert "error:" in virsh("vol-upload", "a.img", source, "p1", fails=True)


NETWORK = """<network><name>n1</name><forward mode='nat'/><bridge name='virbr1' stp='on' delay='0'/>
<ip address='10.77.5.1' netmask='255.255.255.0'><dhcp><range start='10.77.5.1' end='10.77.5.254'/>
<host mac='52:54:00:00:00:01' ip='10.77.5.50'/></dhcp></ip></network>"""


def test_the_life_of_a_network(virsh, tmp_path):
    path = tmp_path / "network.xml"
    path.write_text(NETWORK)
    virsh("net-define", path)
    assert virsh.table("net-list", "--all") == [["n1", "inactive", "yes", "yes"]]
    virsh("net-start", "n1")
    assert "already active" in virsh("net-start", "n1", fails=True)
    assert virsh.table("net-list") == [["n1", "active", "yes", "yes"]]
    uuid = virsh("net-uuid", "n1")
    assert virsh("net-name", uuid) == "n1"
    virsh("net-autostart", "n1", "--disable")
    info = virsh("net-info", "n1")
    assert re.search(r"Autostart: +no", info)
    assert re.search(r"Active: +yes", info)
    told = virsh("net-dumpxml", "n1")
    assert "10.77.5.1" in told
    assert re.search(r"Bridge: +virbr1", info)
    path.write_text(told)
    subprocess.run(["virt-xml-validate", path], check=True, capture_output=True)
    virsh("net-define", path)
    assert virsh("net-uuid", "n1") == uuid
    assert virsh.table("net-dhcp-leases", "n1") == []
    virsh("net-destroy", "n1")
    assert "not active" in virsh("net-destroy", "n1", fails=True)
    virsh("net-undefine", "n1")
    assert "failed to get network 'n1'" in virsh("net-info", "n1", fails=True)
    path.write_text(NETWORK.replace("nat", "hostdev"))
    assert "error:" in virsh("net-define", path, fails=True)
    assert client.host().networks() == []


def test_a_network_is_updated(virsh, tmp_path):
    path = tmp_path / "network.xml"
    path.write_text(NETWORK)
    virsh("net-define", path)
    host = "<host mac='52:54:00:00:00:02' ip='10.77.5.60'/>"
    virsh("net-update", "n1", "add", "ip-dhcp-host", host, "--config")
    (network,) = client.host().networks()
    fixed = {"52:54:00:00:00:01": "10.77.5.50", "52:54:00:00:00:02": "10.77.5.60"}
    assert network["fixed"] == fixed
    assert "10.77.5.60" in virsh("net-dumpxml", "n1")
    uuid = virsh("net-uuid", "n1")
    assert "not active" in virsh(
        "net-update", "n1", "delete", "ip-dhcp-host", host, "--live", fails=True
    )
    virsh("net-start", "n1")
    outside = host.replace("10.77.5", "10.78.5")
    assert "none of the machines" in virsh(
        "net-update", "n1", "modify", "ip-dhcp-host", outside, fails=True
    )
    virsh("net-update", "n1", "delete", "ip-dhcp-host", host, "--live", "--config")
    span = "<range start='10.77.5.9' end='10.77.5.20'/>"
    virsh("net-update", "n1", "add-first", "ip-dhcp-range", span)
    (network,) = client.host().networks()
    assert len(network["fixed"]) == 1
    assert (network["first"], network["last"]) == ("10.77.5.9", "10.77.5.20")
    assert virsh("net-uuid", "n1") == uuid
    virsh("net-undefine", "n1")


def test_an_image_of_a_cd_is_told_as_one(virsh, tmp_path):
    pool = tmp_path / "p1"
    virsh("pool-define-as", "p1", "dir", "--target", pool)
    virsh("pool-build", "p1")
    virsh("pool-start", "p1")
    virsh("vol-create-as", "p1", "a.iso", "1M", "--format", "iso")
    assert "raw" in virsh("vol-dumpxml", "a.iso", "p1")
    (pool / "a.iso").write_bytes(bytes(0x8001) + b"CD001" + bytes(4096))
    assert "iso" in re.search("<format.*>", virsh("vol-dumpxml", "a.iso", "p1"))[0]


def test_a_network_that_is_not_active_is_not_joined(virsh, tmp_path):
    from ringzero.errors import ConflictError
    from ringzero.net.named import directory

    path = tmp_path / "network.xml"
    path.write_text(NETWORK)
    virsh("net-define", path)
    with pytest.raises(ConflictError, match="not active"):
        directory.find("n1").connect()
    start("web")
    assert virsh("domstate", "web") == "running"
