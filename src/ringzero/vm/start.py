"""How a machine comes to run: by booting, or from a template of its description."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from ringzero.errors import GuestError, NotFoundError, RingzeroError
from ringzero.settings import CACHE_DIR, TEMPLATES

if TYPE_CHECKING:
    from ringzero.config.machine import MachineConfig
    from ringzero.engine.contract import Engine
    from ringzero.host.background import Prepared
    from ringzero.vm.build import Assembly
    from ringzero.vm.copies import Introduction
    from ringzero.vm.guest.agent import Agent
    from ringzero.vm.saved.templates import Key, Template, Templates

# Why a machine boots that nothing is known of.
_FIRST = "the first of its description"
# The program that makes a template of the description on its standard input.
MAKING = "ringzero.vm.saved.making"


class Start:
    """The plan for one machine's start, and what came of it: `resumed`, or booted because of `why`.

    `tell` hears of what is wrong with templates here, in one line. A copy of another machine has
    no start of its own.
    """

    def __init__(
        self,
        why: str = "",
        tell: Callable[[str], object] = lambda line: None,
        *,
        copied: bool = False,
    ) -> None:
        self.resumed = False
        self.why = why
        self._copied = copied
        self._tell = tell
        self._store: Templates | None = None
        self._key: Key | None = None
        self._template: Template | None = None
        self._lasting = False
        # Whether a template is to be made for the next one.
        self._missing = False
        # The process that will make it, where that had to be started early.
        self._maker: Prepared | None = None

    @classmethod
    def plan(
        cls,
        config: MachineConfig,
        engine: Engine,
        *,
        boot: bool = False,
        lasting: bool = False,
        tell: Callable[[str], object] = lambda line: None,
    ) -> Start:
        """Return how a machine of `config` on `engine` is to start; `boot` has it boot anyway.

        One that is `lasting` has a template made, where there is none, while it runs.
        """
        if boot:
            return cls("asked for")
        if not TEMPLATES.get():
            return cls(f"{TEMPLATES.name}=0")
        from ringzero.vm.saved import templates

        key = templates.key_of(config, engine)
        if isinstance(key, str):
            return cls(key)
        start = cls("", tell)
        start._store, start._key, start._lasting = templates.Templates(), key, lasting
        start._look()
        return start

    @property
    def may_resume(self) -> bool:
        """Whether there is a template to go on from."""
        return self._template is not None

    @property
    def outcome(self) -> str:
        """What came of it, for people."""
        if self._copied or self.resumed:
            return "resumed" if self.resumed else "copied"
        return f"booted ({self.why})" if self.why else "booted"

    def _look(self) -> None:
        assert self._store is not None
        assert self._key is not None
        try:
            self._template = self._take(self._store, self._key)
        except NotFoundError as fault:
            self.why = fault.message
        except RingzeroError as fault:
            self.why = fault.message
            self._store.remove(self._key.name)
        else:
            return
        failed = self._store.failure(self._key)
        if failed:
            self.why = f"no template could be made: {failed}"
            return
        try:
            self._store.check_writable()
        except RingzeroError as fault:
            self.why = f"no template can be kept: {fault.message}"
            self._tell(f"this start boots: {self.why}")
            return
        if self.why != _FIRST:
            self._tell(f"this start boots: {self.why}")
        self._missing = True

    def _take(self, store: Templates, key: Key) -> Template:
        """Return the template; its image may bring it. Raises as `Templates.take`."""
        from ringzero.vm import boot

        with contextlib.suppress(NotFoundError):
            return store.take(key)
        why = _FIRST
        if boot.KEPT in boot.services_of(key.config.command_line):
            from ringzero.vm.saved import shipped

            why = shipped.bring(key, store)
        if why:
            raise NotFoundError(why)
        return store.take(key)

    def give_up(self, why: str) -> None:
        """Have the machine boot after all, and no template made of it."""
        self.why, self._missing = why or self.why, False
        self._close()

    def resume(self, parts: Assembly) -> Introduction | None:
        """Have a machine that has not begun go on from the template; None where it is to boot."""
        template = self._template
        if template is None:
            return None
        try:
            introduction = template.resume(parts)
            self.resumed = True
        except RingzeroError as fault:
            self.why, self._missing = fault.message, True
            if self._store is not None and self._key is not None:
                self._store.remove(self._key.name)
            self._tell(f"this start boots: {self.why}")
            return None
        finally:
            self._close()
        return introduction

    def _close(self) -> None:
        if self._template is not None:
            self._template.close()
            self._template = None

    def prepare(self) -> None:
        """Start the process that makes a template, where one is missing; it waits for its time."""
        if self._maker is None and self._missing and self._store is not None:
            from ringzero.host import background

            settings = {
                CACHE_DIR.name: str(CACHE_DIR.get().absolute()),
                TEMPLATES.name: str(TEMPLATES.get()),
            }
            self._maker = background.prepare(MAKING, [str(self._store.root.absolute())], settings)

    def close(self) -> None:
        """Have a template made where one was missing, by a process of its own; and let go."""
        self._close()
        self.prepare()
        maker, self._maker = self._maker, None
        if maker is None:
            return
        if self._missing and self._key is not None:
            self._missing = False
            from ringzero.config.tree import config_to_tree

            maker.begin(json.dumps(config_to_tree(self._key.config)).encode())
        else:
            maker.abandon()

    def watch(self, agent: Agent | None) -> None:
        """Do so already when the guest takes commands, of a machine that is to last."""
        if self._lasting and self._missing and agent is not None:
            threading.Thread(target=self._await, args=(agent,), name="start", daemon=True).start()

    def _await(self, agent: Agent) -> None:
        with contextlib.suppress(GuestError):
            if agent.wait_ready():
                self.close()
