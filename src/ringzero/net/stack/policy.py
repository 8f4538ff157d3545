"""Where guests may go: everywhere, or only to the places of a list."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable

from ringzero.errors import InvalidValueError
from ringzero.net.stack import addresses
from ringzero.records import record

# Addresses of allowed names that are remembered.
_MAX_LEARNED, _MAX_NAMES = 4096, 64
# A client may go on using an answer for longer than it was meant to, in seconds.
_GRACE = 300.0
_RULE = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]+(?:/\d+)?)\]|(?P<host>[^:/\[\]]+(?:/\d+)?))"
    r"(?::(?P<first>\d+)(?:-(?P<last>\d+))?)?(?:/(?P<protocol>tcp|udp))?"
)
_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")


@record
class Rule:
    """One place: a name (`*.` before it means all below it) or a prefix, ports, a protocol."""

    name: str = ""
    prefix: bytes = b""
    length: int = 0
    first_port: int = 0
    last_port: int = 65535
    protocol: str = ""

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read "HOST[:PORT[-PORT]][/tcp|/udp]"; raises InvalidValueError.

        HOST is a name, *.NAME, an address or ADDRESS/BITS; IPv6 stands in brackets.
        """
        hint = "write example.org:443, *.example.org, 192.0.2.0/24:80-90/tcp or [2001:db8::1]:53"
        found = _RULE.fullmatch(text.strip())
        if found is None:
            raise InvalidValueError(f"no place is called {text!r}", hint=hint)
        first = int(found["first"] or 0)
        last = int(found["last"] or found["first"] or 65535)
        if not first <= last <= 65535:
            raise InvalidValueError(f"no such ports in {text!r}", hint=hint)
        host, _, bits = (found["six"] or found["host"]).partition("/")
        protocol = found["protocol"] or ""
        try:
            prefix = addresses.parse(host)
        except InvalidValueError:
            if found["six"] or bits or not _NAME.fullmatch(host) or host[-1].isdigit():
                raise InvalidValueError(f"no place is called {text!r}", hint=hint) from None
            return cls(host.lower().rstrip("."), b"", 0, first, last, protocol)
        length = int(bits) if bits else 8 * len(prefix)
        if length > 8 * len(prefix):
            raise InvalidValueError(f"{host} has no prefix of {length} bits", hint=hint)
        return cls("", prefix, length, first, last, protocol)

    def covers_name(self, name: str) -> bool:
        """Return whether a name is this place's."""
        if self.name.startswith("*."):
            return name.endswith(self.name[1:])
        return bool(self.name) and name == self.name

    def covers(self, port: int, protocol: str) -> bool:
        """Return whether a port is this place's."""
        if self.protocol and protocol != self.protocol:
            return False
        return self.first_port <= port <= self.last_port


class Policy:
    """What is allowed. `rules` None allows everything."""

    def __init__(self, rules: Iterable[Rule] | None = None) -> None:
        self.rules = None if rules is None else tuple(rules)
        # For each address, the names by which it was found, and until when that is good.
        self._learned: OrderedDict[bytes, dict[str, float | None]] = OrderedDict()

    @property
    def restricted(self) -> bool:
        """Whether not everything is allowed."""
        return self.rules is not None

    def allows_name(self, name: str) -> bool:
        """Return whether a name may be asked for: a question says something to whom it reaches."""
        if self.rules is None:
            return True
        return any(rule.covers_name(name) for rule in self.rules)

    def learn(self, name: str, address: bytes, end: float | None) -> None:
        """Note that an allowed name has this address, until `end`."""
        if self.rules is None or not self.allows_name(name):
            return
        names = self._learned.setdefault(address, {})
        names[name] = None if end is None else end + _GRACE
        if len(names) > _MAX_NAMES:
            del names[next(iter(names))]
        self._learned.move_to_end(address)
        while len(self._learned) > _MAX_LEARNED:
            self._learned.popitem(last=False)

    def names_address(self, address: bytes) -> bool:
        """Return whether an address itself is one of the places."""
        rules = self.rules or ()
        return any(rule.prefix == address and rule.length == 8 * len(address) for rule in rules)

    def allows(
        self, address: bytes, port: int, protocol: str, now: float, *, exactly: bool = False
    ) -> bool:
        """Return whether a guest may go to an address: `protocol` is tcp, udp or icmp.

        `exactly` leaves out rules that merely cover it: prefixes, and names with a `*`.
        """
        if self.rules is None:
            return True
        names = [n for n, e in self._learned.get(address, {}).items() if e is None or e > now]
        for rule in self.rules:
            if exactly and (rule.name.startswith("*.") or rule.length < 8 * len(rule.prefix)):
                continue
            place = (
                addresses.in_prefix(address, rule.prefix, rule.length)
                if rule.prefix
                else any(map(rule.covers_name, names))
            )
            if place and (protocol == "icmp" or rule.covers(port, protocol)):
                return True
        return False
