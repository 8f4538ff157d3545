"""Flags of guests of the user's own: what is wrong is told at once, and nothing is left behind."""

import os

import pytest

from ringzero.cli.main import main
from tests.image.fs.made import ext

GRUB = "menuentry 'Own' --id own {\n linux /boot/vmlinuz root=/dev/vda\n initrd /boot/initrd\n}\n"
USER_DATA = "#cloud-config\nruncmd: [true]\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to be in, with no machines, and with files of each kind."""
    for name in ("MACHINES", "DATA"):
        monkeypatch.setenv(f"RINGZERO_{name}_DIR", str(tmp_path / name.lower()))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name, data in {
        "empty": b"",
        "zeros": bytes(1 << 20),
        "random": os.urandom(1 << 20),
        "text": b"hello\n",
        "private": b"-----BEGIN OPENSSH PRIVATE KEY-----\nx\n",
        "data.yaml": USER_DATA.encode(),
        "wrong.yaml": b"#cloud-config\na: [\n",
        "net.yaml": b"version: 9\n",
    }.items():
        (here / name).write_bytes(data)
    with (here / "huge").open("wb") as file:
        file.truncate(1 << 40)
    (here / "folder").mkdir()
    (here / "pipe").symlink_to("nowhere")
    return here


@pytest.fixture(scope="session")
def bootable(tmp_path_factory):
    """A disk with a file system, GRUB's configuration and what it names, but no cloud-init."""
    top = tmp_path_factory.mktemp("bootable")
    tree = top / "tree"
    (tree / "boot/grub").mkdir(parents=True)
    (tree / "etc").mkdir()
    (tree / "etc/os-release").write_text("ID=own\n")
    (tree / "boot/vmlinuz").write_bytes(b"kernel")
    (tree / "boot/initrd").write_bytes(b"initrd")
    (tree / "boot/grub/grub.cfg").write_text(GRUB)
    ext("-t", "ext4")(tree, top / "disk")
    return top / "disk"


def left(place):
    """Return what stands beside the user's own files."""
    return [
        path
        for top in ("machines", "data")
        for path in (place.parent / top).rglob("*")
        if path.is_file() and path.name != "lock"
    ]


def refused(place, capfd, words, *said):
    assert main(["run", *words]) in (2, 3, 4, 5)
    error = capfd.readouterr().err
    assert error.count("error:") == 1, error
    assert "Traceback" not in error
    for text in said:
        assert text in error
    assert left(place) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--cloud-init none", "none does not exist"),
        ("--cloud-init folder", "folder"),
        ("--cloud-init pipe", "pipe does not exist"),
        ("--cloud-init empty", "begins with ''"),
        ("--cloud-init text", "begins with 'hello'"),
        ("--cloud-init random", "no text"),
        ("--cloud-init huge", "larger than 16 MiB"),
        ("--cloud-init wrong.yaml", "no valid YAML"),
        ("--ssh-key none", "none does not exist"),
        ("--ssh-key folder", "folder"),
        ("--ssh-key private", "private key"),
        ("--ssh-key text", "no public key"),
        ("--ssh-key huge", "larger than 16 MiB"),
        ("--hostname a_b", "no host name"),
        ("--hostname " + "a" * 300, "no host name"),
        ("--network-config none", "none does not exist"),
        ("--network-config text", "a str where"),
        ("--network-config net.yaml", "version 1 or 2"),
        ("--cloud-init data.yaml --boot-entry nothing", "0  Own"),
    ],
)
@pytest.mark.peer
def test_cloud_init(place, bootable, capfd, words, said):
    disk = ["--disk", f"{bootable},ro,format=raw"]
    refused(place, capfd, ["-d", "--name", "x", *disk, *words.split(" ")], said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--boot-entry x", "without a disk"),
        ("--boot-entry x --disk none", "none does not exist"),
        ("--boot-entry x --disk zeros,ro", "nothing to boot"),
        ("--boot-entry x --disk random,ro,format=raw", "nothing to boot"),
        ("--boot-entry x --disk empty,ro,format=raw", "nothing to boot"),
        ("--boot-entry x --disk huge,ro,format=raw", "nothing to boot"),
        ("--boot-entry x --disk folder", "folder"),
        ("--cloud-init data.yaml", "without a disk"),
        ("--cloud-init data.yaml --disk zeros,ro", "nothing to boot"),
        ("--cloud-init data.yaml --disk zeros,ro --root folder", "no kernel, image or root"),
        ("--cloud-init data.yaml --disk zeros,ro -- true", "needs the agent"),
        ("--root none", "none does not exist"),
        ("--root text", "is no folder"),
        ("--root folder:xx", "does not exist"),
        ("--root folder --init bin/sh", "no path of a program"),
        ("--root folder --init /bin/sh", "has no /bin/sh"),
        ("--root folder --init /a\tb", "no path of a program"),
        ("--init /bin/sh", "--root DIR"),
        ("--kernel none", "none does not exist"),
        ("--kernel folder", "folder"),
        ("--initrd none", "--initrd without --kernel"),
    ],
)
def test_disks_and_roots(place, capfd, words, said):
    refused(place, capfd, words.split(" "), said)


@pytest.mark.parametrize("name", ["zeros", "text", "random", "empty", "huge"])
def test_files_that_are_no_kernel(place, capfd, name):
    refused(place, capfd, ["--kernel", name, "--engine", "soft"], name)


@pytest.mark.peer
def test_a_disk_without_cloud_init_is_told(place, bootable, capfd):
    disk = ["--disk", f"{bootable},ro,format=raw"]
    refused(
        place,
        capfd,
        ["--engine", "soft", *disk, "--cloud-init", "data.yaml"],
        "no cloud-init was found",
        # The kernel is none.
        "boot/vmlinuz",
    )
