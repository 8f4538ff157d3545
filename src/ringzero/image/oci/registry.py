"""A client of registries: OCI distribution specification 1.1, the pulling half.

    registry = Registry(reference)
    data, kind = registry.manifest(reference.target)
    registry.blob(descriptor, partial)

Authorization is by token (distribution's "token authentication") or Basic, with what
`credentials` finds. Plain HTTP is spoken with this machine's own registries, and with those of
RINGZERO_HTTP_REGISTRIES. Digests are checked by whoever stores what comes.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socket import gaierror
from typing import Protocol
from urllib.parse import urlencode, urlsplit

from ringzero.errors import GuestImageError, HostError, NotFoundError
from ringzero.image.http import FAULTS, MAX_ANSWER, Answer, Client, is_loopback, origin
from ringzero.image.oci import credentials
from ringzero.image.oci.manifest import INDEXES, MANIFESTS, MAX_DOCUMENT, Descriptor
from ringzero.image.oci.reference import DEFAULT_REGISTRY, Reference
from ringzero.settings import HTTP_REGISTRIES, REGISTRY_MIRRORS

# How often in a row a transfer may fail without a byte more, and the first pause between, in
# seconds; the next ones are twice as long.
_ATTEMPTS, _PAUSE = 5, 0.25
# A registry that asks for patience is given so much at most, in seconds.
_MOST_PATIENCE = 60.0
_CHUNK = 1 << 20
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_PARTIAL, _BAD_RANGE = 206, 416
_PARAMETER = re.compile(r'([a-zA-Z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


class Sink(Protocol):
    """Where a blob goes: what is there already is kept when a transfer begins again."""

    @property
    def size(self) -> int:
        """How many bytes there are."""
        ...

    def write(self, data: memoryview) -> None:
        """Append bytes. Raises HostError, GuestImageError (more than the blob may have)."""
        ...

    def restart(self) -> None:
        """Forget all."""
        ...


class _Busy(Exception):  # noqa: N818 - no error of the user's
    """A server that may do better in `pause` seconds; `answer` tells of it."""

    def __init__(self, answer: Answer, told: HostError) -> None:
        super().__init__()
        self.told = told
        asked = answer.header("Retry-After")
        self.pause = float(asked) if asked.isdecimal() else 0.0


class Registry:
    """One registry, for one repository of it. `blob` may be called from any thread."""

    def __init__(self, reference: Reference, client: Client | None = None) -> None:
        self._reference = reference
        self._client = client if client is not None else Client()
        self._lock = threading.Lock()
        self._headers: dict[str, dict[str, str]] = {}
        self._credentials: credentials.Credentials | None = None
        self._asked_for_credentials = False
        # The servers to try in turn; the first that has the manifest is the one for blobs.
        self._bases = [*_mirrors(reference.host), _base(reference.endpoint)]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def manifest(self, target: str) -> tuple[bytes, str]:
        """Return the manifest or index of a tag or digest, and the type that the server tells.

        Raises NotFoundError, HostError.
        """
        headers = {"Accept": ", ".join((*MANIFESTS, *INDEXES))}
        while True:
            try:
                url = f"{self._bases[0]}/v2/{self._reference.path}/manifests/{target}"
                data, answer = self._document(url, headers, MAX_DOCUMENT)
                return data, answer.header("Content-Type")
            except (HostError, NotFoundError):
                if len(self._bases) == 1:
                    raise
                # A mirror that has it not, or is not there: the next one.
                del self._bases[0]

    def blob(self, descriptor: Descriptor, sink: Sink, told: Callable[[int], object]) -> None:
        """Fetch a blob into `sink`, on from where that ends; `told` hears of bytes that came.

        A transfer that breaks off is taken up again. Raises NotFoundError, HostError, and what
        `sink` raises.
        """
        fruitless = 0
        while sink.size < descriptor.size:
            before = sink.size
            fault: HostError
            pause = 0.0
            try:
                self._transfer(descriptor, sink, told)
                if sink.size >= descriptor.size:
                    return
                fault = self._broken(f"after {sink.size} of {descriptor.size} bytes")
            except _Busy as busy:
                fault, pause = busy.told, busy.pause
            except FAULTS as lost:
                fault = self._broken(str(lost) or type(lost).__name__)
                fault.__cause__ = lost
            fruitless = 0 if sink.size > before else fruitless + 1
            if fruitless >= _ATTEMPTS:
                raise fault
            time.sleep(min(max(pause, _PAUSE * 2**fruitless), _MOST_PATIENCE))

    def _transfer(self, descriptor: Descriptor, sink: Sink, told: Callable[[int], object]) -> None:
        url = f"{self._bases[0]}/v2/{self._reference.path}/blobs/{descriptor.digest}"
        begin = sink.size
        headers = {"Range": f"bytes={begin}-"} if begin else {}
        with self._get(url, headers) as answer:
            if begin and not self._goes_on(answer, begin):
                told(-begin)
                sink.restart()
            if answer.status == _BAD_RANGE:
                return
            buffer = memoryview(bytearray(_CHUNK))
            while count := answer.response.readinto(buffer):
                sink.write(buffer[:count])
                told(count)

    def _goes_on(self, answer: Answer, begin: int) -> bool:
        if answer.status != _PARTIAL:
            return False
        match = _RANGE.match(answer.header("Content-Range"))
        return match is not None and int(match[1]) == begin

    def _broken(self, reason: str) -> HostError:
        return HostError(
            f"the registry {self._reference.host} broke off: {reason}",
            hint="is there a network? what has come is kept: try again",
        )

    def _document(self, url: str, headers: dict[str, str], limit: int) -> tuple[bytes, Answer]:
        """Return a body of at most `limit` bytes and its answer, waiting where that helps."""
        attempt = 0
        while True:
            pause = _PAUSE * 2**attempt
            attempt += 1
            try:
                with self._get(url, headers) as answer:
                    return answer.body(limit), answer
            except _Busy as busy:
                if attempt == _ATTEMPTS:
                    raise busy.told from None
                pause = max(pause, busy.pause)
            except FAULTS as lost:
                if attempt == _ATTEMPTS or isinstance(lost, (ConnectionRefusedError, gaierror)):
                    raise self._unreachable(url, lost) from lost
            time.sleep(min(pause, _MOST_PATIENCE))

    @contextmanager
    def _get(self, url: str, headers: dict[str, str]) -> Iterator[Answer]:
        """Yield a good answer. Raises NotFoundError, HostError, _Busy, FAULTS."""
        with self._authorized(url, headers) as answer:
            if answer.status < 300 or answer.status == _BAD_RANGE:
                yield answer
                return
            fault = self._refused(answer)
            if answer.status in _BUSY and isinstance(fault, HostError):
                raise _Busy(answer, fault)
            raise fault

    @contextmanager
    def _authorized(self, url: str, headers: dict[str, str]) -> Iterator[Answer]:
        server = origin(url)
        for attempt in range(2):
            secret = self._headers.get(server, {})
            with self._client.request("GET", url, headers, secret) as answer:
                if answer.status != 401 or attempt:
                    yield answer
                    return
                challenge = answer.response.headers.get_all("WWW-Authenticate") or []
                answer.body()
            self._authorize(server, challenge, secret)

    # ---- authorization ----------------------------------------------------

    def _authorize(self, server: str, challenges: list[str], used: dict[str, str]) -> None:
        """Find the header that answers a challenge (RFC 7235). Raises HostError."""
        with self._lock:
            if self._headers.get(server, {}) != used:
                # Another thread has asked meanwhile.
                return
            known = self._known(server)
            for challenge in challenges:
                scheme, _, rest = challenge.strip().partition(" ")
                found = {key.lower(): quoted or plain
                         for key, quoted, plain in _PARAMETER.findall(rest)}  # fmt: skip
                if scheme.lower() == "bearer" and found.get("realm"):
                    token = self._token(server, found, known)
                    self._headers[server] = {"Authorization": f"Bearer {token}"}
                    return
                if scheme.lower() == "basic" and known is not None:
                    self._headers[server] = {"Authorization": known.basic()}
                    return
        raise self._denied()

    def _known(self, server: str) -> credentials.Credentials | None:
        """Return the user's credentials, which are not for mirrors of the registry."""
        if server != origin(_base(self._reference.endpoint)):
            host = urlsplit(server).netloc
            return credentials.find(Reference(host, self._reference.path))
        if not self._asked_for_credentials:
            self._credentials = credentials.find(self._reference)
            self._asked_for_credentials = True
        return self._credentials

    def _token(
        self, server: str, challenge: dict[str, str], known: credentials.Credentials | None
    ) -> str:
        realm = challenge["realm"]
        if not realm.startswith("https://") and not (
            realm.startswith("http://") and server.startswith("http://")
        ):
            raise HostError(
                f"{server} wants credentials to be sent to {realm[:200]!r}, which is not safe",
                hint="the registry is set up wrongly; tell whoever runs it",
            )
        fields = {"service": challenge.get("service", "")}
        fields["scope"] = challenge.get("scope") or f"repository:{self._reference.path}:pull"
        secret: dict[str, str] = {}
        method, url, body = "GET", realm, None
        headers: dict[str, str] = {}
        if known is not None and known.identity_token:
            fields |= {"grant_type": "refresh_token", "refresh_token": known.identity_token}
            fields["client_id"] = "ringzero"
            method, body = "POST", urlencode(fields).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        else:
            url += ("&" if "?" in realm else "?") + urlencode(
                {k: v for k, v in fields.items() if v}
            )
            if known is not None:
                secret["Authorization"] = known.basic()
        with self._client.request(method, url, headers, secret, body) as answer:
            if answer.status in (401, 403):
                raise self._denied()
            if answer.status != 200:
                raise HostError(f"{origin(realm)} gives no token: it answers {answer.status}")
            data = answer.body(MAX_ANSWER)
        try:
            value = json.loads(data)
            token = value.get("token") or value.get("access_token")
        except (ValueError, AttributeError, RecursionError) as fault:
            raise HostError(f"{origin(realm)} gives no token, but nonsense") from fault
        if not isinstance(token, str) or not token or not token.isprintable():
            raise HostError(f"{origin(realm)} gives no token")
        return token

    # ---- what goes wrong --------------------------------------------------

    def _denied(self) -> HostError:
        name = self._reference.familiar
        return HostError(
            f"the registry {self._reference.host} does not let us have {name}",
            hint=f"does it exist? if it is private: `docker login {self._reference.host}`, whose "
            "config.json is read",
        )

    def _refused(self, answer: Answer) -> HostError | NotFoundError | GuestImageError:
        status, name = answer.status, self._reference.familiar
        said = _said(answer.body())
        if status in (401, 403):
            return self._denied()
        if status == 404:
            return NotFoundError(
                f"the registry {self._reference.host} has no {name}" + said,
                hint="check the name and the tag",
            )
        if status == 429:
            return HostError(
                f"the registry {self._reference.host} is asked too often{said}",
                hint="wait, log in (`docker login`), or name a mirror in RINGZERO_REGISTRY_MIRRORS",
            )
        return HostError(f"the registry {self._reference.host} answers {status} for {name}{said}")

    def _unreachable(self, url: str, lost: Exception) -> HostError:
        reason = getattr(lost, "strerror", None) or str(lost) or type(lost).__name__
        server = urlsplit(url).netloc
        hint = "is there a network? RINGZERO_REGISTRY_MIRRORS names mirrors"
        if is_loopback(server):
            hint = "is the registry running?"
        elif "certificate" in str(lost).lower():
            hint = "its certificate is not one that this host trusts (SSL_CERT_FILE names more)"
        elif "WRONG_VERSION_NUMBER" in str(lost):
            hint = f"it speaks plain HTTP; if that is meant: RINGZERO_HTTP_REGISTRIES={server}"
        return HostError(f"cannot reach the registry {server}: {reason}", hint=hint)


def _said(data: bytes) -> str:
    """Return what a registry says of a fault (specification, "Error codes"), for a message."""
    try:
        message = str(json.loads(data)["errors"][0]["message"])
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return ""
    return f": {''.join(c for c in message if c.isprintable())[:200]}" if message else ""


def _base(server: str) -> str:
    """Return the URL of the server HOST[:PORT]."""
    plain = is_loopback(server) or server in HTTP_REGISTRIES.get()
    return f"{'http' if plain else 'https'}://{server}"


def _mirrors(host: str) -> list[str]:
    """Return the URLs of the mirrors that the setting names for the registry `host`."""
    found = []
    for text in REGISTRY_MIRRORS.get():
        name, equals, server = text.partition("=")
        if not equals:
            name, server = DEFAULT_REGISTRY, text
        if name == host:
            found.append(server.rstrip("/") if "://" in server else _base(server.rstrip("/")))
    return found
