"""The one way from a description to a machine, for a terminal's session and a machine's process.

What a machine is made of is loaded while its kernel is being copied, so that this
module loads little.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ringzero.config.machine import MachineConfig
from ringzero.host.progress import Steps

if TYPE_CHECKING:
    from ringzero.vm.groundwork import Groundwork
    from ringzero.vm.machine import Machine


def build(
    config: MachineConfig,
    steps: Steps,
    *,
    boot: bool = False,
    lasting: bool = False,
    tell: Callable[[str], object] = lambda line: None,
    ground: Groundwork | None = None,
) -> Machine:
    """Build the machine of `config`; what takes long is told to `steps`.

    It stands on `ground`, where that was laid already, which is freed with it.

    It goes on from a template where there is one, unless it is to `boot`; what is wrong with
    templates here is told to `tell`. Where there is none, one is made after the machine's end; of
    one that is `lasting`, when its guest is up. Raises what `ringzero.vm.machine.Machine` does.
    """
    from ringzero.board.contract import BOARDS
    from ringzero.engine import select
    from ringzero.vm.groundwork import Groundwork
    from ringzero.vm.start import Start

    architecture = BOARDS.get(config.board).architecture
    engine = select.choose(config.engine, architecture)
    engine.prepare(steps, architecture, config.cpu or architecture.default_model)
    start = Start.plan(config, engine, boot=boot, lasting=lasting, tell=tell)
    try:
        ground = ground or Groundwork(config, engine, later=start.may_resume)
        try:
            from ringzero.vm.build import Assembly
            from ringzero.vm.machine import Machine
        except BaseException:
            ground.close()
            raise
        return Machine.of(Assembly(ground), start=start)
    except BaseException:
        start.give_up("")
        raise
