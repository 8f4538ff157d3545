"""A running machine's network interfaces: their ports, their networks, what went through them.

What is changed here is the machine's description from then on: its copies have it, too.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ringzero.config.devices.net import NetConfig
from ringzero.config.ports import Forward, choose, parse_ports, without
from ringzero.errors import ConflictError, InvalidValueError
from ringzero.records import replace
from ringzero.vm.ends.backends.net import NetBackend

if TYPE_CHECKING:
    from ringzero.vm.build import Assembly


class Nets:
    """The interfaces of the machine of `parts`, by number."""

    def __init__(self, parts: Assembly) -> None:
        self._parts = parts
        self._changing = threading.Lock()

    def __iter__(self) -> Iterator[NetBackend]:
        found = self._parts.devices.backends.values()
        return (backend for backend in found if isinstance(backend, NetBackend))

    # ---- ports ------------------------------------------------------------

    def ports(self) -> list[Forward]:
        """Return the ports of the host that lead to the machine."""
        return [forward for backend in self for forward in backend.network.forwards()]

    def publish(self, text: str) -> list[Forward]:
        """Forward ports, written as `-p` takes them, by the first interface that can.

        All of them or none. Raises InvalidValueError, ConflictError, HostError.
        """
        wanted = parse_ports(text)
        with self._changing, contextlib.ExitStack() as undo:
            number, backend = next(
                ((n, b) for n, b in enumerate(self) if b.config.routed), (None, None)
            )
            if number is None or backend is None:
                raise ConflictError(
                    "the machine is on no network that forwards ports",
                    hint="start it with --net user, or a network by its name",
                )
            made = []
            for forward in wanted:
                bound = backend.network.forward(forward)
                undo.callback(backend.network.unforward, bound)
                made.append(bound)
            self._note(number, replace(backend.config, ports=(*backend.config.ports, *wanted)))
            undo.pop_all()
        return made

    def unpublish(self, text: str) -> list[Forward]:
        """Forward ports no longer: "8080", "8080/udp", or as `-p` has them; return which.

        Connections that are up go on. Raises InvalidValueError, NotFoundError.
        """
        with self._changing:
            here = [(n, f) for n, backend in enumerate(self) for f in backend.network.forwards()]
            chosen = choose(text, [forward for _, forward in here])
            gone = [(number, forward) for number, forward in here if forward in chosen]
            for number, forward in gone:
                list(self)[number].network.unforward(forward)
            for number, forward in gone:
                config = list(self)[number].config
                self._note(number, replace(config, ports=without(config.ports, forward)))
        return [forward for _, forward in gone]

    # ---- networks ---------------------------------------------------------

    def connect(self, config: NetConfig, number: int | None = None) -> int:
        """Plug an interface into the network that `config` names; return its number.

        Without `number`, the first that is on none, or else the first. Its MAC address, MTU and
        queues stay. Raises InvalidValueError, NotFoundError, and what the network raises.
        """
        with self._changing:
            backends = list(self)
            if number is None:
                found = (n for n, b in enumerate(backends) if b.config.network == "none")
                number = next(found, 0)
            if not 0 <= number < len(backends):
                raise InvalidValueError(
                    f"the machine has no interface eth{number}",
                    hint="interfaces are given at its start: --net NETWORK for each",
                )
            old = backends[number].config
            new = config.plugged_instead_of(old, self._parts.config.name)
            backends[number].connect(new)
            self._note(number, new)
        return number

    def _note(self, number: int, config: NetConfig) -> None:
        """Make `config` the description of an interface."""
        list(self)[number].config = config
        self._parts.config = self._parts.config.map_devices(
            lambda n, device: config if device.kind == "net" and n == number else device
        )
