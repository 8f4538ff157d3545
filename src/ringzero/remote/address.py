"""Where another host is: a URL of ssh, https or unix. No I/O."""

from __future__ import annotations

from urllib.parse import quote, unquote, urlsplit

from ringzero.errors import InvalidValueError
from ringzero.records import record

SCHEMES = ("ssh", "https", "unix")
_HTTPS = 443
_HINT = "ssh://[USER@]HOST[:PORT][/PATH/TO/ringzero], https://HOST[:PORT] or unix:///PATH"


@record
class Address:
    """A host's place. `path` is that of a socket (unix), or of the program there (ssh).

    `port` is None for ssh's own choice.
    """

    scheme: str
    host: str = ""
    port: int | None = None
    user: str = ""
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address in a text. Raises InvalidValueError."""
        try:
            parts = urlsplit(text)
            host, port = parts.hostname or "", parts.port
        except ValueError as fault:
            raise InvalidValueError(f"{text!r} is no host's URL: {fault}", hint=_HINT) from None
        if parts.scheme not in SCHEMES:
            raise InvalidValueError(f"{text!r} is no host's URL", hint=_HINT)
        if parts.password is not None or parts.query or parts.fragment:
            raise InvalidValueError(
                "a host's URL has no password, query or fragment",
                hint="a token is given by --token-file or RINGZERO_TOKEN",
            )
        path, user = unquote(parts.path), unquote(parts.username or "")
        if parts.scheme == "unix":
            if parts.netloc or not path.startswith("/"):
                raise InvalidValueError(f"{text!r} names no socket", hint="unix:///PATH")
            return cls("unix", path=path)
        if not host:
            raise InvalidValueError(f"{text!r} names no host", hint=_HINT)
        if parts.scheme == "https":
            if user or path.strip("/"):
                raise InvalidValueError(f"{text!r} is more than https://HOST[:PORT]", hint=_HINT)
            return cls("https", host, port or _HTTPS)
        # Host in ssh_config(5) is not the same in lower case, as urllib has it.
        host = parts.netloc.rpartition("@")[2]
        host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        # They become words of ssh's command line, and of the shell's there.
        for what in (host, user):
            if what.startswith("-") or not what.isprintable() or any(map(str.isspace, what)):
                raise InvalidValueError(f"{what!r} is no name for ssh")
        return cls("ssh", host, port, user, path if path != "/" else "")

    @property
    def authority(self) -> str:
        """What the `Host` field of a request says (RFC 9112 section 3.2)."""
        if self.scheme != "https":
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _HTTPS else f"{host}:{self.port}"

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix://{quote(self.path)}"
        user = f"{quote(self.user)}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return f"{self.scheme}://{user}{host}{port}{quote(self.path)}"
