"""How the host resolves names (resolv.conf(5))."""

from __future__ import annotations

import re
from pathlib import Path

RESOLV_CONF = Path("/etc/resolv.conf")
# As resolv.conf(5) has it for older programs, musl's among them.
MAX_SEARCH = 6
_DOMAIN = r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?"


def parse(text: str) -> tuple[list[str], list[str]]:
    """Return (resolvers, search domains); what makes no sense as a domain is passed over."""
    servers: list[str] = []
    domains: list[str] = []
    for line in text.splitlines():
        keyword, *values = line.split() or [""]
        if keyword == "nameserver" and values:
            servers.append(values[0])
        elif keyword in ("search", "domain"):
            found = [value.rstrip(".") for value in values]
            domains = [domain for domain in found if re.fullmatch(_DOMAIN, domain)][:MAX_SEARCH]
    return servers, domains


def search_domains() -> list[str]:
    """Return the domains in which this host looks for names."""
    try:
        return parse(RESOLV_CONF.read_text(errors="replace"))[1]
    except OSError:
        return []
