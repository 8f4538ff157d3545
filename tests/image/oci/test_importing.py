"""Machines of other systems, disks and tars of files, brought into the store."""

import gzip
import json
import lzma
import os
import stat
import subprocess
import tarfile

import pytest

from ringzero.cli.main import main
from ringzero.deployment.description import Service
from ringzero.deployment.machine import pin
from ringzero.disk.opening import create_disk, open_disk
from ringzero.errors import ConflictError, GuestImageError, HostError, InvalidValueError
from ringzero.image.bootable import examine
from ringzero.image.export import appliance, formats
from ringzero.image.export.formats import Wishes
from ringzero.image.oci import boot
from ringzero.image.oci.difference import difference
from ringzero.image.oci.files import open_files
from ringzero.image.oci.importing import import_file
from ringzero.image.oci.manifest import DISK_ARTIFACT, DISK_CONFIG, DISK_LAYER
from ringzero.image.oci.pull import pull
from ringzero.image.oci.push import history, push, save
from ringzero.image.oci.reference import parse, parse_reference
from ringzero.image.oci.store import Store
from ringzero.image.oci.verify import verify
from ringzero.units import MIB
from tests.image.appliance.test_descriptions import VMX
from tests.image.oci import machines
from tests.image.oci.docker_registry import docker_registry, peer
from tests.image.oci.images import Image, digest, tar
from tests.image.oci.test_push import Receiver


@pytest.fixture
def cache(tmp_path, monkeypatch):
    place = tmp_path / "cache"
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(place))
    monkeypatch.setenv("RINGZERO_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(tmp_path / "machines"))
    return place


def imported(path, cache, name="old:1", **more):
    return import_file(path, [parse_reference(name)], cache=cache, **more)


@pytest.fixture
def old(tmp_path, cache):
    return imported(machines.system(tmp_path / "old.qcow2", "qcow2"), cache).image


def about(image, cache):
    (document,) = [json.loads((cache / "blobs/sha256" / image.digest[7:]).read_bytes())]
    return document


def ova(tmp_path):
    source = machines.system(
        tmp_path / "s.vmdk", "vmdk", subformat="streamOptimized", adapter_type="lsilogic"
    )
    described = appliance.Appliance("web", 3, 768 * MIB, machines.SIZE)
    with (tmp_path / "web.ova").open("wb") as file:
        appliance.write_ova(described, source, "web", file)
    return tmp_path / "web.ova"


def test_an_ova_becomes_an_image_with_its_settings(tmp_path, cache):
    found = imported(ova(tmp_path), cache, "web:1")
    assert found.notes == ()
    image = found.image
    assert image.machine.plain() == {"Memory": 768 * MIB, "CPUs": 3, "NICs": 1}
    document = about(image, cache)
    assert document["artifactType"] == DISK_ARTIFACT
    assert document["config"]["mediaType"] == DISK_CONFIG
    assert [layer["mediaType"] for layer in document["layers"]] == [DISK_LAYER]
    (disk,) = image.disks
    with open_disk(disk, "qcow2", read_only=True) as opened:
        assert opened.size == machines.SIZE and opened.backing_name is None
        assert examine(opened).choose().title == "Old server"
    # It is the blob itself, once on the disk.
    assert disk.samefile(cache / "blobs/sha256" / image.layers[0][7:])
    # The same file makes the same image; what is asked for counts.
    assert imported(tmp_path / "web.ova", cache, "web:2").image.digest == image.digest
    other = imported(tmp_path / "web.ova", cache, "web:3", memory=MIB * 64, cpus=1).image
    assert other.machine.plain() == {"Memory": 64 * MIB, "CPUs": 1, "NICs": 1}
    assert other.layers == image.layers
    assert [path.name for path in (cache / "images").glob(".partial-*")] == []


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vmdk", "vhdx", "vdi", "box", "xz"])
def test_all_kinds_of_disks(tmp_path, cache, kind):
    path = tmp_path / f"d.{kind}"
    if kind == "box":
        described = appliance.Appliance("d", 2, 640 * MIB, machines.SIZE)
        with path.open("wb") as file:
            appliance.write_box(
                "libvirt", described, machines.system(tmp_path / "q", "qcow2"), file
            )
    elif kind == "xz":
        path.write_bytes(lzma.compress(machines.system(tmp_path / "r").read_bytes(), preset=0))
    else:
        machines.system(path, kind)
    image = imported(path, cache).image
    with open_files(image) as files:
        assert files.read("/etc/hello", 100) == b"hello"
    # A box says it in its Vagrantfile.
    assert image.machine.memory == (640 * MIB if kind == "box" else None)


def test_several_disks(tmp_path, cache):
    (tmp_path / "web.vmx").write_bytes(
        VMX + b'ethernet0.present = "TRUE"\nethernet1.present = "TRUE"'
    )
    machines.system(tmp_path / "data.vmdk", "vmdk")
    create_disk(tmp_path / "web.vmdk", "vmdk", 8 * MIB)
    image = imported(tmp_path / "web.vmx", cache).image
    assert [path.name for path in image.disks] == ["disk-1.qcow2", "disk-2.qcow2"]
    assert image.machine.nics == 2
    with open_disk(image.disks[1], "qcow2", read_only=True) as disk:
        assert disk.size == 8 * MIB


def test_a_box_of_several_disks(tmp_path, cache):
    machines.system(tmp_path / "b.img", "qcow2")
    create_disk(tmp_path / "a.img", "qcow2", 8 * MIB)
    disks = [{"path": "b.img", "format": "qcow2"}, {"path": "a.img"}]
    about = json.dumps({"provider": "libvirt", "disks": disks}).encode()
    files = {"metadata.json": about, **{n: (tmp_path / n).read_bytes() for n in ("a.img", "b.img")}}
    (tmp_path / "two.box").write_bytes(gzip.compress(tar(files), 1))
    image = imported(tmp_path / "two.box", cache).image
    sizes = []
    for path in image.disks:
        with open_disk(path, "qcow2", read_only=True) as disk:
            sizes.append(disk.size)
    assert sizes == [machines.SIZE, 8 * MIB]
    with pytest.raises(InvalidValueError, match="has 2 disks"):
        formats.export(image, tmp_path / "a.ova", "ova", Wishes(), cache=cache)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "", 7, None])
