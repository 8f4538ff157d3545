"""The metadata that a guest may ask for: a JSON document, its form for the guest, and tokens.

Firecracker's MMDS, versions 1 and 2: a guest of version 2 first asks for a token (PUT
/latest/api/token), as on EC2.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from ringzero.doors.firecracker.faults import TOO_LARGE, ApiFault
from ringzero.records import record

if TYPE_CHECKING:
    from ringzero.doors.firecracker.configuration import Configuration
    from ringzero.net.stack.localservice import Reply
    from ringzero.vm.machine import Machine

# Where a token is asked for.
TOKEN_PATH = "/latest/api/token"
# How long a token may be good, in seconds: six hours, as on EC2.
LONGEST_LIFE = 21_600
_TOKEN = ("x-metadata-token", "x-aws-ec2-metadata-token")
_LIFE = ("x-metadata-token-ttl-seconds", "x-aws-ec2-metadata-token-ttl-seconds")
_FORWARDED = "x-forwarded-for"
_NO_TOKEN = (
    "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to "
    "specify the session token."
)
_NO_LIFE = (
    "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or "
    "`X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime."
)
_DIGITS = re.compile(r"\d{1,10}")
_TEXT, _JSON = "text/plain", "application/json"
# The address of the service on the wire: a local one, as Firecracker's.
MAC = bytes.fromhex("060123456701")
_MAC_SIZE, _TOKEN_SIZE = 32, 48


@record
class Answer:
    """What a guest is answered."""

    status: int
    content: str
    type: str = _TEXT
    headers: tuple[tuple[str, str], ...] = ()


class Metadata:
    """The document, of at most `limit` bytes as JSON; methods may be called from any thread.

    `count` hears of what guests ask amiss, by its name in the metrics.
    """

    def __init__(
        self,
        limit: int,
        count: Callable[[str], None] = lambda name: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._count, self._clock = limit, count, clock
        self._lock = threading.Lock()
        self._value: Any = None
        self._initialized = False
        self._key = os.urandom(_MAC_SIZE)
        self.version = "V1"
        self.imds_compat = False

    def configure(self, fields: Mapping[str, Any]) -> None:
        """Take the version and the form of answers."""
        self.version, self.imds_compat = fields["version"], fields["imds_compat"]

    @property
    def value(self) -> Any:
        """The document; an empty object where there is none."""
        return {} if self._value is None else self._value

    def put(self, value: Any) -> None:
        """Take another document. Raises ApiFault where it is too large."""
        self._check(value)
        with self._lock:
            self._value, self._initialized = value, True

    def patch(self, patch: Any) -> None:
        """Change the document as RFC 7396 says. Raises ApiFault."""
        with self._lock:
            if not self._initialized:
                raise ApiFault("MMDS error: The MMDS data store is not initialized.")
            value = merged(self._value, patch)
            self._check(value)
            self._value = value

    def _check(self, value: Any) -> None:
        if len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()) > self._limit:
            raise ApiFault(
                "MMDS limit exceeded error: The MMDS patch request doesn't fit.", TOO_LARGE
            )

    def serve(self, machine: Machine, configuration: Configuration) -> None:
        """Have a machine that has not run find it, at the interfaces that lead to it."""
        fields = configuration.metadata
        if fields is None:
            return
        address = socket.inet_aton(fields["ipv4_address"])
        names = [net["iface_id"] for net in configuration.nets]
        for name, backend in zip(names, machine.nets, strict=True):
            if name in fields["network_interfaces"]:
                backend.serve(address, MAC, self._respond)

    def _respond(self, method: str, path: str, headers: Mapping[str, str]) -> Reply:
        from ringzero.net.stack.localservice import Reply

        self._count("rx_accepted")
        answer = self.answer(method, path, headers)
        head = (("Server", "EC2ws"), ("Content-Type", answer.type), *answer.headers)
        return Reply(answer.status, answer.content.encode("utf-8", "replace"), head)

    # ---- for the guest ----------------------------------------------------

    def answer(self, method: str, path: str, headers: Mapping[str, str]) -> Answer:
        """Return what a guest's request is answered; names of `headers` are in lower case."""
        if not path.startswith("/"):
            return Answer(HTTPStatus.BAD_REQUEST, "Invalid URI.")
        if method == "GET":
            return self._refusal(headers) or self._get(path, headers)
        if method == "PUT":
            return self._new_token(path, headers)
        allowed = (("Allow", "GET, PUT"),)
        return Answer(HTTPStatus.METHOD_NOT_ALLOWED, "Not allowed HTTP method.", headers=allowed)

    def _refusal(self, headers: Mapping[str, str]) -> Answer | None:
        """Return why somebody without a good token gets nothing; of version 1 everybody gets it."""
        token = next((headers[name] for name in _TOKEN if name in headers), None)
        wrong = _NO_TOKEN if token is None else None
        if token is not None and not self._is_valid(token):
            wrong = "MMDS token not valid."
        if wrong is None:
            return None
        self._count("rx_no_token" if token is None else "rx_invalid_token")
        return Answer(HTTPStatus.UNAUTHORIZED, wrong) if self.version == "V2" else None

    def _get(self, path: str, headers: Mapping[str, str]) -> Answer:
        with self._lock:
            try:
                value = pointed(self._value, re.sub("/+", "/", path))
            except KeyError:
                return Answer(HTTPStatus.NOT_FOUND, f"Resource not found: {path}.")
        wants_json = _JSON in headers.get("accept", "") and not self.imds_compat
        kind = _JSON if _JSON in headers.get("accept", "") else _TEXT
        if wants_json:
            return Answer(HTTPStatus.OK, json.dumps(value, separators=(",", ":")), kind)
        if isinstance(value, dict):
            keys = (f"{key}/" if isinstance(item, dict) else key for key, item in value.items())
            return Answer(HTTPStatus.OK, "\n".join(keys), kind)
        if isinstance(value, str):
            return Answer(HTTPStatus.OK, value, kind)
        return Answer(
            HTTPStatus.NOT_IMPLEMENTED, "Cannot retrieve value. The value has an unsupported type."
        )

    def _new_token(self, path: str, headers: Mapping[str, str]) -> Answer:
        if _FORWARDED in headers:
            return Answer(
                HTTPStatus.BAD_REQUEST,
                f"Invalid header. Reason: Unsupported header name. Key: {_FORWARDED}",
            )
        if re.sub("/+", "/", path) != TOKEN_PATH:
            return Answer(HTTPStatus.NOT_FOUND, f"Resource not found: {path}.")
        name = next((name for name in _LIFE if name in headers), None)
        if name is None:
            return Answer(HTTPStatus.BAD_REQUEST, _NO_LIFE)
        text = headers[name].strip()
        if not _DIGITS.fullmatch(text):
            return Answer(
                HTTPStatus.BAD_REQUEST,
                f"Invalid header. Reason: Invalid value. Key:{name}; Value:{text[:64]}",
            )
        life = int(text)
        if not 0 < life <= LONGEST_LIFE:
            return Answer(
                HTTPStatus.BAD_REQUEST,
                f"Invalid time to live value provided for token: {life}. Please provide a value "
                f"between 1 and {LONGEST_LIFE}.",
            )
        return Answer(HTTPStatus.OK, self._token(life), headers=((name, str(life)),))

    def _token(self, life: int) -> str:
        end = int((self._clock() + life) * 1000).to_bytes(8, "big") + os.urandom(8)
        return (end + hmac.digest(self._key, end, "sha256")).hex()

    def _is_valid(self, token: str) -> bool:
        try:
            data = bytes.fromhex(token)
        except ValueError:
            return False
        end, mark = data[:16], data[16:]
        good = len(data) == _TOKEN_SIZE and hmac.compare_digest(
            mark, hmac.digest(self._key, end, "sha256")
        )
        return good and int.from_bytes(end[:8], "big") > self._clock() * 1000


def merged(target: Any, patch: Any) -> Any:
    """Return `target` changed by a JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    found = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = merged(found.get(name), value)
    return found


def pointed(value: Any, path: str) -> Any:
    """Return what a JSON pointer (RFC 6901) leads to; raises KeyError.

    A slash at its end is not looked at.
    """
    for part in path.removesuffix("/").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value[name]
        elif isinstance(value, list) and name.isascii() and name.isdecimal():
            number = int(name[:10])
            if number >= len(value) or (len(name) > 1 and name[0] == "0"):
                raise KeyError(name)
            value = value[number]
        else:
            raise KeyError(name)
    if value is None:
        raise KeyError(path)
    return value
