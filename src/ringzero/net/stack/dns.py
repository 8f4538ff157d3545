"""The resolver that guests are given: names of its own, and whom to ask about all others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from ringzero.net.stack import addresses as addressing
from ringzero.net.stack import dnsmessage as dns
from ringzero.net.stack.policy import Policy


class Names:
    """Names and their addresses, of 4 or 16 bytes; one may be several names'."""

    def __init__(self, domain: str = "") -> None:
        self.domain = domain
        self._addresses: dict[str, list[bytes]] = {}
        self._names: dict[bytes, str] = {}

    def add(self, name: str, addresses: Iterable[bytes]) -> None:
        """Enter a name; without a dot in it, with the domain behind it as well."""
        name = name.lower().rstrip(".")
        full = f"{name}.{self.domain}" if self.domain and "." not in name else name
        for address in addresses:
            for spelling in dict.fromkeys((name, full)):
                known = self._addresses.setdefault(spelling, [])
                if address not in known:
                    known.append(address)
            self._names.setdefault(address, full)

    def find(self, name: str) -> list[bytes] | None:
        """Return the addresses of a name; None where it is not known."""
        return self._addresses.get(name)

    def name_of(self, reverse: str) -> str | None:
        """Return the name of the address that `reverse` asks for, as 1.2.0.192.in-addr.arpa."""
        for address, name in self._names.items():
            if dns.reverse_name(address) == reverse:
                return name
        return None


def parse_hosts(text: str) -> dict[str, list[str]]:
    """Return what a hosts(5) file says, by name; lines that make no sense are passed over."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        for name in names:
            found.setdefault(name.lower(), []).append(address)
    return found


class Hosts(Protocol):
    """What the host's hosts(5) file says; a dict will do."""

    def get(self, name: str, /) -> Sequence[bytes] | None:
        """Return the addresses of a name in lower case."""
        ...


class DnsServer:
    """Answers from `own` names, then from `hosts`; what it does not know is to be forwarded.

    `foreign` says of an address whether others may give it to an allowed name: the host and what
    belongs to it are allowed by their own names only.
    """

    def __init__(
        self,
        own: Names,
        policy: Policy,
        foreign: Callable[[bytes], bool] = addressing.leads_out,
    ) -> None:
        self.own = own
        self._policy = policy
        self._foreign = foreign
        self.hosts: Hosts = {}

    def answer(self, query: bytes) -> bytes | None:
        """Return the answer; None means that somebody else is to be asked.

        A query that makes no sense gets an error, or an empty answer where even that is not due.
        """
        try:
            question = dns.parse_question(query)
        except dns.DnsFormatError:
            return dns.refusal(query, dns.FORMAT_ERROR) or b""
        if not dns.is_standard(question):
            return dns.reply(query, question, dns.NOT_IMPLEMENTED)
        name = question.name
        if question.kind == dns.PTR:
            found = self.own.name_of(name)
            if found is not None:
                return dns.reply(query, question, dns.NO_ERROR, [(dns.PTR, dns.encode_name(found))])
        addresses: Sequence[bytes] | None = self.own.find(name)
        if addresses is None and self._policy.allows_name(name):
            addresses = self.hosts.get(name)
            if addresses:
                for address in addresses:
                    self._policy.learn(name, address, None)
        if addresses is not None:
            return dns.reply(query, question, dns.NO_ERROR, _records(addresses, question.kind))
        domain = self.own.domain
        if domain and (name == domain or name.endswith("." + domain)):
            return dns.reply(query, question, dns.NAME_ERROR)
        if not self._policy.allows_name(name):
            return dns.reply(query, question, dns.REFUSED)
        return None

    def learn(self, query: bytes, answer: bytes, now: float) -> None:
        """Note the addresses in another resolver's answer, where only some may be used."""
        if not self._policy.restricted:
            return
        try:
            name = dns.parse_question(query).name
            for _, kind, ttl, data in dns.answers(answer):
                fits = (kind, len(data)) in ((dns.A, 4), (dns.AAAA, 16))
                if fits and self._foreign(data):
                    self._policy.learn(name, data, now + ttl)
        except dns.DnsFormatError:
            return


def _records(addresses: Iterable[bytes], kind: int) -> list[tuple[int, bytes]]:
    wanted = {dns.A: (4,), dns.AAAA: (16,), dns.ANY: (4, 16)}.get(kind, ())
    return [
        (dns.A if len(address) == 4 else dns.AAAA, address)
        for address in addresses
        if len(address) in wanted
    ]
