"""HTTP for registries and archives: connections used again, redirects, proxies, TLS verified.

A header that says who we are goes to the server that it was made for and to no other: a
redirect to another scheme, host or port drops it (distribution specification, "Pulling
blobs"), and none leads from TLS to plain HTTP.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from ringzero.errors import HostError
from ringzero.records import record

if TYPE_CHECKING:
    import ssl

# Of silence, in seconds, before a server is given up.
_TIMEOUT = 60.0
# And until there is a connection at all, its name found and its addresses tried.
_CONNECT = 15.0
_REDIRECTS = 10
_REDIRECT_CODES = (301, 302, 303, 307, 308)
# What of an answer is read that only tells of a fault, in bytes.
MAX_ANSWER = 8 << 20
_AGENT = "ringzero"

# What is sent: bytes, or what yields them anew each time, their length being in a header.
Body = bytes | Callable[[], Iterable[bytes]]
# What goes wrong between us and a server.
FAULTS = (OSError, http.client.HTTPException)


class NoConnectionError(OSError):
    """A server that there is no way to, and none in a moment either."""


def is_loopback(host: str) -> bool:
    """Whether HOST[:PORT] is this machine: localhost, or an address of the loopback network."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


@record
class Answer:
    """A status and its headers; the body is read by `read` and `readinto`."""

    url: str
    response: http.client.HTTPResponse

    @property
    def status(self) -> int:
        return self.response.status

    def header(self, name: str) -> str:
        """Return a header's value, or ""."""
        return self.response.headers.get(name) or ""

    def body(self, limit: int = MAX_ANSWER) -> bytes:
        """Return the body. Raises HostError when it is longer than `limit`."""
        data = self.response.read(limit + 1)
        if len(data) > limit:
            raise HostError(f"{origin(self.url)} answers with more than {limit} bytes")
        return data


