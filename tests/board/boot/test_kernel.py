import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.board.boot import kernelcache
from ringzero.board.boot.kernel import decompress, load_kernel, parse_kernel
from ringzero.errors import GuestImageError
from tests.board.kernels import COMPRESSIONS, bzimage, elf

FUZZ = 200 * int(os.environ.get("RINGZERO_FUZZ", "1"))


def test_vmlinux_is_loaded_where_it_is_linked():
    image = parse_kernel(elf())
    assert (image.kind, image.entry, image.version) == ("vmlinux", 0x1000000, "6.6.6-test")
    first, second = image.segments
    assert (first.address, first.size, bytes(first.data[:2])) == (0x1000000, 4096, b"\xf4\xf4")
    assert (second.address, bytes(second.data), second.size) == (0x2000000, b"data", 8192)
    assert (image.lowest, image.highest) == (0x1000000, 0x2002000)
    assert image.setup_header == b""


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_bzimage_of_every_compression(name):
    image = parse_kernel(bzimage(COMPRESSIONS[name](elf())))
    assert (image.kind, image.entry, image.version) == ("bzImage", 0x1000000, "6.6.6-test")
    assert bytes(image.segments[1].data) == b"data"
    assert image.setup_header[0x202 - 0x1F1 :][:4] == b"HdrS"
    assert image.command_line_size == 2047


@pytest.mark.parametrize("name", [n for n in COMPRESSIONS if n != "none"])
def test_damaged_payload_is_told(name):
    payload = COMPRESSIONS[name](elf([(0x1000000, os.urandom(50000), 65536)]))
    with pytest.raises(GuestImageError, match=r"damaged|cut short|empty"):
        decompress(payload[:25000])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"#!/bin/sh\necho no kernel\n" * 100, "not a Linux kernel"),
        (elf()[:40], "cut short"),
        (elf()[:400], "beyond the end"),
        (elf(bits=1), "not for x86-64"),
        (elf(machine=183), "not for x86-64"),
        (elf(kind=3), "not an executable"),
        (elf(count=0), "program header"),
        (elf(count=60000), "program header"),
        (elf(count=60), "outside the file"),
        (elf([(0x1000000, b"x" * 99, 10)]), "senseless"),
        (elf([(0xFFFFFFFFFFFFF000, b"x", 0x2000)]), "senseless"),
        (elf([(0x1000000, b"x", 1 << 45)]), "senseless"),
        (elf([(0x1000000, b"x", 4096), (0x1000800, b"y", 4096)]), "overlap"),
        (elf(entry=0x5000000), "entry point"),
        (elf([(0x1000000, b"", 0)]), "without anything to load"),
        (bzimage(elf(), protocol=0x0207), "too old"),
        (bzimage(elf(), xloadflags=0), "32-bit"),
        (bzimage(elf())[:3000], "cut short"),
        (bzimage(b"??" * 100), "unknown compression"),
        (bzimage(b""), "no payload"),
    ],
)
def test_bad_kernels_get_a_clear_error(data, message):
    with pytest.raises(GuestImageError, match=message):
        parse_kernel(data)