def test_a_box_whose_disks_lead_elsewhere(tmp_path, cache, path):
    about = json.dumps({"provider": "libvirt", "disks": [{"path": path}]}).encode()
    (tmp_path / "two.box").write_bytes(gzip.compress(tar({"metadata.json": about}), 1))
    with pytest.raises(GuestImageError):
        imported(tmp_path / "two.box", cache)


def test_an_ova_that_is_none_is_no_tar_of_files(tmp_path, cache):
    (tmp_path / "a.ova").write_bytes(tar({"etc/a": b"1"}))
    with pytest.raises(GuestImageError, match="is no ova"):
        imported(tmp_path / "a.ova", cache)


def test_what_does_not_boot_is_told(tmp_path, cache, capsys):
    create_disk(tmp_path / "data.qcow2", "qcow2", 8 * MIB)
    assert main(["image", "import", str(tmp_path / "data.qcow2"), "-q"]) == 0
    out, err = capsys.readouterr()
    assert "nothing to boot on this disk" in err and "`run` will not boot it" in err
    assert out.startswith("data:latest  ")
    assert main(["image", "sbom", "data"]) == GuestImageError.exit_code
    assert "cannot be read" in capsys.readouterr().err


def test_it_goes_where_images_go(old, tmp_path, cache):
    save(old, tmp_path / "layout", "old:1", cache=cache)
    there = pull(parse(f"oci:{tmp_path}/layout"), cache=tmp_path / "2", architecture="amd64")
    assert (there.digest, len(there.disks)) == (old.digest, 1)
    receiver = Receiver()
    try:
        name = parse_reference(f"{receiver.host}/app:1")
        push(old, name, cache=cache)
        found = pull(name, cache=tmp_path / "3", architecture="amd64")
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
    assert found.disks[0].read_bytes() == old.disks[0].read_bytes()
    assert [step["instruction"] for step in history(found, tmp_path / "3")] == ["IMPORT old.qcow2"]
    assert {item.state for item in verify(found, tmp_path / "3")} == {"right"}
    assert found.summary()["kind"] == "disk"
    # Nothing of it is swept while it has a name.
    store = Store(cache)
    assert store.sweep() == 0
    store.remove("old:1")
    assert store.images() == [] and not (cache / "blobs/sha256" / old.digest[7:]).exists()


