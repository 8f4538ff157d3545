"""Lists of packages, as Debian's archive publishes them (deb822(5), Packages); no I/O.

A list has some 60,000 stanzas of 700 bytes; only those that are asked for are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from ringzero.errors import HostError, NotFoundError
from ringzero.image.debian.versions import Relation, compare, relations
from ringzero.records import record

_PROVIDES = "\nProvides: "
_SHA256 = re.compile(r"[0-9a-f]{64}")


@record
class Candidate:
    """A version of a package, where it lies in the archive, and what it needs."""

    name: str
    version: str
    architecture: str
    base: str
    path: str
    size: int
    sha256: str
    depends: tuple[tuple[Relation, ...], ...]
    provides: tuple[Relation, ...]


def fields(text: str) -> dict[str, str]:
    """Return the fields of a stanza by their names in lower case; continuations stay joined."""
    found: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if line[:1] in (" ", "\t"):
            if key:
                found[key] += "\n" + line.strip()
            continue
        name, colon, value = line.partition(":")
        if colon:
            key = name.strip().lower()
            found[key] = value.strip()
    return found


class Index:
    """The packages of several lists; of each name the newest version is the candidate.

    Lists added with `preferred` win over the others, whatever their versions.
    """

    def __init__(self) -> None:
        # Stanzas by name: whether preferred, the archive's base URL, the text.
        self._stanzas: dict[str, list[tuple[bool, str, str]]] = {}
        self._providers: dict[str, list[str]] = {}

    def add(self, text: str, base: str, *, preferred: bool = False) -> None:
        """Take the list `text` of the archive at the URL `base`."""
        for stanza in text.split("\n\n"):
            begin = 0 if stanza.startswith("Package: ") else stanza.find("\nPackage: ") + 1
            if not stanza.startswith("Package: ", begin):
                continue
            name = stanza[begin + 9 :].partition("\n")[0].strip()
            self._stanzas.setdefault(name, []).append((preferred, base, stanza))
            at = stanza.find(_PROVIDES)
            if at >= 0:
                line = stanza[at + len(_PROVIDES) :].partition("\n")[0]
                for provided in re.findall(r"(?:^|,)\s*([a-z0-9][a-z0-9+.-]*)", line):
                    self._providers.setdefault(provided, []).append(name)

    def candidate(self, name: str, relation: Relation | None = None) -> Candidate | None:
        """Return the best version of a package, of those that `relation` allows."""
        best: tuple[bool, Candidate] | None = None
        for preferred, base, stanza in self._stanzas.get(name, ()):
            found = _candidate(stanza, base)
            if relation is not None and not relation.holds(found.version):
                continue
            if (
                best is None
                or (preferred, 0) > (best[0], 0)
                or (preferred == best[0] and compare(found.version, best[1].version) > 0)
            ):
                best = preferred, found
        return best[1] if best else None

    def find(self, text: str) -> Candidate:
        """Return the package NAME or NAME=VERSION. Raises NotFoundError."""
        name, equals, version = text.partition("=")
        found = self.candidate(name, Relation(name, "=", version) if equals else None)
        if found is None:
            raise NotFoundError(
                f"the archive has no package {text}", hint="is it in the archive's release?"
            )
        return found

    def closure(self, names: Sequence[str]) -> list[Candidate]:
        """Return the packages `names` and all that they depend on. Raises NotFoundError, HostError.

        Of alternatives the first that can be had is taken, unless another is chosen already.
        """
        chosen = {found.name: found for found in map(self.find, names)}
        todo = list(chosen.values())
        # A list may want two versions of one package in turns, without an end.
        seen = {(found.name, found.version) for found in todo}
        while todo:
            package = todo.pop(0)
            for alternatives in package.depends:
                if any(self._satisfied(relation, chosen.values()) for relation in alternatives):
                    continue
                found = next(self._offers(alternatives), None)
                if found is None:
                    raise HostError(
                        f"the Debian package {package.name} depends on {alternatives[0].name}, "
                        "which the archive does not have",
                        hint="is the mirror whole? RINGZERO_MIRROR names another one",
                    )
                chosen[found.name] = found
                if (found.name, found.version) not in seen:
                    seen.add((found.name, found.version))
                    todo.append(found)
        return list(chosen.values())

    def _offers(self, alternatives: Iterable[Relation]) -> Iterator[Candidate]:
        for relation in alternatives:
            if found := self.candidate(relation.name, relation):
                yield found
            for name in self._providers.get(relation.name, ()):
                provider = self.candidate(name)
                if provider is not None and _provides(provider, relation):
                    yield provider

    def _satisfied(self, relation: Relation, chosen: Iterable[Candidate]) -> bool:
        return any(
            (package.name == relation.name and relation.holds(package.version))
            or _provides(package, relation)
            for package in chosen
        )


def _provides(package: Candidate, relation: Relation) -> bool:
    """Whether a package stands for another one; with a version only where it says which."""
    return any(
        provided.name == relation.name
        and (not relation.operator or (provided.version and relation.holds(provided.version)))
        for provided in package.provides
    )


def _candidate(stanza: str, base: str) -> Candidate:
    found = fields(stanza)
    try:
        size, sha256, path = int(found["size"]), found["sha256"], found["filename"]
        name, version, architecture = found["package"], found["version"], found["architecture"]
    except (KeyError, ValueError) as fault:
        raise HostError(f"the archive's list of packages is damaged: {fault}") from fault
    if size < 0 or not _SHA256.fullmatch(sha256) or ".." in path.split("/"):
        raise HostError(f"the archive's list of packages is damaged at {name}")
    needed = [found[key] for key in ("pre-depends", "depends") if found.get(key)]
    return Candidate(
        name, version, architecture, base, path, size, sha256,
        tuple(tuple(group) for text in needed for group in relations(text)),
        tuple(group[0] for group in relations(found.get("provides", ""))),
    )  # fmt: skip