def origin(url: str) -> str:
    """Return SCHEME://HOST[:PORT] of a URL, without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


class Client:
    """Requests to any server. All methods may be called from any thread."""

    def __init__(
        self, timeout: float = _TIMEOUT, tls: Callable[[str], ssl.SSLContext] | None = None
    ) -> None:
        """`tls` tells how TLS is spoken with the server HOST[:PORT]; None: with this host's trust.

        It is asked once for each server.
        """
        self._timeout = timeout
        self._lock = threading.Lock()
        self._idle: dict[str, list[http.client.HTTPConnection]] = {}
        self._closed = False
        # Sockets: a connection forgets its own when the answer is the last one.
        self._used: dict[http.client.HTTPConnection, socket.socket | None] = {}
        self._tls = tls or _this_hosts
        self._contexts: dict[str, ssl.SSLContext] = {}

    @contextlib.contextmanager
    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        secret: Mapping[str, str],
        body: Body | None = None,
    ) -> Iterator[Answer]:
        """Yield the answer, redirects followed; `secret` are headers for the URL's server alone.

        Raises HostError for a redirect that is not to be followed, OSError and HTTPException for
        what goes wrong on the way.
        """
        first = origin(url)
        for _ in range(_REDIRECTS):
            sent = {"User-Agent": _AGENT, **headers}
            if origin(url) == first:
                sent |= secret
            connection, answer = self._ask(method, url, sent, body)
            if answer.status not in _REDIRECT_CODES or not answer.header("Location"):
                try:
                    yield answer
                finally:
                    self._give_back(url, connection, answer.response)
                return
            target = urljoin(url, answer.header("Location"))
            answer.response.read(MAX_ANSWER)
            self._give_back(url, connection, answer.response)
            parts = urlsplit(target)
            if parts.scheme not in ("https", "http") or not parts.hostname:
                raise HostError(f"{origin(url)} redirects to what is no address of the web")
            if parts.scheme == "http" and url.startswith("https:"):
                raise HostError(
                    f"{origin(url)} redirects from TLS to plain HTTP, at {parts.netloc}",
                    hint="the registry is set up wrongly; tell whoever runs it",
                )
            url = target
        raise HostError(f"{first} redirects more than {_REDIRECTS} times")

    def close(self) -> None:
        """Close all connections that wait for use, and break those off that are in use.

        Requests that begin later, or are about to, raise OSError.
        """
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, {}
            used = list(self._used.values())
        for connections in idle.values():
            for connection in connections:
                connection.close()
        for one in used:
            # Whoever reads of it hears that it is over.
            with contextlib.suppress(OSError):
                if one is not None:
                    one.shutdown(socket.SHUT_RDWR)

    def _ask(
        self, method: str, url: str, headers: Mapping[str, str], body: Body | None
    ) -> tuple[http.client.HTTPConnection, Answer]:
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        kept = self._take(url)
        if kept is not None:
            # The server may have closed it meanwhile: then a new one is made.
            with contextlib.suppress(*FAULTS):
                return kept, Answer(url, self._send(kept, method, target, headers, body))
        connection, prefix, more = self._connect(parts)
        sent = {**headers, **more}
        return connection, Answer(url, self._send(connection, method, prefix + target, sent, body))

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body | None,
    ) -> http.client.HTTPResponse:
        """Return the answer; where there is none, the connection is closed."""
        try:
            if connection.sock is None:
                _open(connection)
            # From here on, so that a long body that is sent can be broken off, too.
            with self._lock:
                if self._closed:
                    raise ConnectionAbortedError("the client was closed")
                self._used[connection] = connection.sock
            content = body() if callable(body) else body
            connection.request(method, target, content, dict(headers))
            return connection.getresponse()
        except BaseException:
            with self._lock:
                self._used.pop(connection, None)
            connection.close()
            raise

    def _take(self, url: str) -> http.client.HTTPConnection | None:
        with self._lock:
            idle = self._idle.get(origin(url))
            return idle.pop() if idle else None

    def _give_back(
        self, url: str, connection: http.client.HTTPConnection, response: http.client.HTTPResponse
    ) -> None:
        with self._lock:
            self._used.pop(connection, None)
        # What is not read to its end cannot be used again.
        if not response.isclosed() or response.will_close or proxy(url):
            connection.close()
            return
        with self._lock:
            self._idle.setdefault(origin(url), []).append(connection)

    def _connect(
        self, parts: SplitResult
    ) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
        """Return a connection to a server, and for a proxy a prefix of paths and headers."""
        host, port = parts.hostname or "", parts.port
        between = proxy(parts.geturl())
        connect: Callable[[str, int | None], http.client.HTTPConnection]
        if parts.scheme == "https":
            context = self._context(parts.netloc.rpartition("@")[2])
            connect = lambda name, number: http.client.HTTPSConnection(  # noqa: E731
                name, number, timeout=self._timeout, context=context
            )
        else:
            connect = lambda name, number: http.client.HTTPConnection(  # noqa: E731
                name, number, timeout=self._timeout
            )
        if between is None:
            return connect(host, port), "", {}
        headers = _proxy_headers(between)
        connection = connect(between.hostname or "", between.port or http.client.HTTP_PORT)
        if parts.scheme == "https":
            connection.set_tunnel(host, port or 443, headers)
            return connection, "", {}
        return connection, f"http://{parts.netloc}", headers

    def _context(self, server: str) -> ssl.SSLContext:
        with self._lock:
            if server not in self._contexts:
                self._contexts[server] = self._tls(server)
            return self._contexts[server]


def _open(connection: http.client.HTTPConnection) -> None:
    """Connect. Raises what that raises, and NoConnectionError when it takes too long.

    On a thread: looking a name up cannot be bounded otherwise, nor ended by Ctrl-C.
    """
    faults: list[BaseException] = []

    def connect() -> None:
        try:
            connection.connect()
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=connect, name="connect", daemon=True)
    thread.start()
    thread.join(_CONNECT)
    if thread.is_alive():
        raise NoConnectionError(f"no connection within {_CONNECT:g} seconds")
    if faults:
        raise faults[0]


def _this_hosts(server: str) -> ssl.SSLContext:
    import ssl

    return ssl.create_default_context()


def proxy(url: str) -> SplitResult | None:
    """Return the proxy that the environment names for a URL (http_proxy, no_proxy ...), or None.

    Raises HostError for one that is not spoken to by plain HTTP.
    """
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    found = getproxies().get(parts.scheme)
    if not found or is_loopback(parts.netloc) or proxy_bypass(parts.hostname or ""):
        return None
    between = urlsplit(found if "://" in found else f"http://{found}")
    if between.scheme != "http" or not between.hostname:
        raise HostError(
            f"the proxy {origin(between.geturl())} cannot be used",
            hint=f"{parts.scheme}_proxy=http://HOST:PORT names one that is spoken to by plain HTTP "
            "(TLS goes through it untouched)",
        )
    return between


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    import base64

    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair).decode()}"}
