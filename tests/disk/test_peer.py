"""VDI, VMDK, VHD and VHDX against qemu-img and qemu-io, both ways.

Each program makes what the other reads, changes, and makes of it again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from ringzero.disk import create_disk, open_disk
from ringzero.disk.compare import compare
from ringzero.disk.convert import Conversion
from ringzero.errors import DiskUnsupportedError

pytestmark = pytest.mark.peer

SIZE = 24 * 1024 * 1024 + 512 * 7

# qemu-img calls VHD by the name of its first maker.
QEMU_NAMES = {"vhd": "vpc"}


@dataclass(frozen=True)
class Variant:
    """A sub-format; `theirs` are qemu-img's options for the same, when they are not ours."""

    format: str
    options: dict = field(default_factory=dict)
    theirs: dict | None = None

    def __str__(self):
        return ",".join([self.format, *(f"{k}={v}" for k, v in self.options.items())])

    @property
    def qemu(self):
        return QEMU_NAMES.get(self.format, self.format)

    @property
    def flags(self):
        options = self.options if self.theirs is None else self.theirs
        return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


VARIANTS = [
    Variant("vdi"),
    Variant("vdi", {"static": "on"}),
    Variant("vhd", theirs={"force_size": "on"}),
    Variant("vhd", {"subformat": "fixed"}, {"subformat": "fixed", "force_size": "on"}),
    Variant("vhd", theirs={"subformat": "dynamic"}),
    Variant("vmdk"),
    Variant("vmdk", {"zeroed_grain": "on"}),
    Variant("vmdk", {"subformat": "monolithicFlat"}),
    Variant("vmdk", {"subformat": "twoGbMaxExtentSparse", "adapter_type": "lsilogic"}),
    Variant("vmdk", {"subformat": "twoGbMaxExtentFlat"}),
    Variant("vhdx"),
    Variant("vhdx", {"block_size": "1M"}),
    Variant("vhdx", {"block_size": "32M", "log_size": "2M"}),
    Variant("vhdx", {"subformat": "fixed"}),
]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


class Model:
    """A byte array, and the same writes sent to an image by either program."""

    def __init__(self, size, seed):
        self.bytes = bytearray(size)
        self.dice = random.Random(seed)

    def writes(self, count):
        for _ in range(count):
            length = self.dice.choice([512, 4096, 70_144, 400_384, 3_000_320])
            offset = self.dice.randrange(0, len(self.bytes) - length) // 512 * 512
            value = self.dice.choice([0, 0x11, 0x5A, 0xE7])
            self.bytes[offset : offset + length] = bytes([value]) * length
            yield offset, length, value

    def by_ringzero(self, path, variant, count=12):
        with open_disk(path, variant.format) as disk:
            for offset, length, value in self.writes(count):
                if value:
                    disk.write(offset, bytes([value]) * length)
                else:
                    disk.write_zeroes(offset, length)

    def by_qemu(self, path, variant, qemu_io, count=12):
        commands = []
        for offset, length, value in self.writes(count):
            how = f"-P {value}" if value else "-z"
            commands += ["-c", f"write {how} {offset} {length}"]
        out = qemu_io("-f", variant.qemu, *commands, path)
        assert "rror" not in out, out

    def seen_by_ringzero(self, path):
        with open_disk(path, read_only=True) as disk:
            assert disk.read(0, len(self.bytes)) == self.bytes
            assert not any(disk.read(len(self.bytes), disk.size - len(self.bytes)))
            try:
                report = disk.check()
            except DiskUnsupportedError:
                return
            assert report.errors == 0, report.messages
            # QEMU leaves the grains that it marks as zero where they are.
            zeroed = disk.format == "vmdk" and getattr(disk.parts[0], "zero_grains", False)
            assert report.leaks == 0 or zeroed, report.messages

    def seen_by_qemu(self, path, variant, qemu_img):
        model = path.with_suffix(".model")
        model.write_bytes(self.bytes)
        if variant.format in ("vdi", "vhdx"):
            assert "No errors were found" in qemu_img("check", "-f", variant.qemu, path)
        qemu_img("compare", "-f", "raw", "-F", variant.qemu, model, path)


@every_variant
def test_made_by_ringzero(variant, tmp_path, qemu_img, qemu_io):
    path = tmp_path / f"disk.{variant.format}"
    create_disk(path, variant.format, SIZE, options=variant.options)
    model = Model(SIZE, 1)
    model.seen_by_qemu(path, variant, qemu_img)
    model.by_ringzero(path, variant)
    model.seen_by_qemu(path, variant, qemu_img)
    model.by_qemu(path, variant, qemu_io)
    model.seen_by_ringzero(path)
    model.by_ringzero(path, variant)
    model.seen_by_qemu(path, variant, qemu_img)


@every_variant
def test_made_by_qemu(variant, tmp_path, qemu_img, qemu_io):
    path = tmp_path / f"disk.{variant.format}"
    qemu_img("create", "-f", variant.qemu, *variant.flags, path, SIZE)
    model = Model(SIZE, 2)
    model.seen_by_ringzero(path)
    model.by_qemu(path, variant, qemu_io)
    model.seen_by_ringzero(path)
    model.by_ringzero(path, variant)
    model.seen_by_qemu(path, variant, qemu_img)
    model.by_qemu(path, variant, qemu_io)
    model.seen_by_ringzero(path)


PAIRS = ["raw", "qcow2", "vmdk", "vhdx", "vhd", "vdi"]


@pytest.mark.parametrize("origin", PAIRS)
@pytest.mark.parametrize("step", [1, 2, 3])
def test_convert_between_formats(origin, step, tmp_path, qemu_img):
    """qemu-img makes the source, ringzero converts it, qemu-img compares the two."""
    target = PAIRS[(PAIRS.index(origin) + step) % len(PAIRS)]
    dice = random.Random(step)
    model = bytearray(SIZE)
    for _ in range(6):
        length = dice.choice([512, 70_144, 2_000_384])
        offset = dice.randrange(0, SIZE - length) // 512 * 512
        model[offset : offset + length] = dice.randbytes(length)
    (tmp_path / "model").write_bytes(model)
    theirs, ours = QEMU_NAMES.get(origin, origin), QEMU_NAMES.get(target, target)
    flags = ["-o", "force_size=on"] if theirs == "vpc" else []
    qemu_img("convert", "-f", "raw", "-O", theirs, *flags, tmp_path / "model", tmp_path / "a")
    with open_disk(tmp_path / "a", origin, read_only=True) as source:
        Conversion(tmp_path / "b", target, sync=False).run(source)
    qemu_img("compare", "-f", "raw", "-F", ours, tmp_path / "model", tmp_path / "b")
    with (
        open_disk(tmp_path / "a", origin, read_only=True) as source,
        open_disk(tmp_path / "b", target, read_only=True) as copy,
    ):
        assert compare(source, copy) is None