def test_file_errors_name_the_file(tmp_path):
    with pytest.raises(GuestImageError, match="nothing-here"):
        load_kernel(tmp_path / "nothing-here")
    with pytest.raises(GuestImageError, match="cannot read"):
        load_kernel(tmp_path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(GuestImageError, match=r"text: not a Linux kernel") as caught:
        load_kernel(tmp_path / "text")
    assert "bzImage" in caught.value.hint


def test_memory_too_small():
    image = parse_kernel(elf())
    image.check_fits(0x2002000)
    with pytest.raises(GuestImageError, match="needs memory"):
        image.check_fits(0x2001FFF)


def test_a_bomb_is_stopped(monkeypatch):
    monkeypatch.setattr("ringzero.board.boot.kernel.MAX_KERNEL_SIZE", 1 << 20)
    for name in ("gzip", "xz", "lzma", "bzip2", "zstd", "lz4"):
        with pytest.raises(GuestImageError):
            decompress(COMPRESSIONS[name](bytes(9 << 20)))


@pytest.fixture
def kernel_file(tmp_path, monkeypatch):
    """A kernel with a hole in it, in a file that counts as settled at once."""
    monkeypatch.setattr(kernelcache, "_SETTLED", 0)
    monkeypatch.setattr(kernelcache, "_WORTH_KEEPING", 0)
    path = tmp_path / "vmlinuz"
    content = b"\x0f\x0b" * 2048 + bytes(40 * 4096) + b"end"
    segments = [(0x1000000, content, 1 << 20), (0x2000000, bytes(8192), 8192)]
    path.write_bytes(bzimage(COMPRESSIONS["xz"](elf(segments))))
    return path


def memory_of(image):
    """What lies where, zeros left out."""
    found = {}
    for segment in image.segments:
        for at, byte in enumerate(bytes(segment.data)):
            if byte:
                found[segment.address + at] = byte
    return found


def test_the_next_start_reads_the_unpacked_kernel_only(kernel_file, tmp_path, monkeypatch):
    plain = load_kernel(kernel_file)
    first = load_kernel(kernel_file, tmp_path / "cache")
    assert memory_of(first) == memory_of(plain)
    assert first.highest == plain.highest
    assert first.lowest == plain.lowest
    assert sum(len(s.data) for s in first.segments) < 3 * 4096
    monkeypatch.setattr("ringzero.board.boot.kernel.parse_kernel", None)
    assert load_kernel(kernel_file, tmp_path / "cache") == first


def test_a_changed_kernel_is_read_again(kernel_file, tmp_path):
    load_kernel(kernel_file, tmp_path / "cache")
    kernel_file.write_bytes(b"?" * kernel_file.stat().st_size)
    with pytest.raises(GuestImageError):
        load_kernel(kernel_file, tmp_path / "cache")


def test_a_kernel_that_may_still_change_is_not_kept(kernel_file, tmp_path, monkeypatch):
    monkeypatch.setattr(kernelcache, "_SETTLED", 3600 * 10**9)
    load_kernel(kernel_file, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_small_kernel_is_not_kept(kernel_file, tmp_path, monkeypatch):
    monkeypatch.setattr(kernelcache, "_WORTH_KEEPING", kernel_file.stat().st_size + 1)
    load_kernel(kernel_file, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_damaged_cache_is_not_used(kernel_file, tmp_path):
    first = load_kernel(kernel_file, tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    whole, status = kept.read_bytes(), kept.stat()
    length = (1 << 40).to_bytes(8, "little")
    damaged = [
        # Written to: the time of modification tells.
        (whole[:-1] + b"\xff", None),
        (b"", status), (whole[:10], status), (whole[:-4096], status), (bytes(len(whole)), status),
        (length + whole[8:], status), (whole[:8] + b"[" + whole[9:], status),
    ]  # fmt: skip
    for content, times in damaged:
        # Replaced and not written to, as a mapping of it is in use.
        kept.unlink()
        kept.write_bytes(content)
        if times:
            os.utime(kept, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert load_kernel(kernel_file, tmp_path / "cache") == first
        assert kept.read_bytes() == whole


def test_the_cache_keeps_the_newest_kernels(kernel_file, tmp_path, monkeypatch):
    monkeypatch.setattr(kernelcache, "_KEPT", 2)
    for number in range(4):
        copy = tmp_path / f"copy{number}"
        copy.write_bytes(kernel_file.read_bytes())
        load_kernel(copy, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert kernelcache.recall(copy.stat(), tmp_path / "cache") is not None


def test_without_room_for_the_cache_the_kernel_still_loads(kernel_file, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert load_kernel(kernel_file, tmp_path / "file").entry == 0x1000000


def _never_worse_than_an_error(data):
    try:
        image = parse_kernel(bytes(data))
    except GuestImageError:
        return
    # What is accepted is in order.
    for segment in image.segments:
        assert len(segment.data) <= segment.size
    assert image.highest <= 1 << 46


@settings(max_examples=FUZZ, deadline=None)
@given(st.binary(max_size=2000), st.sampled_from([b"", b"\x7fELF\x02\x01\x01", b"MZ"]))
def test_random_bytes(data, magic):
    _never_worse_than_an_error(magic + data)


@settings(max_examples=FUZZ, deadline=None)
@given(
    st.sampled_from([elf(), *(bzimage(pack(elf())) for pack in COMPRESSIONS.values())]),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=8),
    st.integers(0, 1 << 20),
)
def test_mutated_and_cut_kernels(kernel, changes, cut):
    data = bytearray(kernel)
    for offset, value in changes:
        data[offset % len(data)] = value
    _never_worse_than_an_error(data[: cut % (2 * len(data))])


@settings(max_examples=FUZZ, deadline=None)
@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=6, max_size=6), st.integers(0, 1 << 64))
def test_hostile_program_headers(values, entry):
    data = bytearray(elf())
    struct.pack_into("<QQQQQQ", data, 64 + 8, *values)
    struct.pack_into("<Q", data, 24, entry & ((1 << 64) - 1))
    _never_worse_than_an_error(data)
