"""The contract of a device, as tests: derive from `DeviceContract`, give `make`, and run pytest.

class TestDice(DeviceContract):
    size = 4

    def make(self):
        return Dice()
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

from ringzero.core.state import from_tree, to_tree
from ringzero.devices.contract import Device

WIDTHS = (1, 2, 4, 8)
# Values that a guest writes, cut to the width: nothing, one bit, all bits, every other bit.
PATTERNS = (0, 1, 0xFF, 0x5A5A_5A5A_5A5A_5A5A, (1 << 64) - 1)

New = Callable[[], Device[Any]]


class DeviceContract:
    """What every `ringzero.devices.contract.Device` keeps to; a subclass says which one.

    `size` is how many bytes of registers it has, `outlives_reset` names fields of its state
    that a reset leaves alone, as a battery does.
    """

    size: ClassVar[int] = 0x100
    outlives_reset: ClassVar[tuple[str, ...]] = ()

    def make(self) -> Device[Any]:
        """Return a new device, as after power-on."""
        raise NotImplementedError("a DeviceContract gives `make`, which returns a new device")

    def work(self, device: Device[Any]) -> None:
        """Use the device as a guest would, so that its state is another than after power-on."""
        for offset in range(0, self.size, 4):
            device.write(offset, 4, 3)

    @pytest.fixture
    def new(self) -> Iterator[New]:
        """Return what makes devices, which are closed after the test."""
        made: list[Device[Any]] = []

        def build() -> Device[Any]:
            made.append(self.make())
            return made[-1]

        yield build
        for device in made:
            device.close()

    def test_state_is_plain_data(self, new: New) -> None:
        device = new()
        self.work(device)
        device.pause()
        assert isinstance(device.save(), device.state_type)
        tree = _tree(device)
        assert json.loads(json.dumps(tree)) == tree

    def test_reset_gives_the_state_after_power_on(self, new: New) -> None:
        fresh, worked = new(), new()
        self.work(worked)
        worked.pause()
        worked.reset()
        fresh.pause()
        first, second = _tree(fresh), _tree(worked)
        for field in self.outlives_reset:
            first.pop(field, None)
            second.pop(field, None)
        assert first == second

    def test_state_round_trip_in_mid_work(self, new: New) -> None:
        worked, other = new(), new()
        self.work(worked)
        worked.pause()
        saved = _tree(worked)
        other.pause()
        other.restore(from_tree(other.state_type, saved))
        assert _tree(other) == saved
        assert _tree(worked) == saved, "saving changed the state"

    def test_work_goes_on_after_restore(self, new: New) -> None:
        device = new()
        self.work(device)
        device.pause()
        saved = _tree(device)
        device.reset()
        device.restore(from_tree(device.state_type, saved))
        device.resume()
        self.work(device)
        device.pause()

    def test_access_of_any_width_never_raises(self, new: New) -> None:
        device = new()
        self.work(device)
        for value in PATTERNS:
            for offset in range(self.size):
                for width in WIDTHS:
                    device.write(offset, width, value & ((1 << 8 * width) - 1))
                    seen = device.read(offset, width)
                    assert isinstance(seen, int) and seen >= 0, (offset, width)
        device.pause()
        device.reset()

    def test_pause_twice_and_close(self, new: New) -> None:
        device = new()
        self.work(device)
        device.pause()
        device.pause()
        device.resume()


def _tree(device: Device[Any]) -> Any:
    return to_tree(device.save())
