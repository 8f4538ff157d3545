"""`measure` is a bound: no conversion writes more than it says."""

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.disk import create_disk, open_disk
from ringzero.disk.convert import Conversion
from ringzero.disk.copying import Copy
from ringzero.disk.measure import measure
from ringzero.errors import InvalidValueError
from ringzero.units import GIB, KIB, MIB
from tests.disk.flavours import FLAVOURS, Flavour

TARGETS = [
    *FLAVOURS,
    Flavour("qcow2", {"cluster_size": "512", "refcount_bits": "64"}),
    Flavour("qcow2", {"cluster_size": "4K"}),
    Flavour("qcow2", {"preallocation": "falloc"}),
    Flavour("qcow2", {"cluster_size": "16K", "extended_l2": "on"}),
    Flavour("vmdk", {"subformat": "streamOptimized"}),
    Flavour("vhd", {"block_size": "512K"}),
    Flavour("vhdx", {"block_size": "1M"}),
    Flavour("vhdx", {"subformat": "fixed"}),
]
# What no packing makes shorter.
NOISE = random.Random(1).randbytes(24 * MIB)
# Where pieces of data begin, and how long they are, in sectors of a disk of so many sectors.
SOURCES = st.integers(1, 80_000).flatmap(
    lambda sectors: st.tuples(
        st.just(sectors * 512),
        st.lists(
            st.tuples(
                st.integers(0, sectors - 1), st.sampled_from([1, 7, 8, 9, 128, 129, 1000, 4096])
            ),
            max_size=40,
        ),
    )
)


def written(directory):
    return sum(file.stat().st_size for file in directory.iterdir())


def fill(path, size, pieces):
    with path.open("wb") as file:
        for sector, count in pieces:
            file.seek(sector * 512)
            file.write(NOISE[: 512 * min(count, size // 512 - sector)])
        file.truncate(size)


def bound_and_size(target, source, size, pieces, **how):
    """Return what is measured for a source with these pieces, and what is written."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name, "out")
        directory.mkdir()
        raw = Path(name, "raw")
        fill(raw, size, pieces)
        if source != "raw":
            create_disk(Path(name, "source"), source, size)
            with (
                open_disk(raw, "raw", read_only=True) as disk,
                open_disk(Path(name, "source"), source) as other,
            ):
                Copy(disk, other).run()
            raw = Path(name, "source")
        with open_disk(raw, source, read_only=True) as disk:
            found = measure(target.format, disk.size, disk, target.options)
            work = Conversion(
                directory / "out", target.format, options=target.options, sync=False, **how
            )
            work.run(disk)
        return found, written(directory)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("source", ["raw", "qcow2", "vhd"])
def test_measure_bounds_scattered_sources(target, source):
    @settings(max_examples=12, deadline=None)
    @given(SOURCES)
    def check(made):
        found, size = bound_and_size(target, source, *made)
        assert size <= found.required <= found.fully_allocated

    check()


@pytest.mark.parametrize("target", [t for t in TARGETS if t.format in ("qcow2", "vmdk")], ids=str)
def test_measure_bounds_what_is_compressed_and_what_keeps_zeroes(target):
    pieces = [(n * 150, 9) for n in range(100)]
    ways = [{"sparse": 0}, {"sparse": 65536}, {"sparse": 1 << 20}]
    if target.format == "qcow2" and not {"data_file", "preallocation"} & set(target.options):
        ways.append({"compress": True})
    for how in ways:
        found, size = bound_and_size(target, "raw", 32 * MIB, pieces, **how)
        assert size <= found.required


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_all_that_can_be_written(target):
    size = 9 * MIB
    found, full = bound_and_size(target, "raw", size, [(0, size // 512)])
    assert full <= found.required == found.fully_allocated
    # And it is no guess.
    assert found.fully_allocated <= full + 2 * MIB


def test_scattered_data_needs_a_table_each(tmp_path):
    fill(tmp_path / "raw", 100 * GIB, [(n * GIB // 512, 8) for n in range(100)])
    with open_disk(tmp_path / "raw", "raw", read_only=True) as disk:
        found = measure("qcow2", disk.size, disk)
        Conversion(tmp_path / "out", "qcow2", sync=False).run(disk)
    assert (tmp_path / "out").stat().st_size == found.required


def test_refcount_tables_that_grow():
    target = Flavour("qcow2", {"cluster_size": "512", "refcount_bits": "64"})
    found, size = bound_and_size(target, "raw", 24 * MIB, [(0, 24 * MIB // 512)])
    assert size <= found.required <= size * 1.2


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk", "vdi", "vhdx"])
def test_a_large_disk_is_measured_at_once(format):
    assert measure(format, 64 * GIB).fully_allocated >= 64 * GIB


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_nothing_is_reserved_to_measure(format):
    found = measure(format, 1 << 40, options={"preallocation": "full"})
    assert found.required == found.fully_allocated >= 1 << 40


def test_options_are_looked_at(tmp_path):
    for options in ({"preallocation": "some"}, {"none": "1"}):
        with pytest.raises(InvalidValueError):
            measure("qcow2", KIB, options=options)
    measure("qcow2", MIB, options={"data_file": str(tmp_path / "data")})
    assert list(tmp_path.iterdir()) == []
