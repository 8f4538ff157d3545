"""The one way from a description to a machine, for a terminal's session and a machine's process.

What a machine is made of is loaded while its kernel is being copied, so that this
module loads little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringzero.config.machine import MachineConfig
from ringzero.host.progress import Steps

if TYPE_CHECKING:
    from ringzero.vm.machine import Machine


def build(config: MachineConfig, steps: Steps) -> Machine:
    """Build the machine of `config`; what takes long is told to `steps`.

    Raises what `ringzero.vm.machine.Machine` does.
    """
    from ringzero.board.contract import BOARDS
    from ringzero.engine import select
    from ringzero.vm.groundwork import Groundwork

    architecture = BOARDS.get(config.board).architecture
    engine = select.choose(config.engine, architecture)
    engine.prepare(steps, architecture)
    ground = Groundwork(config, engine)
    try:
        from ringzero.vm.build import Assembly
        from ringzero.vm.machine import Machine
    except BaseException:
        ground.close()
        raise
    return Machine.of(Assembly(ground))
