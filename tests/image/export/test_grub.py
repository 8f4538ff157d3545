"""GRUB's core as it is put together: what GRUB would find in it, and grub-mkimage beside it."""

import lzma
import struct
import subprocess

import pytest

from ringzero.errors import GuestImageError
from ringzero.image.export import grub
from tests.image.export.made import grub_files
from tests.image.fs.made import tool

# Magic number and length of struct grub_module_info32; the kernel's code has the number, too.
HEAD = b"mimg" + struct.pack("<I", 12)
SCRIPT, PREFIX = "search.fs_uuid 1234 root\n", "/boot/grub"


def unpacked(core, decompressor):
    """Return what the decompressor makes of a core, as the numbers in it say."""
    packed, plain = struct.unpack_from("<II", core, 8)
    data = core[len(decompressor) : len(decompressor) + packed]
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16, "lc": 3, "lp": 0, "pb": 2}]
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters).decompress(data, plain)


def objects(plain):
    """Yield (kind, content) of what stands behind the kernel."""
    at = plain.index(HEAD)
    _, offset, size = struct.unpack_from("<III", plain, at)
    end, at = at + size, at + offset
    assert end == len(plain)
    while at < end:
        kind, length = struct.unpack_from("<II", plain, at)
        yield kind, plain[at + 8 : at + length]
        at += length
    assert at == end


def test_a_core_has_what_grub_looks_for():
    files = grub_files()
    core = grub.core_image(files, SCRIPT, PREFIX, 2048)
    assert len(core) % 512 == 0
    start, sectors, segment = struct.unpack_from("<QHH", core, 500)
    assert (start, (sectors + 1) * 512, segment) == (2049, len(core), 0x820)
    plain = unpacked(core[512:], files["lzma_decompress.img"])
    found = list(objects(plain))
    modules = [data for kind, data in found if kind == 0]
    assert len(modules) == len(files) - 5 and all(data[:4] == b"\x7fELF" for data in modules)
    # A module stands behind all that it needs: GRUB loads them in this order.
    order = grub.with_dependencies(files, grub.MODULES)
    assert order.index("fshelp.mod") < order.index("ext2.mod") < order.index("search_fs_uuid.mod")
    assert found[-2][1].rstrip(b"\0").decode() == SCRIPT
    assert found[-1][1].rstrip(b"\0").decode() == PREFIX


def test_the_first_sector():
    code = grub.boot_code(grub_files()["boot.img"], 2048)
    assert len(code) == 440
    assert struct.unpack_from("<Q", code, 0x5C) == (2048,)
    assert code[0x66:0x68] == b"\x90\x90"


@pytest.mark.peer
def test_grub_mkimage_makes_the_same(tmp_path):
    program = tool("grub-mkimage")
    files = grub_files()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "script").write_text(SCRIPT)
    subprocess.run(
        [program, "-O", "i386-pc", "-d", tmp_path, "-p", PREFIX, "-c", tmp_path / "script",
         "-o", tmp_path / "core.img", *grub.MODULES],
        check=True,
    )  # fmt: skip
    theirs = (tmp_path / "core.img").read_bytes()
    ours = grub.core_image(files, SCRIPT, PREFIX, 2048)
    plain = [unpacked(core[512:], files["lzma_decompress.img"]) for core in (theirs, ours)]
    begin = plain[0].index(HEAD)
    # Theirs may order modules otherwise.
    assert plain[0][:begin] == plain[1][:begin]
    assert sorted(objects(plain[0])) == sorted(objects(plain[1]))


@pytest.mark.parametrize("name", ["kernel.img", "diskboot.img", "lzma_decompress.img", "ext2.mod"])
def test_files_that_are_not_grubs(name):
    files = grub_files()
    damaged = {"lzma_decompress.img": bytes(5000)}.get(name, b"")
    changed = {key: data for key, data in files.items() if key != name}
    with pytest.raises(GuestImageError, match=name):
        grub.core_image(changed, SCRIPT, PREFIX, 2048)
    if name != "ext2.mod":
        with pytest.raises(GuestImageError, match=name):
            grub.core_image({**changed, name: damaged}, SCRIPT, PREFIX, 2048)
    with pytest.raises(GuestImageError, match=r"boot\.img"):
        grub.boot_code(b"", 1)
