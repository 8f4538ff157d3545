"""Boot Loader Specification entries: their order by the specification, and what is in them."""

import json
import os
import random
import subprocess

import pytest

from ringzero.image.bootloader import bls, uki
from tests.image.bootloader.made import volume, volumes
from tests.image.tools import packaged


def entry(title, **fields):
    lines = [f"title {title}", "linux /vmlinuz"]
    return "\n".join(lines + [f"{k.replace('_', '-')} {v}" for k, v in fields.items()]) + "\n"


def ids(files):
    found = volume(1, {f"loader/entries/{name}.conf": text for name, text in files.items()})
    return [e.id for e in bls.entries(found, "/loader/entries")]


@pytest.mark.parametrize(
    "older_first",
    [
        # From the specification's own examples (UAPI.10, "Examples").
        [
            *("122.1", "123~rc1-1", "123", "123-a", "123-a.1", "123-1", "123-1.1"),
            *("123^post1", "123.a-1", "123.1-1", "123a-1", "124-1"),
        ],
        ["1_2_3~rc1", "1_2_3"],
        ["5.9", "5.10", "5.10.1"],
        ["007", "8", "0123"],
        ["1" * 30, "2" + "0" * 30],
        ["", "a", "1"],
    ],
)
def test_versions(older_first):
    keys = [bls.version_key(text) for text in older_first]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)


def test_equal_versions():
    assert bls.version_key("123") == bls.version_key("00123")
    assert bls.version_key("1_2") == bls.version_key("1+2")


def test_entries_with_a_sort_key_come_first_and_newer_ones_before_older():
    found = ids(
        {
            "plain-2": entry("p2", version="9"),
            "plain-10": entry("p10", version="1"),
            "b-new": entry("bn", sort_key="b", version="6.10"),
            "b-old": entry("bo", sort_key="b", version="6.9"),
            "a": entry("a", sort_key="a", version="1"),
        }
    )
    assert found == ["a", "b-new", "b-old", "plain-10", "plain-2"]


def test_an_entry_without_tries_left_is_the_last_one():
    found = ids(
        {
            "bad+0-3": entry("bad", sort_key="a", version="9"),
            "good+2-1": entry("good", sort_key="a", version="8"),
            "old": entry("old", sort_key="a", version="7"),
        }
    )
    assert found == ["good", "old", "bad"]


def test_fields():
    text = """# comment
title\tArch Linux
linux   /vmlinuz-linux
initrd /amd-ucode.img
initrd /initramfs-linux.img
options root=UUID=aa rw
options quiet
"""
    files = {
        "loader/entries/arch.conf": text,
        "loader/entries/arm.conf": entry("ARM", architecture="aa64"),
        "loader/entries/windows.conf": "title Windows\nefi-of-another-kind /x\n",
        "loader/entries/notes.txt": text,
        "vmlinuz-linux": b"",
    }
    (found,) = bls.entries(volume(1, files), "/loader/entries")
    assert (found.id, found.title) == ("arch", "Arch Linux")
    assert found.kernel.path == "/vmlinuz-linux"
    assert [place.path for place in found.initrds] == ["/amd-ucode.img", "/initramfs-linux.img"]
    assert found.command_line == "root=UUID=aa rw quiet"


@pytest.mark.parametrize(
    ("default", "id_"),
    [("two.conf", "two"), ("t*", "two"), ("TWO", "two"), ("none", "zzz"), ("@saved", "zzz")],
)
def test_the_default_of_loader_conf(default, id_):
    files = {f"loader/entries/{name}.conf": entry(name) for name in ("one", "two", "zzz")}
    esp = volume(1, {**files, "loader/loader.conf": f"timeout 3\ndefault {default}\n"})
    (chosen,) = [e for e in uki.find(volumes(esp)) if e.default]
    assert chosen.id == id_


def test_entries_of_two_partitions_are_one_menu():
    esp = volume(1, {"loader/loader.conf": "default *b\n", "loader/entries/a.conf": entry("a")})
    boot = volume(2, {"loader/entries/b.conf": entry("b"), "vmlinuz": b""})
    found = uki.find(volumes(esp, boot))
    assert [(e.id, e.default) for e in found] == [("b", True), ("a", False)]
    assert found[0].kernel.volume is boot


def test_entries_in_the_roots_own_boot_directory():
    root = volume(1, {"boot/loader/entries/a.conf": entry("a"), "boot/vmlinuz": b""})
    (found,) = uki.find(volumes(root))
    assert found.kernel.path == "/boot/vmlinuz"


# bootctl takes a directory only where a file system begins there.
AS_ROOT_OF_A_FILE_SYSTEM = (
    *("unshare", "--map-root-user", "--mount", "sh", "-c"),
    'mount -t tmpfs esp /mnt && cp -r "$2/." /mnt && exec "$1" --esp-path=/mnt --json=short list',
    "sh",
)


@pytest.mark.peer
def test_the_order_is_that_of_bootctl(tmp_path):
    """What systemd's own program lists first is what its boot loader boots."""
    bootctl = tmp_path / "bootctl"
    bootctl.write_bytes(packaged("systemd-boot", "usr/bin/bootctl"))
    bootctl.chmod(0o755)
    esp = tmp_path / "esp"
    (esp / "EFI" / "systemd").mkdir(parents=True)
    (esp / "vmlinuz").write_bytes(b"")
    entries = esp / "loader" / "entries"
    entries.mkdir(parents=True)
    chance = random.Random(15)
    files = {}
    for number in range(40):
        name = chance.choice(["a", "b", "arch", "arch-fallback"]) + chance.choice(["", "-1", "-10"])
        name += f"-{chance.randrange(30)}" if number % 2 else chance.choice(["", "+3", "+0-1"])
        fields = {"version": chance.choice(["6.1.0-9", "6.1.0-10", "6.9~rc1", "6.9", "6.9^1"])}
        if chance.random() < 0.6:
            fields["sort_key"] = chance.choice(["debian", "arch"])
        if chance.random() < 0.5:
            fields["machine_id"] = chance.choice(["1" * 32, "2" * 32])
        files[name] = entry(name, **fields)
        (entries / f"{name}.conf").write_text(files[name])
    done = subprocess.run(
        [*AS_ROOT_OF_A_FILE_SYSTEM, bootctl, esp],
        env=os.environ | {"SYSTEMD_RELAX_ESP_CHECKS": "1"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"needs mounts of its own: {done.stderr}")
    assert done.returncode == 0, done.stderr
    theirs = [json.loads(line)["id"].removesuffix(".conf") for line in done.stdout.splitlines()]
    assert ids(files) == theirs
