"""Which Debian archives to use: the machine's own apt sources, or RINGZERO_MIRROR.

Only the entries that carry Debian itself are taken (other vendors'
repositories hold none of the packages wanted here, and may not be reachable);
their options (Signed-By, Trusted ...) are kept as they are. The formats are
those of sources.list(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ringzero.errors import HostError, InvalidValueError
from ringzero.settings import MIRROR

# The release whose kernel and userland the default image is made of.
DEFAULT_SUITE = "bookworm"

_RELEASES = "bullseye|bookworm|trixie|forky|sid|unstable|testing|stable|oldstable|oldoldstable"
_SUITE = re.compile(rf"({_RELEASES})(-updates|-security|-backports|/updates)?")
_ONE_LINE = re.compile(r"deb\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<uri>\S+)\s+(?P<rest>.+)")
# sources.list(5): the one-line options and their deb822 fields that matter here.
_OPTIONS = {
    "signed-by": "Signed-By",
    "trusted": "Trusted",
    "check-valid-until": "Check-Valid-Until",
}
ETC = Path("/etc/apt")
# Where Debian's archive is for everybody, with its updates and what is mended for security.
_MIRROR, _SECURITY = "http://ftp.debian.org/debian", "http://security.debian.org/debian-security"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True)
class Source:
    """One stanza of a deb822 .sources file."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()

    def render(self) -> str:
        """Return the stanza as text."""
        lines = [
            "Types: deb",
            f"URIs: {' '.join(self.uris)}",
            f"Suites: {' '.join(self.suites)}",
            "Components: main",
        ]
        return "\n".join(lines + [f"{key}: {value}" for key, value in self.options]) + "\n"


def debian_sources(suite: str | None = None, etc: Path = ETC) -> list[Source]:
    """Return the Debian sources to use.

    `suite` adds another release than the machine's ("trixie",
    "bookworm-backports"), from the same archive. Raises HostError when this
    machine's apt knows no Debian archive, InvalidValueError for a bad
    RINGZERO_MIRROR.
    """
    setting = MIRROR.get()
    if setting:
        return _from_setting(setting, suite)
    found = [source for text in _machine_files(etc) for source in _parse(text)]
    if not found:
        raise HostError(
            "this machine's apt configuration names no Debian archive",
            hint="set RINGZERO_MIRROR to the URL of a Debian mirror, e.g. "
            'RINGZERO_MIRROR="http://mirror.example/debian bookworm"',
            path=etc,
        )
    if suite is None:
        return found
    # The security archive has other suite names; the main one has every release.
    main = next((s for s in found if not any("security" in name for name in s.suites)), found[0])
    return [*found, Source(main.uris, (suite,), main.options)]


def mirror_sources(suite: str | None = None) -> list[Source]:
    """Return the Debian sources to use where there is no apt: RINGZERO_MIRROR, or Debian's own.

    `suite` adds another release, from the same archive. Raises InvalidValueError for a bad
    RINGZERO_MIRROR.
    """
    setting = MIRROR.get()
    if setting:
        return _from_setting(setting, suite)
    own = (DEFAULT_SUITE, f"{DEFAULT_SUITE}-updates", *([suite] if suite else []))
    return [Source((_MIRROR,), own), Source((_SECURITY,), (f"{DEFAULT_SUITE}-security",))]


def _from_setting(setting: str, suite: str | None) -> list[Source]:
    uri, *suites = setting.split()
    if not re.match(r"[a-z+]+:/", uri):
        raise InvalidValueError(
            f"RINGZERO_MIRROR={setting!r} is not a URL", hint="write URL, or URL and suites"
        )
    options = (("Signed-By", str(_KEYRING)),) if _KEYRING.exists() else ()
    names = [*(suites or [DEFAULT_SUITE]), *([suite] if suite else [])]
    return [Source((uri,), tuple(dict.fromkeys(names)), options)]


def _machine_files(etc: Path) -> Iterator[tuple[str, str]]:
    directory = etc / "sources.list.d"
    paths = [etc / "sources.list", *sorted(directory.glob("*.list"))]
    for path in [*paths, *sorted(directory.glob("*.sources"))]:
        try:
            yield path.suffix, path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue


def _parse(file: tuple[str, str]) -> Iterator[Source]:
    suffix, text = file
    stanzas = _deb822(text) if suffix == ".sources" else _one_line(text)
    for fields in stanzas:
        suites = tuple(s for s in fields.get("suites", "").split() if _SUITE.fullmatch(s))
        enabled = fields.get("enabled", "yes").lower() not in ("no", "false", "0", "off")
        wanted = "deb" in fields.get("types", "").split() and "main" in fields.get(
            "components", ""
        ).split(" ")
        if not (suites and enabled and wanted):
            continue
        names = {name.lower(): name for name in _OPTIONS.values()}
        options = tuple((names[key], value) for key, value in fields.items() if key in names)
        yield Source(tuple(fields.get("uris", "").split()), suites, options)


def _deb822(text: str) -> Iterator[dict[str, str]]:
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in (" ", "\t") and key:
                # A continuation keeps its line (an inline key needs them).
                fields[key] += "\n" + line
            elif ":" in line:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        if fields:
            yield fields


def _one_line(text: str) -> Iterator[dict[str, str]]:
    for line in text.splitlines():
        match = _ONE_LINE.match(line.strip())
        if match is None:
            continue
        suite, *components = match["rest"].split("#")[0].split()
        fields = {
            "types": "deb",
            "uris": match["uri"],
            "suites": suite,
            "components": " ".join(components),
        }
        for option in (match["options"] or "").split():
            key, _, value = option.partition("=")
            if key.lower() in _OPTIONS:
                fields[_OPTIONS[key.lower()].lower()] = value
        yield fields