@pytest.mark.peer
def test_registries_and_their_clients_carry_it(old, tmp_path, cache):
    skopeo = peer("skopeo")
    with docker_registry(tmp_path) as host:
        name = parse_reference(f"{host}/old:1")
        push(old, name, cache=cache)
        words = ["copy", "--src-tls-verify=false", f"docker://{host}/old:1", f"oci:{tmp_path}/l:1"]
        subprocess.run([skopeo, *words], check=True, capture_output=True, timeout=60)
        found = pull(name, cache=tmp_path / "2", architecture="amd64")
    assert found.digest == old.digest
    assert pull(parse(f"oci:{tmp_path}/l:1"), cache=tmp_path / "3").digest == old.digest


def test_its_files_are_read(old, tmp_path, cache):
    changed = {**machines.FILES, "etc/hello": b"other", "etc/new": b""}
    other = imported(machines.system(tmp_path / "n.img", files=changed), cache, "new:1").image
    found = {(change.kind, change.path) for change in difference(old, other)}
    assert found == {("changed", "/etc/hello"), ("added", "/etc/new")}


def test_it_is_exported_again(old, tmp_path, cache):
    for name in ("a.img", "b.vmdk", "c.ova"):
        kind = formats.by_name(name)
        assert formats.export(old, tmp_path / name, kind, Wishes(), cache=cache) == machines.SIZE
        with open_disk(tmp_path / name, read_only=True) as disk:
            assert examine(disk).choose().title == "Old server"
    with pytest.raises(InvalidValueError, match="keeps its size"):
        formats.export(old, tmp_path / "d.img", "raw", Wishes(size=64 * MIB), cache=cache)
    assert main(["image", "export", "old:1", str(tmp_path / "files.tar")]) == 0
    with tarfile.open(tmp_path / "files.tar") as archive:
        member = archive.getmember("etc/hello")
        assert (member.uid, member.gid, member.mode) == (7, 8, 0o640)


# ---- hostile ones -------------------------------------------------------------


def crafted(tmp_path, disk, layer=DISK_LAYER, count=1):
    """Write a layout whose disk has given bytes."""
    made = Image([])
    made.config = made._put(
        json.dumps({"os": "linux", "architecture": "amd64"}).encode(), DISK_CONFIG
    )
    made.layers = [made._put(disk, layer)] * count
    document = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": made.config, "layers": made.layers}  # fmt: skip
    made.descriptor = made._put(json.dumps(document).encode(), document["mediaType"])
    made.write_layout(tmp_path / "layout")
    return parse(f"oci:{tmp_path}/layout")


def image_bytes(tmp_path, **more):
    path = tmp_path / "made.qcow2"
    create_disk(path, "qcow2", MIB, **more)
    return path.read_bytes()


def test_a_disk_that_names_other_files_is_refused(tmp_path, cache):
    (tmp_path / "secret").write_bytes(bytes(MIB))
    data = image_bytes(tmp_path, backing=tmp_path / "secret", backing_format="raw")
    with pytest.raises(GuestImageError, match="has to be whole"):
        pull(crafted(tmp_path, data), cache=cache)
    assert Store(cache).images() == []


def test_a_disk_whose_data_is_elsewhere_is_refused(tmp_path, cache):
    data = image_bytes(tmp_path, options={"data_file": "secret"})
    with pytest.raises(GuestImageError, match=r"damaged|whole"):
        pull(crafted(tmp_path, data), cache=cache)
    assert Store(cache).images() == []


@pytest.mark.parametrize(
    ("layer", "count", "said"),
    [(DISK_LAYER, 1, "damaged"), ("application/x", 1, "unknown type"), (DISK_LAYER, 0, "0 disks"),
     (DISK_LAYER, 17, "17 disks")],
)  # fmt: skip
def test_what_is_no_disk_is_refused(tmp_path, cache, layer, count, said):
    with pytest.raises(GuestImageError, match=said):
        pull(crafted(tmp_path, b"QFI\xfb" + bytes(600), layer, count), cache=cache)
    assert Store(cache).images() == []


