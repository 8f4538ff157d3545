"""A device of your own in a machine: the guest reads a dice at a physical address."""

import random
from dataclasses import dataclass

import ringzero
from ringzero.devices.contract import Device

ADDRESS = 0xD100_0000


@dataclass(frozen=True)
class DiceState:
    sides: int
    rolls: int


class Dice(Device[DiceState]):
    """Every read rolls; a write of N makes a dice with N sides."""

    state_type = DiceState

    def __init__(self) -> None:
        self.reset()

    def read(self, offset: int, width: int) -> int:
        self.rolls += 1
        return random.randint(1, self.sides)

    def write(self, offset: int, width: int, value: int) -> None:
        self.sides = max(value, 1)

    def reset(self) -> None:
        self.sides, self.rolls = 6, 0

    def save(self) -> DiceState:
        return DiceState(self.sides, self.rolls)

    def restore(self, state: DiceState) -> None:
        self.sides, self.rolls = state.sides, state.rolls


def main() -> None:
    dice = Dice()
    with ringzero.Machine(image="micro", memory="256M") as vm:
        vm.attach("dice", dice, mmio=ADDRESS)
        for _ in range(3):
            print(vm.run(f"devmem {ADDRESS:#x} 32").stdout.decode().strip())
    print(f"the guest rolled {dice.rolls} times")


if __name__ == "__main__":
    main()
