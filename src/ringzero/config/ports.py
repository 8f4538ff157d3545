"""Ports of the host that lead to a guest: the record, and how people write them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from ringzero.errors import InvalidValueError, NotFoundError
from ringzero.records import record, replace

LOOPBACK = "127.0.0.1"
# RFC 793: ports are 16-bit numbers, and 0 is none.
LARGEST_PORT = 65535
# Ports in one range: each is a socket, and a process may have 1024 by default.
MAX_RANGE = 512
_RANGE = r"\d{1,5}(?:-\d{1,5})?"
# Compiled where there are ports: that takes a start longer than most modules.
_SPELLING = (
    rf"(?:(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<four>\d+(?:\.\d+){{3}})):)?(?:(?P<host>{_RANGE})?:)?"
    rf"(?P<guest>{_RANGE})(?:/(?P<protocol>tcp|udp))?"
)
_HINT = "write [ADDR:]HOST:GUEST[/udp], as 8080:80, 127.0.0.1:0:22, [::1]:53:53/udp or 80-89:80-89"


@record
class Forward:
    """`port` of the host at `address` leads to `guest_port`; `guest` is the guest's address.

    `port` 0 means any free one. `protocol` is tcp or udp.
    """

    port: int
    guest_port: int
    address: str = LOOPBACK
    protocol: str = "tcp"
    guest: str = ""

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}->{self.guest_port}/{self.protocol}"

    @property
    def place(self) -> tuple[str, str, int]:
        """What of the host it takes: protocol, address and port."""
        return self.protocol, self.address, self.port

    def faults(self) -> list[str]:
        """Return what is wrong with it."""
        found = []
        if self.protocol not in ("tcp", "udp"):
            found.append(f"no ports of {self.protocol!r}: write tcp or udp")
        if not (0 <= self.port <= LARGEST_PORT and 0 < self.guest_port <= LARGEST_PORT):
            found.append(f"no such port: {self}; ports go up to {LARGEST_PORT}")
        return found

    def anywhere(self) -> Forward:
        """Return the same from any free port of the host."""
        return replace(self, port=0)


def parse_ports(text: str) -> list[Forward]:
    """Read "[ADDR:][HOST:]GUEST[/tcp|/udp]", ports or ranges of them; raises InvalidValueError.

    Without HOST, or with 0, the host's port is any free one. Ranges are of one length.
    """
    found = re.fullmatch(_SPELLING, text.strip())
    if found is None:
        raise InvalidValueError(f"no ports in {text!r}", hint=_HINT)
    guest = _range(found["guest"], text)
    host = _range(found["host"] or "0", text)
    if host == range(1):
        host_ports: Sequence[int] = [0] * len(guest)
    elif len(host) != len(guest):
        raise InvalidValueError(
            f"{text!r}: {len(host)} ports of the host for {len(guest)} of the guest",
            hint="give ranges of the same length",
        )
    else:
        host_ports = host
    address, protocol = found["six"] or found["four"] or LOOPBACK, found["protocol"] or "tcp"
    forwards = [Forward(*pair, address, protocol) for pair in zip(host_ports, guest, strict=True)]
    faults = [fault for forward in forwards for fault in forward.faults()]
    if faults:
        raise InvalidValueError(f"{text!r}: {faults[0]}", hint=_HINT)
    return forwards


def choose(text: str, forwards: Iterable[Forward]) -> list[Forward]:
    """Return those of `forwards` that are meant: "8080", "8080/udp", or as `-p` has them.

    Raises InvalidValueError, and NotFoundError where there is none.
    """
    # A single port is the host's here.
    place, slash, protocol = text.partition("/")
    exactly = ":" in place
    wanted = parse_ports((place if exactly else f"{place}:{place}") + slash + protocol)
    if exactly:
        found = [f for f in forwards if replace(f, guest="") in wanted]
    else:
        places = {(w.port, w.protocol) for w in wanted}
        found = [f for f in forwards if (f.port, f.protocol) in places]
    if not found:
        raise NotFoundError(
            f"no port is forwarded as {text!r}", hint="`ringzero port NAME` lists those that are"
        )
    return found


def without(forwards: Iterable[Forward], gone: Forward) -> tuple[Forward, ...]:
    """Return a description's ports but for the one that `gone` came of."""
    left = list(forwards)
    gone = replace(gone, guest="")
    for candidate in (gone, gone.anywhere()):
        if candidate in left:
            left.remove(candidate)
            break
    return tuple(left)


def _range(text: str, whole: str) -> range:
    first, _, last = text.partition("-")
    ports = range(int(first), int(last or first) + 1)
    if not 0 < len(ports) <= MAX_RANGE:
        raise InvalidValueError(
            f"no range of ports in {whole!r}", hint=f"from low to high, at most {MAX_RANGE} ports"
        )
    return ports


def double_faults(forwards: Sequence[Forward]) -> Iterator[str]:
    """Yield what is wrong with having all of these: a port of the host leads to one place."""
    places = [forward.place for forward in forwards if forward.port]
    for protocol, address, port in dict.fromkeys(p for p in places if places.count(p) > 1):
        yield f"port {port}/{protocol} of {address} is forwarded twice"