def test_a_bomb_is_refused_before_it_is_read(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("RINGZERO_IMAGE_LIMIT", "64K")
    with pytest.raises(GuestImageError, match="more than 64"):
        imported(machines.system(tmp_path / "d.qcow2", "qcow2"), cache)
    (tmp_path / "d.img.gz").write_bytes(gzip.compress(bytes(MIB)))
    with pytest.raises(GuestImageError, match="unpacks to more than"):
        imported(tmp_path / "d.img.gz", cache)
    assert Store(cache).images() == []


def test_an_imported_overlay_is_made_whole(tmp_path, cache):
    """What its user names is read with all that it stands on, as it is elsewhere."""
    base = machines.system(tmp_path / "base.qcow2", "qcow2")
    create_disk(tmp_path / "top.qcow2", "qcow2", backing=base, backing_format="qcow2")
    (disk,) = imported(tmp_path / "top.qcow2", cache).image.disks
    with open_disk(disk, "qcow2", read_only=True) as opened:
        assert opened.backing_name is None and examine(opened).choose()


def test_what_is_no_file_is_not_waited_for(tmp_path, cache):
    os.mkfifo(tmp_path / "fifo.img")
    for path in (tmp_path / "fifo.img", tmp_path):
        with pytest.raises(GuestImageError, match="neither a file"):
            imported(path, cache)
    with pytest.raises(HostError):
        imported(tmp_path / "none.ova", cache)


def test_archives_of_images_are_for_load(tmp_path, cache):
    (tmp_path / "app.tar").write_bytes(tar({"manifest.json": b"[]"}))
    with pytest.raises(InvalidValueError) as told:
        imported(tmp_path / "app.tar", cache)
    assert told.value.hint == f"ringzero image load {tmp_path}/app.tar"
    assert main(["image", "load", str(ova(tmp_path))]) == GuestImageError.exit_code


# ---- tars of files ------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_a_systems_files_are_an_image_of_containers(tmp_path, cache, pack):
    data = tar({"./bin/sh": b"#!", "./etc/hello": b"hello", "./deep/a.ovf": b""})
    (tmp_path / "root.tar").write_bytes(pack(data))
    image = imported(tmp_path / "root.tar", cache).image
    assert (image.cmd, image.disks, image.diff_ids) == (("/bin/sh",), (), (digest(data),))
    with open_files(image) as files:
        assert files.read("/etc/hello", 100) == b"hello"
    (tmp_path / "none.tar").write_bytes(tar({"etc/a": b"1"}))
    assert imported(tmp_path / "none.tar", cache).image.cmd == ()


def test_hostile_tars_stay_inside(tmp_path, cache):
    files = {"etc": ("->", "/"), "etc/passwd": b"mine", "../../up": b"x", "/abs": b"y"}
    (tmp_path / "root.tar").write_bytes(tar(files))
    try:
        image = imported(tmp_path / "root.tar", cache).image
    except GuestImageError:
        return
    with open_files(image) as found:
        assert {path for path, node in found.walk() if stat.S_ISREG(node.mode)} <= {
            "/passwd", "/etc/passwd", "/up", "/abs",
        }  # fmt: skip
    assert not (tmp_path / "up").exists()


# ---- machines -----------------------------------------------------------------


def overlays(tmp_path):
    return sorted((tmp_path / "data/disks").glob("*"))


def described(tmp_path, name):
    return json.loads((tmp_path / "machines" / name / "machine.json").read_text())


def test_each_machine_writes_on_its_own(old, tmp_path, cache, capsys):
    for name in ("a", "b"):
        assert main(["create", "--name", name, "old:1"]) == 0
    assert "booting 'Old server' from old:1" in capsys.readouterr().err
    (tmp_path / "k.pub").write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA== k\n")
    seeded = ["--ssh-key", str(tmp_path / "k.pub")]
    assert main(["create", "--name", "c", "--memory", "1G", *seeded, "old:1"]) == 0
    assert "no cloud-init was found" in capsys.readouterr().err
    assert len(overlays(tmp_path)) == 3
    for path in overlays(tmp_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with open_disk(path, "qcow2", read_only=True) as disk:
            assert disk.backing_name == str(old.disks[0]) and examine(disk).choose()
    for word in (["image", "rm", "old:1"], ["image", "rm", old.digest]):
        assert main(word) == ConflictError.exit_code
        assert "is in use by a, b, c" in capsys.readouterr().err
    assert main(["rm", "a", "b", "c"]) == 0
    assert overlays(tmp_path) == []
    assert main(["image", "rm", "old:1"]) == 0


def test_what_a_machine_of_it_has(tmp_path, cache, capsys):
    imported(ova(tmp_path), cache, "web:1")
    assert main(["create", "--name", "a", "web:1"]) == 0
    assert (
        main(["create", "--name", "b", "--cpus", "1", "-p", "8080:80", "web:1", "--", "true"]) == 0
    )
    one, other = (described(tmp_path, name) for name in "ab")
    assert (one["config"]["memory"], one["config"]["cpus"]) == (768 * MIB, 3)
    assert (one["config"]["boot_entry"], one["config"]["agent"]) == ("", False)
    assert [d["kind"] for d in one["config"]["devices"]] == ["disk", "net"]
    # A command is run by the agent.
    assert (other["config"]["cpus"], other["config"]["agent"]) == (1, True)
    assert (one["image"], other["command"]) == ("web", ["true"])
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-e", "A=1"], "runs its own system"),
        (["--entrypoint", "sh"], "has no entrypoint"),
        (["--boot-entry", "none"], "no boot entry is called 'none'"),
        (["--root", "/"], "has its own root"),
    ],
)
def test_what_makes_no_sense_of_it(old, tmp_path, capsys, words, said):
    assert main(["create", "--name", "a", *words, "old:1"]) != 0
    assert said in capsys.readouterr().err
    assert overlays(tmp_path) == []


