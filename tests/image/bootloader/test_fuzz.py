"""Configurations of boot loaders from hostile disks: entries or an error of ours, and soon.

RINGZERO_FUZZ=N multiplies the number of examples (`make fuzz`).
"""

import contextlib
import os
import random
import struct
import time

import pytest

from ringzero.errors import FileSystemError, GuestImageError, NotFoundError
from ringzero.image.bootloader import extlinux, grub, kernels, uki
from tests.image.bootloader.made import volume, volumes

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))

BLS = (
    "title Linux\nversion 6.1\nmachine-id a0\nsort-key debian\nlinux /k\ninitrd /i\noptions x $y\n"
)
GRUB = """set default="${saved_entry}"
if [ -s $prefix/grubenv ]; then load_env; fi
search --no-floppy --fs-uuid --set=root aa-bb
menuentry 'Linux' --id one { linux /k root=UUID=aa-bb ro
 initrd /i
}
submenu 'more' { menuentry 'old' { linux /k single; initrd /i; } }
blscfg
"""
EXTLINUX = "DEFAULT one\nLABEL one\n KERNEL /k\n APPEND initrd=/i x\nINCLUDE more.conf\n"


def program():
    """Return a unified kernel image (PE) with a command line and a kernel."""
    parts = {".linux": b"kernel", ".cmdline": b"quiet", ".osrel": b"PRETTY_NAME=x\n"}
    table, body, at = b"", b"", 512
    for name, data in parts.items():
        table += struct.pack("<8sIIII16x", name.encode(), len(data), 0, 512, at)
        body += data.ljust(512, b"\0")
        at += 512
    head = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64)
    pe = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, len(parts), 0, 0, 0, 0, 0)
    return (head + pe + table).ljust(512, b"\0") + body


FILES = {
    "boot/grub/grub.cfg": GRUB.encode(),
    "boot/grub/grubenv": b"# GRUB Environment Block\nsaved_entry=one\n####",
    "boot/loader/entries/one.conf": BLS.encode(),
    "loader/entries/two.conf": BLS.encode(),
    "loader/loader.conf": b"default two*\ntimeout 3\n",
    "EFI/Linux/image.efi": program(),
    "extlinux/extlinux.conf": EXTLINUX.encode(),
    "extlinux/more.conf": b"INCLUDE extlinux.conf\nLABEL two\nLINUX /k\n",
    "boot/vmlinuz-6.1": b"k",
    "boot/initrd.img-6.1": b"i",
    "etc/os-release": b"ID=debian\n",
    "etc/fstab": b"UUID=aa-bb / ext4 defaults 0 1\n",
    "k": b"kernel",
    "i": b"initrd",
}
LOADERS = {"grub": grub, "uki": uki, "extlinux": extlinux, "kernels": kernels}
# What breaks those that count, convert and look for pairs.
NASTY = (b"\0", b"\xff\xfe", b"9" * 5000, b"-1", b"{", b"}", b'"', b"'", b"\\", b"$", b"${", b"\t",
         b"../../..", b"\n", b"(hd0,gpt99999)", b"(", b"+0-1", "é²٣".encode())  # fmt: skip


def changed(data, random_):
    """Return `data` with some of it changed, cut, moved or said again."""
    data = bytearray(data)
    for _ in range(random_.choice((1, 1, 3, 10))):
        at = random_.randrange(len(data) + 1)
        end = min(len(data), at + random_.choice((1, 4, 30)))
        how = random_.randrange(5)
        if how == 0:
            data[at:end] = random_.choice(NASTY)
        elif how == 1:
            data[at:end] = random_.randbytes(end - at)
        elif how == 2:
            del data[at:end]
        elif how == 3:
            data[at:at] = data[at:end] * random_.choice((1, 3, 50))
        else:
            words = bytes(data).split(b" ")
            random_.shuffle(words)
            data = bytearray(b" ".join(words))
    return bytes(data)


@pytest.mark.parametrize("name", LOADERS)
def test_what_is_changed_here_is_found_as_it_is(name):
    assert LOADERS[name].find(volumes(volume(1, FILES, uuid="aa-bb")))


@pytest.mark.parametrize("name", LOADERS)
def test_fuzz_changed_configurations(name):
    random_ = random.Random(name)
    for _ in range(150 * FUZZ):
        files = dict(FILES)
        for path in random_.sample(sorted(files), random_.choice((1, 2, 5))):
            files[path] = changed(files[path], random_)
        began = time.process_time()
        with contextlib.suppress(FileSystemError, NotFoundError, GuestImageError):
            for entry in LOADERS[name].find(volumes(volume(1, files, uuid="aa-bb"))):
                assert isinstance(entry.title, str) and isinstance(entry.command_line, str)
        assert time.process_time() - began < 10, files
