"""A client of registries: OCI distribution specification 1.1.

    registry = Registry(reference)
    data, kind = registry.manifest(reference.target)
    registry.blob(descriptor, partial)
    registry.put_blob(descriptor, read)
    registry.put_manifest(target, data, kind)

Authorization is by token (distribution's "token authentication") or Basic, with what
`credentials` finds. Plain HTTP is spoken with this machine's own registries, and with those of
RINGZERO_HTTP_REGISTRIES; certificates of others are checked (`certificates`). Digests are checked
by whoever stores what comes.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from socket import gaierror
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlencode, urljoin, urlsplit

from ringzero.errors import GuestImageError, HostError, NotFoundError
from ringzero.image.http import (
    FAULTS,
    MAX_ANSWER,
    Answer,
    Body,
    Client,
    NoConnectionError,
    is_loopback,
    origin,
    proxy,
)
from ringzero.image.oci import credentials, referrers
from ringzero.image.oci.certificates import Trust, context, folder
from ringzero.image.oci.manifest import (
    INDEXES,
    MANIFESTS,
    MAX_DOCUMENT,
    OCI_INDEX,
    Descriptor,
)
from ringzero.image.oci.memory import ARTIFACT
from ringzero.image.oci.reference import DEFAULT_REGISTRY, Reference
from ringzero.settings import HTTP_REGISTRIES, INSECURE_REGISTRIES, REGISTRY_MIRRORS

if TYPE_CHECKING:
    import ssl

# How often in a row a transfer may fail without a byte more, and the first pause between, in
# seconds; the next ones are twice as long.
_ATTEMPTS, _PAUSE = 5, 0.25
# A registry that asks for patience is given so much at most, in seconds.
_MOST_PATIENCE = 60.0
# Bytes that are read at once: so much is lost of a transfer that breaks off.
_CHUNK = 1 << 18
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


class _OtherSchemeError(HostError):
    """A server that seems to speak TLS where we do not, or the other way round."""


class _Busy(Exception):  # noqa: N818 - no error of the user's
    """A server that may do better in `pause` seconds; `answer` tells of it."""

    def __init__(self, answer: Answer, told: HostError) -> None:
        super().__init__()
        self.told = told
        asked = answer.header("Retry-After")
        self.pause = float(asked) if asked.isdecimal() else 0.0


class Registry:
    """One registry, for one repository of it. `blob` may be called from any thread."""

    def __init__(self, reference: Reference, trust: Trust | None = None) -> None:
        self._reference = reference
        self._trust = trust or Trust()
        self._client = Client(tls=self._tls)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._headers: dict[str, dict[str, str]] = {}
        self._credentials: credentials.Credentials | None = None
        self._asked_for_credentials = False
        # The servers to try in turn; the first that has the manifest is the one for blobs.
        self._own = _bases(reference.endpoint, self._trust)
        self._bases = [*_mirrors(reference.host), *self._own]

    def close(self) -> None:
        """Close the connections, also those that somebody waits for."""
        self._closed.set()
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
            except (HostError, NotFoundError) as fault:
                # A mirror that has it not, or is not there, or our own spoken to by what it
                # does not speak: the next one.
                ours = self._bases[0] in self._own and not isinstance(fault, _OtherSchemeError)
                if ours or len(self._bases) == 1:
                    raise
                del self._bases[0]

    def memory(self, image: str) -> bytes | None:
        """Return the manifest of the memory layer of the image with a digest; None without one.

        Raises HostError, GuestImageError.
        """
        try:
            found = self.referring(image, ARTIFACT)
            return self.manifest(found[0].digest)[0] if found else None
        except NotFoundError:
            return None

    def referring(self, image: str, artifact: str) -> list[Descriptor]:
        """Return the manifests of the type `artifact` that refer to the image with a digest.

        Those that the API for it lists, else those of the tag that stands in for it. Raises
        HostError, GuestImageError.
        """
        query = urlencode({"artifactType": artifact})
        url = f"{self._bases[0]}/v2/{self._reference.path}/referrers/{image}?{query}"
        # Registries without it answer what they like.
        with suppress(NotFoundError, HostError, GuestImageError):
            data, _ = self._document(url, {"Accept": OCI_INDEX}, MAX_DOCUMENT)
            if found := referrers.among(data, artifact):
                return found
        with suppress(NotFoundError):
            return referrers.among(self.manifest(referrers.tag(image))[0], artifact)
        return []

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
            if fruitless >= _ATTEMPTS or self._wait(max(pause, _PAUSE * 2**fruitless)):
                raise fault

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
                if attempt == _ATTEMPTS or self._wait(max(pause, busy.pause)):
                    raise busy.told from None
            except FAULTS as lost:
                if attempt == _ATTEMPTS or _is_final(lost) or self._wait(pause):
                    raise self._unreachable(url, lost) from lost

    def _wait(self, pause: float) -> bool:
        """Wait so many seconds, within reason; tell whether the registry was closed meanwhile."""
        return self._closed.wait(min(pause, _MOST_PATIENCE))

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
    def _authorized(
        self, url: str, headers: dict[str, str], method: str = "GET", body: Body | None = None
    ) -> Iterator[Answer]:
        server = origin(url)
        for attempt in range(2):
            secret = self._headers.get(server, {})
            with self._client.request(method, url, headers, secret, body) as answer:
                if answer.status != 401 or attempt:
                    yield answer
                    return
                challenge = answer.response.headers.get_all("WWW-Authenticate") or []
                answer.body()
            self._authorize(server, challenge, secret)

    # ---- the pushing half -------------------------------------------------

    def put_blob(self, descriptor: Descriptor, read: Callable[[], Iterable[bytes]]) -> bool:
        """Have a blob in the repository ("Pushing blobs"); False: it was there.

        `read` yields its bytes, from the beginning each time. Raises HostError.
        """
        path = f"/v2/{self._reference.path}/blobs"
        with self._asked("HEAD", f"{path}/{descriptor.digest}", missing=True) as answer:
            if answer.status == 200:
                return False
        with self._asked("POST", f"{path}/uploads/", body=b"") as answer:
            url = urljoin(answer.url, answer.header("Location"))
        url += ("&" if urlsplit(url).query else "?") + urlencode({"digest": descriptor.digest})
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(descriptor.size),
        }
        with self._asked("PUT", url, headers, read):
            return True

    def put_manifest(self, target: str, data: bytes, kind: str) -> bool:
        """Store a manifest whose blobs are there under a tag or digest.

        Whether the registry lists it among the referrers of its subject from now on. Raises
        HostError.
        """
        path = f"/v2/{self._reference.path}/manifests/{target}"
        with self._asked("PUT", path, {"Content-Type": kind}, data) as answer:
            return bool(answer.header("OCI-Subject"))

    @contextmanager
    def _asked(
        self,
        method: str,
        where: str,
        headers: dict[str, str] | None = None,
        body: Body | None = None,
        *,
        missing: bool = False,
    ) -> Iterator[Answer]:
        """Yield a good answer of our own registry, asked again where that helps.

        `where` is a path of it, or a whole URL; with `missing` 404 is good, too.
        """
        attempt = 0
        with ExitStack() as stack:
            while True:
                url = f"{self._own[0]}{where}" if where.startswith("/") else where
                pause = _PAUSE * 2**attempt
                attempt += 1
                fault: HostError | NotFoundError | GuestImageError
                try:
                    answer = stack.enter_context(self._authorized(url, headers or {}, method, body))
                    if answer.status < 300 or (missing and answer.status == 404):
                        break
                    fault = self._refused(answer)
                    if answer.status not in _BUSY or attempt == _ATTEMPTS or self._wait(pause):
                        raise fault
                    stack.close()
                except FAULTS as lost:
                    fault = self._unreachable(url, lost)
                    other = isinstance(fault, _OtherSchemeError) and len(self._own) > 1
                    if other and where.startswith("/"):
                        del self._own[0]
                    elif attempt == _ATTEMPTS or _is_final(lost) or self._wait(pause):
                        raise fault from lost
            yield answer

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
        if server not in self._own:
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
        kind = _OtherSchemeError if status == 400 else HostError
        return kind(f"the registry {self._reference.host} answers {status} for {name}{said}")

    def _unreachable(self, url: str, lost: Exception) -> HostError:
        reason = getattr(lost, "strerror", None) or str(lost) or type(lost).__name__
        server = urlsplit(url).netloc
        hint = "is there a network? RINGZERO_REGISTRY_MIRRORS names mirrors"
        kind = HostError
        if "certificate" in str(lost).lower():
            hint = (
                f"its authority belongs into certs.d/{server}/ca.crt of RINGZERO_CERTS_DIR or "
                f"/etc/docker; unchecked: RINGZERO_INSECURE_REGISTRIES={server}"
            )
        elif _speaks_other(lost):
            kind = _OtherSchemeError
            hint = f"it speaks plain HTTP; if that is meant: RINGZERO_HTTP_REGISTRIES={server}"
        elif is_loopback(server):
            hint = "is the registry running?"
        elif between := proxy(url):
            server += f" through the proxy {origin(between.geturl())}"
            hint = (
                f"is {urlsplit(url).scheme}_proxy right? no_proxy names hosts to be asked directly"
            )
        return kind(f"cannot reach the registry {server}: {reason}", hint=hint)

    def _tls(self, server: str) -> ssl.SSLContext:
        """Return how TLS is spoken with a server: the registry's own, or one that it names.

        What it names (servers of tokens and blobs) may be of the same authority.
        """
        home = urlsplit(self._bases[0]).netloc
        place = self._trust.folder or folder(server) or folder(home)
        verify = self._trust.verify and not _unchecked(server, self._trust)
        return context(place, verify=verify)


def _is_final(lost: Exception) -> bool:
    """Whether what went wrong will go wrong again."""
    import ssl

    hopeless = (ConnectionRefusedError, gaierror, NoConnectionError, ssl.SSLCertVerificationError)
    return isinstance(lost, hopeless) or (isinstance(lost, ssl.SSLError) and _speaks_other(lost))


def _speaks_other(lost: Exception) -> bool:
    """Whether a fault is that of TLS with a server of plain HTTP, or the other way round."""
    other = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "record layer failure")
    return any(text in str(lost) for text in other) or isinstance(lost, http.client.BadStatusLine)


def _said(data: bytes) -> str:
    """Return what a registry says of a fault (specification, "Error codes"), for a message."""
    try:
        message = str(json.loads(data)["errors"][0]["message"])
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return ""
    return f": {''.join(c for c in message if c.isprintable())[:200]}" if message else ""


def _bases(server: str, trust: Trust) -> list[str]:
    """Return the URLs by which the server HOST[:PORT] is to be asked, the likely one first.

    By plain HTTP where the user said so, and on this machine, unless there are certificates for
    it; there, and where certificates are not checked, the other way is tried, too.
    """
    plain, secure = f"http://{server}", f"https://{server}"
    if server in HTTP_REGISTRIES.get():
        return [plain]
    if trust.folder or folder(server):
        return [secure]
    if is_loopback(server):
        return [plain, secure]
    return [secure] if trust.verify and server not in INSECURE_REGISTRIES.get() else [secure, plain]


def _unchecked(server: str, trust: Trust) -> bool:
    """Whether a server's certificate is not checked: as Docker has it, one on this machine."""
    known = trust.folder or folder(server)
    return server in INSECURE_REGISTRIES.get() or (is_loopback(server) and not known)


def _mirrors(host: str) -> list[str]:
    """Return the URLs of the mirrors that the setting names for the registry `host`."""
    found = []
    for text in REGISTRY_MIRRORS.get():
        name, equals, server = text.partition("=")
        if not equals:
            name, server = DEFAULT_REGISTRY, text
        if name == host:
            server = server.rstrip("/")
            found += [server] if "://" in server else _bases(server, Trust())
    return found
