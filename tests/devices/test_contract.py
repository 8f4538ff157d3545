"""The device contract, over every device of both registries."""

import pytest

from ringzero.core.state import from_tree, to_tree
from ringzero.devices.contract import DEVICES
from ringzero.devices.virtio.device import VIRTIO_DEVICES
from tests.devices.specimens import BUILDERS

WIDTHS = (1, 2, 4, 8)
PATTERNS = (0, 1, 0xFF, 0x5A5A5A5A5A5A5A5A, (1 << 64) - 1)

# Wires that others drive; what a battery keeps. (What the host typed also waits
# for the driver, which resets the device first of all.)
OUTLIVE_RESET = {
    "balloon": ("target",),
    "ioapic": ("levels",),
    "net": ("link",),
    "rtc": ("cmos", "offset"),
}


@pytest.fixture(params=sorted(BUILDERS))
def make(request):
    made = []

    def build():
        made.append(BUILDERS[request.param]())
        return made[-1]

    yield build
    for specimen in made:
        specimen.device.close()


def states(specimen):
    specimen.device.pause()
    return [to_tree(part.save()) for part in specimen.parts]


def registers(specimen):
    """What the guest can see. Reads that change something are made on both sides alike."""
    return [specimen.device.read(offset, 4) for offset in range(0, min(specimen.size, 0x200), 4)]


def test_every_registered_device_is_here():
    assert set(BUILDERS) == {name for name, _ in DEVICES} | {name for name, _ in VIRTIO_DEVICES}


def test_reset_gives_the_state_after_power_on(make):
    fresh, worked = make(), make()
    worked.work()
    worked.device.pause()
    worked.device.reset()
    first, second = states(fresh), states(worked)
    for tree in (*first, *second):
        for field in OUTLIVE_RESET.get(worked.name, ()):
            tree.pop(field, None)
        for port in tree.get("ports", ()):
            port.pop("backlog")
    assert first == second


def test_reset_lowers_the_interrupt(make):
    specimen = make()
    specimen.work()
    specimen.device.pause()
    specimen.device.reset()
    if specimen.line is not None and specimen.name != "ioapic":
        assert not specimen.line.level


def test_state_round_trip_in_mid_work(make):
    worked, other = make(), make()
    worked.work()
    saved = states(worked)
    if other.memory is not None:
        other.memory.write(0, worked.memory.read(0, worked.memory.size))
    for part, tree in zip(other.parts, saved, strict=True):
        part.restore(from_tree(part.state_type, tree))
    assert states(other) == saved
    assert registers(other) == registers(worked)
    assert states(other) == states(worked), "the same reads had the same effects"


def test_work_goes_on_after_restore(make):
    specimen = make()
    specimen.work()
    saved = states(specimen)
    specimen.device.reset()
    for part, tree in zip(specimen.parts, saved, strict=True):
        part.restore(from_tree(part.state_type, tree))
    specimen.device.resume()
    specimen.device.pause()
    specimen.device.read(0, 4)


def test_every_width_at_every_register_never_raises(make):
    specimen = make()
    specimen.work()
    for value in PATTERNS:
        for offset in range(min(specimen.size, 0x400)):
            for width in WIDTHS:
                specimen.device.write(offset, width, value & ((1 << 8 * width) - 1))
                seen = specimen.device.read(offset, width)
                assert isinstance(seen, int) and seen >= 0
    specimen.device.pause()
    specimen.device.reset()


def test_every_msr_never_raises(make):
    specimen = make()
    for index in specimen.msr_indices:
        for value in PATTERNS:
            assert specimen.msrs.write_msr(index, value) in (True, False)
            seen = specimen.msrs.read_msr(index)
            assert seen is None or 0 <= seen < 1 << 64


def test_interrupt_line_changes_level_only(make):
    specimen = make()
    specimen.work()
    assert all(a != b for a, b in zip(specimen.levels, specimen.levels[1:], strict=False))


def test_close_ends_and_pause_twice_is_fine(make):
    specimen = make()
    specimen.work()
    specimen.device.pause()
    specimen.device.pause()
    specimen.device.close()
