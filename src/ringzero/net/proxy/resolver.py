"""Questions to the resolvers that the host is configured with (resolv.conf(5), hosts(5)).

They are passed on as they are, under another identifier and from a port of
their own, so that nobody can guess either.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from ringzero.errors import InvalidValueError
from ringzero.host import resolvconf
from ringzero.net.proxy.loop import READ, WRITE, EventLoop, Timer
from ringzero.net.proxy.sockets import open_socket
from ringzero.net.stack import addresses
from ringzero.net.stack.dns import parse_hosts
from ringzero.net.stack.dnsmessage import NOT_IMPLEMENTED, REFUSED, SERVER_FAILURE

_PORT = 53
# As resolv.conf(5) has them: rounds through the resolvers, resolvers.
_ROUNDS, _MAX_SERVERS = 2, 3
# In seconds. Clients ask again after 5: they hear before that when nobody answers. The next
# resolver is asked when one has not answered for `_NEXT`, or sooner where there are many.
BOUND, _NEXT = 4.5, 1.5
# Questions on their way; further ones are refused, and the guest asks again.
MAX_QUESTIONS = 256
_LARGEST = 65535
_HEADER = 12
# Answers after which resolver(3) asks the next resolver.
_TRY_ANOTHER = (SERVER_FAILURE, NOT_IMPLEMENTED, REFUSED)
HOSTS = Path("/etc/hosts")

Answer = Callable[[bytes | None], None]


class Resolver:
    """Asks for the guests. `refresh` tells whether the host's files have changed.

    `here` are the addresses by which guests reach the host: names that its hosts(5) file has on
    loopback are those to them.
    """

    def __init__(
        self,
        loop: EventLoop,
        resolv_conf: Path = resolvconf.RESOLV_CONF,
        hosts: Path = HOSTS,
        *,
        here: Sequence[bytes] = (),
    ) -> None:
        self._loop = loop
        self._files = resolv_conf, hosts
        self._here = {len(address): address for address in here}
        self._stamps: tuple[object, ...] = ()
        self.servers: list[str] = []
        self.search: tuple[str, ...] = ()
        self._hosts: dict[str, list[bytes]] = {}
        self._questions: dict[_Question, None] = {}
        self.refresh()

    def refresh(self) -> bool:
        """Read the host's configuration again, if it is another one; return whether it was."""
        stamps = tuple(map(_stamp, self._files))
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        servers, search = resolvconf.parse(_read(self._files[0]))
        # resolver(3): without a configuration there is one on this host.
        self.servers = [s for s in servers if _is_address(s)][:_MAX_SERVERS] or ["127.0.0.1"]
        self.search = tuple(search)
        self._hosts = {}
        for name, found in parse_hosts(_read(self._files[1])).items():
            known = [a for a in (self._seen(name, text) for text in found) if a is not None]
            if known:
                self._hosts[name] = known
        return True

    def get(self, name: str, /) -> Sequence[bytes] | None:
        """Return the addresses that the host's hosts(5) file has for a name."""
        self.refresh()
        return self._hosts.get(name)

    def _seen(self, name: str, text: str) -> bytes | None:
        """Return an address of the hosts(5) file as guests see it; None where it means nothing."""
        try:
            address = addresses.parse(text)
        except InvalidValueError:
            return None
        if addresses.leads_out(address):
            return address
        # Their own loopback is what guests call localhost.
        local = "localhost" in name or name.startswith("ip6-")
        loops = address[0] == 127 if len(address) == 4 else address == addresses.LOOPBACK6
        return self._here.get(len(address)) if loops and not local else None

    def ask(self, query: bytes, stream: bool, answer: Answer) -> None:
        """Ask; `answer` is called once, within `BOUND` seconds, with None where nobody answers."""
        if len(self._questions) >= MAX_QUESTIONS:
            answer(None)
            return
        self.refresh()
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
    """One query, which goes to one resolver after the other until one answers.

    Whoever was asked may still answer while others are asked.
    """

    def __init__(self, resolver: Resolver, query: bytes, stream: bool, answer: Answer) -> None:
        self._resolver = resolver
        self._loop = resolver.loop
        self._stream = stream
        self._answer = answer
        self._original = query[:2]
        self._identifier = os.urandom(2)
        self._query = self._identifier + query[2:]
        self._targets = list(resolver.servers) * _ROUNDS
        self._pause = min(_NEXT, BOUND / len(self._targets))
        self._tries: dict[_Try, None] = {}
        self._next: Timer | None = None
        self._bound: Timer | None = None
        # An answer that says no more than that there is none.
        self._poor: bytes | None = None

    def begin(self) -> None:
        """Ask the first resolver."""
        self._bound = self._loop.at(self._loop.now + BOUND, self._give_up)
        self._ask_next()

    def _ask_next(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
        while self._targets:
            attempt = _Try(self, self._targets.pop(0))
            if attempt.begin(self._loop, self._query, stream=self._stream):
                self._tries[attempt] = None
                break
        if self._targets:
            self._next = self._loop.at(self._loop.now + self._pause, self._ask_next)
        elif not self._tries:
            self._give_up()

    def failed(self, attempt: _Try) -> None:
        """Hear that a resolver is not there."""
        self._drop(attempt)
        if not self._tries:
            self._ask_next()

    def answered(self, attempt: _Try, data: bytes) -> None:
        """Take a resolver's answer, if it is one."""
        if len(data) < _HEADER or data[:2] != self._identifier:
            return
        if data[3] & 15 in _TRY_ANOTHER:
            self._poor = data
            self._targets = [t for t in self._targets if t != attempt.target]
            self.failed(attempt)
            return
        self._finish(data)

    def _give_up(self) -> None:
        self._finish(self._poor)

    def _finish(self, data: bytes | None) -> None:
        self.end()
        self._answer(None if data is None else self._original + data[2:])

    def _drop(self, attempt: _Try) -> None:
        self._tries.pop(attempt, None)
        attempt.close(self._loop)

    def end(self) -> None:
        """Ask no longer."""
        for timer in (self._next, self._bound):
            if timer is not None:
                timer.cancel()
        for attempt in list(self._tries):
            self._drop(attempt)
        self._targets.clear()
        self._resolver.done(self)


class _Try:
    """One resolver that was asked, and the socket by which it answers."""

    def __init__(self, question: _Question, target: str) -> None:
        self._question = question
        self.target = target
        self._link: socket.socket | None = None
        self._query = b""
        self._data = b""

    def begin(self, loop: EventLoop, query: bytes, *, stream: bool) -> bool:
        """Ask; False where that is not possible."""
        family = socket.AF_INET6 if ":" in self.target else socket.AF_INET
        kind = socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
        try:
            link = self._link = open_socket(family, kind)
            with contextlib.suppress(BlockingIOError):
                link.connect((self.target, _PORT))
            if stream:
                self._query = len(query).to_bytes(2, "big") + query
                loop.watch(link, WRITE, lambda _: self._connected(loop))
            else:
                link.send(query)
                loop.watch(link, READ, lambda _: self._received())
        except OSError:
            self.close(loop)
            return False
        return True

    def _connected(self, loop: EventLoop) -> None:
        link = self._link
        if link is None:
            return
        try:
            link.send(self._query)
        except OSError:
            self._question.failed(self)
            return
        loop.forget(link)
        loop.watch(link, READ, lambda _: self._received(stream=True))

    def _received(self, *, stream: bool = False) -> None:
        link = self._link
        if link is None:
            return
        try:
            data = link.recv(_LARGEST)
        except BlockingIOError:
            return
        except OSError:
            self._question.failed(self)
            return
        if not stream:
            self._question.answered(self, data)
            return
        if not data:
            self._question.failed(self)
            return
        self._data += data
        length = int.from_bytes(self._data[:2], "big")
        if len(self._data) >= 2 + length:
            self._question.answered(self, self._data[2 : 2 + length])

    def close(self, loop: EventLoop) -> None:
        """Give the socket back."""
        link, self._link = self._link, None
        if link is not None:
            loop.forget(link)
            link.close()


def _is_address(text: str) -> bool:
    """Return whether a resolver is named by its address, with a scope or without."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


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
