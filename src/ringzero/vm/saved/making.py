"""Making templates: a process in the background boots a guest, and writes it down when it is idle.

It is started when a machine of the description has ended, or is up, and is that machine's nothing:
no command, environment, name, port or folder of it is ever there. It takes turns with nobody: one
such process at a time, at the lowest priority.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ringzero.config.tree import config_from_tree
from ringzero.errors import GuestError, InvalidValueError, RingzeroError, StateError
from ringzero.settings import TEMPLATES

if TYPE_CHECKING:
    from ringzero.config.machine import MachineConfig
    from ringzero.engine.contract import Engine
    from ringzero.vm.machine import Machine
    from ringzero.vm.saved.templates import Key, Templates

# How long the whole may take, in seconds, on the slowest of hosts.
_PATIENCE = 300
# How long the guest is left alone before it is written down, in seconds: what it does when an
# interface has come up (RFC 4862, RFC 4861: it looks for others with its address, then for routers,
# each for a second or two) is over then.
_SETTLE = 4.0


def make(config: MachineConfig, engine: Engine, store: Templates) -> bool:
    """Make the template of `config` on `engine`; False where there is one, or one is being made.

    Raises what booting does, InvalidValueError where a template cannot be of such a machine.
    """
    from ringzero.vm.saved import templates

    key = templates.key_of(config, engine)
    if isinstance(key, str):
        raise InvalidValueError(f"no template: {key}")
    try:
        with store.making(key) as work:
            if work is None:
                return False
            _boot_and_write(key, engine, work)
            _try(key, engine, work)
            if templates.key_of(config, engine) != key:
                raise StateError("a file that it boots from was changed meanwhile")
    except RingzeroError as fault:
        store.note_failure(key, fault.message)
        raise
    return True


def _boot_and_write(key: Key, engine: Engine, work: Path) -> None:
    """Boot the description and write down its idle guest."""
    from ringzero.vm import copies
    from ringzero.vm.build import assemble
    from ringzero.vm.machine import Machine
    from ringzero.vm.saved import templates

    with Machine.of(assemble(key.config, engine)) as machine:
        machine.start()
        if not machine.agent.wait_ready(_PATIENCE):
            raise GuestError("the guest took no command")
        _ask_services(machine)
        # What every command needs is then in the guest's memory, and translated.
        if key.config.shares:
            # As far as that goes without knowing any of the folders.
            machine.run(("/sbin/share", "-m"))
        machine.run(_words(key.config))
        _ask_services(machine)
        time.sleep(_SETTLE)
        with machine.frozen():
            if machine.wait(0) is not None:
                raise GuestError("the guest has ended")
            state = copies.save(machine.parts)
            templates.write(work, key, state, machine.memory.host, time.time_ns())


def _try(key: Key, engine: Engine, work: Path) -> None:
    """Go on from the template once, and note which pages its first command touches, and runs.

    One from which no guest goes on is found here, and not by those who come to use it.
    """
    from ringzero.vm.build import Assembly
    from ringzero.vm.groundwork import Groundwork
    from ringzero.vm.machine import Machine
    from ringzero.vm.saved import templates, workingset

    template = templates.open_template(work, key)
    try:
        parts = Assembly(Groundwork(key.config, engine, later=True))
        machine = Machine.of(parts, template.resume(parts))
    finally:
        template.close()
    with machine:
        machine.run(_words(key.config), timeout=_PATIENCE)
        _ask_services(machine)
        machine.pause()
        workingset.note(machine.memory.host, work / workingset.FILE)
        (work / workingset.FILE).chmod(0o600)
        templates.note_code(work, machine.parts.vm.code_pages())


def _ask_services(machine: Machine) -> None:
    """Have the services of the guest's image answer, if it has any. Raises GuestError."""
    from ringzero.vm import boot

    if boot.services_of(machine.config.command_line) >= {boot.SERVICES, boot.READY}:
        asked = machine.run(boot.ASK_READY, text=True)
        if asked.exit_code:
            raise GuestError(f"its services are not ready: {asked.stderr.strip()[-200:]}")


def _words(config: MachineConfig) -> tuple[str, ...]:
    """Return a command that does nothing; a container's image takes options before it."""
    return ("--", "true") if config.disks else ("true",)


def main(arguments: list[str]) -> int:
    """Make the template whose stand-in standard input describes, in the store at `arguments`."""
    from ringzero.board.contract import BOARDS
    from ringzero.engine import select
    from ringzero.host.process import give_way, set_title
    from ringzero.host.progress import QUIET
    from ringzero.vm.saved.templates import Templates

    description = sys.stdin.read()
    if not description:
        # Whoever started it early has come to need none.
        return 0
    give_way()
    # A process of seconds, which makes much and gives up little: a twentieth less CPU time.
    gc.disable()
    os.chdir("/")
    os.umask(0o077)
    set_title("rz-template")
    signal.alarm(_PATIENCE)
    store = Templates(Path(arguments[0]))
    try:
        config = config_from_tree(json.loads(description))
        architecture = BOARDS.get(config.board).architecture
        engine = select.choose(config.engine, architecture)
        engine.prepare(QUIET, architecture, config.cpu or architecture.default_model)
        make(config, engine, store)
        store.prune(TEMPLATES.get())
    except RingzeroError as fault:
        print(f"ringzero: no template: {fault.message}", file=sys.stderr)
        return fault.exit_code
    return 0
