"""Questions to the resolvers that the host is configured with (resolv.conf(5), hosts(5)).

They are passed on as they are, under another identifier and from a port of
their own, so that nobody can guess either.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from ringzero.errors import InvalidValueError
from ringzero.net.proxy.loop import READ, WRITE, EventLoop, Timer
from ringzero.net.stack import addresses
from ringzero.net.stack.dns import parse_hosts, parse_resolv_conf

_PORT = 53
# As resolv.conf(5) has them: seconds for an answer, rounds through the resolvers, resolvers.
_TIMEOUT, _ROUNDS, _MAX_SERVERS = 3.0, 2, 3
# Questions on their way; further ones are not answered, and the guest asks again.
MAX_QUESTIONS = 256
_LARGEST = 65535
RESOLV_CONF, HOSTS = Path("/etc/resolv.conf"), Path("/etc/hosts")

Answer = Callable[[bytes | None], None]


class Resolver:
    """Asks for the guests. `refresh` tells whether the host's files have changed."""

    def __init__(
        self, loop: EventLoop, resolv_conf: Path = RESOLV_CONF, hosts: Path = HOSTS
    ) -> None:
        self._loop = loop
        self._files = resolv_conf, hosts
        self._stamps: tuple[object, ...] = ()
        self.servers: list[str] = []
        self.search: tuple[str, ...] = ()
        self.hosts: dict[str, list[bytes]] = {}
        self._questions: dict[_Question, None] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the host's configuration again, if it is another one."""
        stamps = tuple(map(_stamp, self._files))
        if stamps == self._stamps:
            return
        self._stamps = stamps
        servers, search = parse_resolv_conf(_read(self._files[0]))
        # resolver(3): without a configuration there is one on this host.
        self.servers = servers[:_MAX_SERVERS] or ["127.0.0.1"]
        self.search = tuple(search)
        self.hosts = {}
        for name, found in parse_hosts(_read(self._files[1])).items():
            known = [a for a in map(_address, found) if a is not None and _is_useful(a)]
            if known:
                self.hosts[name] = known

    def ask(self, query: bytes, stream: bool, answer: Answer) -> None:
        """Ask; `answer` is called once, with None where nobody answers."""
        if len(self._questions) >= MAX_QUESTIONS:
            return
        question = _Question(self, query, stream, answer)
        self._questions[question] = None
        question.begin()

    def close(self) -> None:
        """Give all sockets back; nobody is answered any more."""
        for question in list(self._questions):
            question.end()

    def done(self, question: _Question) -> None:
        """Forget a question."""
        self._questions.pop(question, None)

    @property
    def loop(self) -> EventLoop:
        """Whose thread asks."""
        return self._loop


class _Question:
    """One query, which goes to one resolver after the other until one answers."""

    def __init__(self, resolver: Resolver, query: bytes, stream: bool, answer: Answer) -> None:
        self._resolver = resolver
        self._loop = resolver.loop
        self._stream = stream
        self._answer = answer
        self._original = query[:2]
        self._identifier = os.urandom(2)
        self._query = self._identifier + query[2:]
        self._targets = list(resolver.servers) * _ROUNDS
        self._link: socket.socket | None = None
        self._timer: Timer | None = None
        self._data = b""

    def begin(self) -> None:
        """Ask the next resolver."""
        self._hang_up()
        if not self._targets:
            self.end()
            self._answer(None)
            return
        target = self._targets.pop(0)
        self._timer = self._loop.at(self._loop.now + _TIMEOUT, self.begin)
        family = socket.AF_INET6 if ":" in target else socket.AF_INET
        kind = socket.SOCK_STREAM if self._stream else socket.SOCK_DGRAM
        try:
            link = self._link = socket.socket(family, kind | socket.SOCK_NONBLOCK)
            link.connect((target, _PORT))
        except BlockingIOError:
            pass
        except OSError:
            self.begin()
            return
        if self._stream:
            self._loop.watch(link, WRITE, self._connected)
            return
        try:
            link.send(self._query)
        except OSError:
            self.begin()
            return
        self._loop.watch(link, READ, self._received)

    def _connected(self, events: int) -> None:
        link = self._link
        if link is None:
            return
        try:
            link.send(len(self._query).to_bytes(2, "big") + self._query)
        except OSError:
            self.begin()
            return
        self._loop.forget(link)
        self._loop.watch(link, READ, self._received)

    def _received(self, events: int) -> None:
        link = self._link
        if link is None:
            return
        try:
            data = link.recv(_LARGEST)
        except BlockingIOError:
            return
        except OSError:
            self.begin()
            return
        if self._stream:
            if not data:
                self.begin()
                return
            self._data += data
            length = int.from_bytes(self._data[:2], "big")
            if len(self._data) < 2 or len(self._data) < 2 + length:
                return
            data = self._data[2 : 2 + length]
        if len(data) < 12 or data[:2] != self._identifier:
            return
        self.end()
        self._answer(self._original + data[2:])

    def _hang_up(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._link is not None:
            self._loop.forget(self._link)
            self._link.close()
            self._link = None
        self._data = b""

    def end(self) -> None:
        """Ask no longer."""
        self._hang_up()
        self._resolver.done(self)


def _stamp(path: Path) -> object:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _address(text: str) -> bytes | None:
    try:
        return addresses.parse(text)
    except InvalidValueError:
        return None


def _is_useful(address: bytes) -> bool:
    """Return whether an address means the same to a guest as to the host."""
    return addresses.leads_out(address)