def test_where_a_container_is_wanted(old):
    with pytest.raises(InvalidValueError, match="is an imported machine"):
        boot.files("a", old)
    with pytest.raises(InvalidValueError, match="web: old:1 is an imported machine"):
        pin(Service("web", "old:1"))


def test_a_pool_holds_none(old, tmp_path, capsys):
    assert main(["pool", "start", "old:1"]) == InvalidValueError.exit_code
    assert "old:1 is an imported machine, and a pool holds" in capsys.readouterr().err
    assert overlays(tmp_path) == []


def test_one_that_is_pulled_for_its_machine(old, tmp_path, cache, monkeypatch, capsys):
    """Nothing was known of it before."""
    receiver = Receiver()
    try:
        name = f"{receiver.host}/app:1"
        push(old, parse_reference(name), cache=cache)
        monkeypatch.setenv("RINGZERO_CACHE_DIR", str(tmp_path / "2"))
        assert main(["create", "--name", "a", name, "--", "true"]) == 0
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
    found = described(tmp_path, "a")
    assert (found["config"]["boot_entry"], found["config"]["agent"]) == ("", True)
    assert f"booting 'Old server' from {name}" in capsys.readouterr().err
    assert len(overlays(tmp_path)) == 1


def test_the_command(tmp_path, cache, capsys):
    path = str(machines.system(tmp_path / "Old Server.img"))
    assert main(["image", "import", path, "-q", "--json", "--memory", "1G", "--cpus", "2"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["names"]) == ("disk", ["old-server:latest"])
    assert told["machine"] == {"Memory": 1024 * MIB, "CPUs": 2}
    assert main(["image", "inspect", "old-server"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["disks"] == told["disks"]
    assert main(["image", "tag", "old-server", "other:2"]) == 0
    assert main(["image", "ls"]) == 0
    assert "old-server:latest, other:2  " in capsys.readouterr().out
    assert main(["image", "import", path, "micro"]) == 2
    assert main(["image", "import", path, "--cpus", "0"]) == 2
    assert main(["image", "import", path, "Bad Name"]) == 2
