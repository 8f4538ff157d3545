"""A hostile guest: random accesses to every device, random rings to every virtio device.

Nothing may raise, hang, or answer outside its width. The quick slice runs in
`make test`; RINGZERO_FUZZ=N multiplies the number of examples (`make fuzz`).
"""

import os
import random
import struct
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringzero.core.state import from_tree, to_tree
from ringzero.errors import StateError
from tests.devices.specimens import BUILDERS

FACTOR = int(os.environ.get("RINGZERO_FUZZ", "1"))
QUICK = settings(
    max_examples=40 * FACTOR,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

accesses = st.lists(
    st.tuples(
        st.booleans(),
        st.integers(0, 0xFFF),
        st.sampled_from((1, 2, 4, 8)),
        st.one_of(st.integers(0, 255), st.integers(0, (1 << 64) - 1)),
    ),
    max_size=60,
)


@pytest.mark.parametrize("name", sorted(BUILDERS))
@QUICK
@given(
    data=accesses,
    msrs=st.lists(st.tuples(st.integers(0), st.integers(0, (1 << 64) - 1)), max_size=20),
)
def test_registers(name, data, msrs):
    specimen = BUILDERS[name]()
    try:
        for is_write, place, width, value in data:
            offset = place % max(specimen.size, 1)
            if is_write:
                specimen.device.write(offset, width, value & ((1 << 8 * width) - 1))
            else:
                assert specimen.device.read(offset, width) >= 0
        for which, value in msrs:
            if specimen.msr_indices:
                index = specimen.msr_indices[which % len(specimen.msr_indices)]
                specimen.msrs.write_msr(index, value)
                specimen.msrs.read_msr(index)
        specimen.device.pause()
        trees = [to_tree(part.save()) for part in specimen.parts]
        for part, tree in zip(specimen.parts, trees, strict=True):
            part.restore(from_tree(part.state_type, tree))
        assert [to_tree(part.save()) for part in specimen.parts] == trees
        specimen.device.reset()
    finally:
        specimen.device.close()


VIRTIO = ("rng", "block", "console", "net", "vsock")
# Addresses that matter: in RAM, at its end, beyond it, and those that wrap around.
EDGES = (0, 0x10000, 0x3FFFFF, 0x400000, 1 << 40, (1 << 64) - 1, (1 << 63) - 8)


def scribble(generator: random.Random, driver) -> None:
    """Write descriptors and indices that are mostly plausible and sometimes mad."""
    for queue in driver.queues:
        for number in range(queue.size):
            if generator.random() < 0.2:
                address = generator.choice(EDGES)
            else:
                address = generator.randrange(0x10000, 0x100000)
            length = generator.choice((0, 1, 8, 16, 24, 512, 4096, 0x100000, 0xFFFFFFFF))
            flags = generator.choice((0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 0xFFFF))
            following = generator.choice((number + 1, generator.randrange(0x10000)))
            driver.memory.write(
                queue.descriptors + 16 * number,
                struct.pack("<QIHH", address, length, flags, following & 0xFFFF),
            )
            driver.memory.write_int(
                queue.available + 4 + 2 * number,
                2,
                generator.choice((number, number, generator.randrange(0x10000))),
            )
        driver.memory.write_int(queue.available, 2, generator.randrange(4))
        ahead = generator.choice((1, 3, queue.size, queue.size + 1, 0x8000))
        used = driver.memory.read_int(queue.used + 2, 2)
        driver.memory.write_int(queue.available + 2, 2, (used + ahead) & 0xFFFF)


@pytest.mark.parametrize("name", VIRTIO)
@QUICK
@given(seed=st.integers(0, 1 << 32))
def test_virtqueues(name, seed):
    generator = random.Random(seed)
    specimen = BUILDERS[name]()
    driver = specimen.driver
    driver.features |= generator.choice((0, 1 << 28, 1 << 29, 3 << 28))
    driver.features |= generator.choice((0, 3)) if name == "console" else 0
    try:
        for _ in range(3):
            driver._free = 0x10000
            driver.queues.clear()
            driver.start({index: generator.choice((1, 2, 16, 64)) for index in range(8)})
            for _ in range(4):
                scribble(generator, driver)
                for index in generator.sample(range(8), 4):
                    driver.notify(index)
                if name == "console":
                    specimen.parts[1].ports[generator.randrange(2)].push(generator.randbytes(99))
                if generator.random() < 0.5:
                    driver.acknowledge()
            if generator.random() < 0.5:
                driver.transport.pause()
        begin = time.monotonic()
        driver.transport.pause()
        driver.transport.reset()
        assert time.monotonic() - begin < 5
    finally:
        specimen.device.close()


# Values that a damaged or forged saved machine may have in any field.
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 300),
    st.text(max_size=5),
    st.lists(st.integers(0, 300), max_size=30),
    st.dictionaries(st.text(max_size=3), st.none()),
)


@pytest.mark.parametrize("name", sorted(BUILDERS))
@QUICK
@given(data=st.data())
def test_saved_states(name, data):
    """A forged state is refused with StateError, or taken and then harmless."""
    specimen = BUILDERS[name]()
    specimen.work()
    specimen.device.pause()
    try:
        for part in specimen.parts:
            tree = to_tree(part.save())
            if not tree:
                continue
            for field in data.draw(st.sets(st.sampled_from(sorted(tree)), max_size=3)):
                tree[field] = data.draw(values)
            try:
                part.restore(from_tree(part.state_type, tree))
            except StateError:
                continue
            for offset in range(min(specimen.size, 0x200)):
                specimen.device.read(offset, 4)
                specimen.device.write(offset, 4, 1)
            part.save()
        specimen.device.pause()
    finally:
        specimen.device.close()
