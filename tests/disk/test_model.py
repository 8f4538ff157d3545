"""A model test of whole chains: random sequences of all operations, with reopening in between."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringzero.disk import create_disk, open_disk
from ringzero.errors import DiskUnsupportedError
from tests.disk.flavours import FLAVOURS, Flavour
from tests.disk.lossy import ROUNDS

ANY = [flavour for flavour in FLAVOURS if flavour.takes_backing]
# Parents of these are of their own kind.
OWN = [
    Flavour("vmdk"),
    Flavour("vmdk", {"zeroed_grain": "on"}),
    Flavour("vdi"),
    Flavour("vhd", {"block_size": "512K"}),
    Flavour("vhdx", {"block_size": "1M"}),
]
TOPS = [*ANY, *OWN]
ACTIONS = (
    *("write", "write", "write", "zero", "discard", "compress", "flush", "reopen"),
    *("snapshot", "apply", "delete", "resize", "layer", "read", "copy-on-read"),
)


class Chain:
    """Images on one another, the top one open, and what it must read as."""

    def __init__(self, directory, plan, top):
        self.directory = directory
        self.plan = plan
        self.layers = 0
        self.snapshots = {}
        bases = [f for f in FLAVOURS if f.blank and not f.options]
        self.tops = ANY
        if top in OWN:
            bases = [f for f in bases if f.format == top.format]
            self.tops = [f for f in OWN if f.format == top.format]
        base = plan.draw(st.sampled_from(bases))
        self.add(base, size=512 * plan.draw(st.integers(1, 1500)))

    def add(self, flavour, size=None):
        name = f"layer{self.layers}"
        more = {}
        if self.layers:
            self.disk.close()
            size = size or len(self.model)
            more = {"backing": self.name, "backing_format": self.flavour.format}
        options = {**flavour.options}
        if "data_file" in options:
            options["data_file"] = f"{name}.data"
        create_disk(self.directory / name, flavour.format, size, options=options, **more)
        self.name, self.flavour = name, flavour
        self.layers += 1
        self.snapshots = {}
        self.open()
        if not more:
            self.model = bytearray(self.disk.size)
        self.fit()

    def open(self, **more):
        self.disk = open_disk(self.directory / self.name, self.flavour.format, sync=False, **more)

    def fit(self):
        """Some formats round the size up."""
        self.model.extend(bytes(max(0, self.disk.size - len(self.model))))
        del self.model[self.disk.size :]

    def step(self, number):
        draw, disk, size = self.plan.draw, self.disk, len(self.model)
        action = draw(st.sampled_from(ACTIONS))
        offset = draw(st.integers(0, size - 1))
        length = draw(st.integers(1, min(size - offset, 300_000)))
        if action == "write":
            data = random.Random(number).randbytes(length)
            disk.write(offset, data)
            self.model[offset : offset + length] = data
        elif action == "zero":
            disk.write_zeroes(offset, length)
            self.model[offset : offset + length] = bytes(length)
        elif action == "discard":
            disk.discard(offset, length)
            seen = disk.read(offset, length)
            before = self.model[offset : offset + length]
            assert all(new in (0, old) for new, old in zip(seen, before, strict=True))
            self.model[offset : offset + length] = seen
        elif (
            action == "compress" and disk.compression is not None and self.flavour.format == "qcow2"
        ):
            unit = disk.compression.unit
            offset = offset // unit * unit
            data = bytes([number + 1]) * min(unit, size - offset)
            disk.compression.store(offset, disk.compression.pack(data))
            self.model[offset : offset + len(data)] = data
        elif action == "flush":
            disk.flush()
        elif action == "reopen":
            disk.close()
            self.open()
        elif action == "copy-on-read":
            disk.close()
            self.open(copy_on_read=True)
        elif action == "layer" and self.layers < 4:
            self.add(draw(st.sampled_from(self.tops)))
        elif action == "resize":
            self.resize(512 * draw(st.integers(1, 2000)))
        elif action in ("snapshot", "apply", "delete") and disk.snapshots is not None:
            self.snapshot(action, number)
        else:
            assert disk.read(offset, length) == self.model[offset : offset + length]

    def resize(self, size):
        try:
            self.disk.resize(size)
        except DiskUnsupportedError:
            return
        self.model.extend(bytes(max(0, size - len(self.model))))
        del self.model[size:]

    def snapshot(self, action, number):
        snapshots = self.disk.snapshots
        if action == "snapshot":
            try:
                snapshots.create(f"s{number}")
            except DiskUnsupportedError:
                return
            self.snapshots[f"s{number}"] = bytes(self.model)
        elif self.snapshots:
            name = self.plan.draw(st.sampled_from(sorted(self.snapshots)))
            if action == "delete":
                snapshots.delete(name)
                del self.snapshots[name]
                return
            try:
                snapshots.apply(name)
            except DiskUnsupportedError:
                return
            self.model[:] = self.snapshots[name]

    def verify(self):
        assert self.disk.read(0, self.disk.size) == self.model
        at = 0
        for extent in self.disk.block_status():
            assert extent.offset == at
            at += extent.length
            if extent.reads_zero:
                assert not any(self.model[extent.offset : at])
        assert at == self.disk.size
        for layer in self.disk.chain():
            try:
                report = layer.check()
            except DiskUnsupportedError:
                continue
            assert report.errors == 0, report.messages
            if layer is self.disk:
                assert report.leaks == 0, report.messages


@pytest.mark.parametrize("top", TOPS, ids=str)
@settings(
    max_examples=8 * ROUNDS,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(plan=st.data())
def test_random_chain(top, plan, tmp_path_factory):
    chain = Chain(tmp_path_factory.mktemp("chain"), plan, top)
    try:
        chain.step(100)
        chain.add(top)
        for number in range(plan.draw(st.integers(1, 14))):
            chain.step(number)
        chain.verify()
        chain.disk.close()
        chain.open(read_only=True)
        chain.verify()
    finally:
        chain.disk.close()
