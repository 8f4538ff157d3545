"""Debian packages on hosts without apt: what `ringzero.image.packages.Apt` does, by our own code.

    mirror = Mirror()
    paths = mirror.download(mirror.resolve(["busybox-static"]))

The archive is that of RINGZERO_MIRROR or Debian's own. Its Release files are signed (`signature`)
and tell the hashes of the lists, which tell those of the packages; all are checked. What is
fetched stays in the cache, where Apt's is: `debs/`, and lists below `debian/`.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import lzma
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ringzero.errors import HostError, NotFoundError
from ringzero.host.files import (
    atomic_file,
    host_error,
    locked,
    make_directory,
    require_space,
)
from ringzero.host.progress import QUIET, Progress
from ringzero.image.debian import signature
from ringzero.image.debian.index import Candidate, Index, fields
from ringzero.image.http import FAULTS, Client
from ringzero.image.packages import LISTS_AGE, Package, intact
from ringzero.image.sources import Source, mirror_sources
from ringzero.settings import CACHE_DIR, MIRROR_KEYS
from ringzero.units import MIB, format_size

# A Release file, and a list of packages, compressed or not, are never larger, in bytes.
_MAX_RELEASE, _MAX_LIST = 16 * MIB, 512 * MIB
_MAX_PACKAGE = 2048 * MIB
# A size with so many digits is none.
_SIZE_DIGITS = 16
_ATTEMPTS, _PAUSE = 4, 0.5
_CHUNK = 1 << 20
_THREADS = 4
_UNPACKERS: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
    (".xz", lzma.decompress),
    (".gz", gzip.decompress),
    ("", lambda data: data),
)


class Mirror:
    """Debian's archive for one guest architecture, with the methods of `Apt`.

    Every method may raise HostError (no network, a bad signature or hash, disk full),
    MissingToolError (nothing checks signatures here) and NotFoundError (no such package).
    """

    def __init__(
        self,
        *,
        architecture: str = "amd64",
        suite: str | None = None,
        cache: Path | None = None,
        progress: Progress = QUIET,
    ) -> None:
        self.architecture = architecture
        self._suite, self._progress = suite, progress
        self._cache = cache if cache is not None else CACHE_DIR.get()
        self._sources = mirror_sources(suite)
        text = "\n".join(source.render() for source in self._sources)
        key = hashlib.sha256(f"{architecture}\n{suite}\n{text}".encode()).hexdigest()[:16]
        self._root = self._cache / "debian" / key
        self._pool = self._cache / "debs"
        self._client = Client()
        self._index: Index | None = None
        self._found: dict[str, Candidate] = {}

    def refresh(self, max_age: float = LISTS_AGE) -> None:
        """Fetch the package lists unless the ones here are younger than `max_age` seconds.

        Lists that are here but old stay in use when the archive cannot be reached.
        """
        if self._index is not None and max_age > 0:
            return
        stamp = self._root / "lists.json"
        with locked(self._cache / "debian" / "lock", self._progress):
            known = _read_json(stamp)
            age = time.time() - stamp.stat().st_mtime if known else None
            if age is None or not 0 <= age < max_age:
                try:
                    with self._progress.step("fetching Debian's package lists"):
                        known = self._fetch_lists()
                except HostError:
                    if not known:
                        raise
                else:
                    with atomic_file(stamp) as file:
                        file.write(json.dumps(known).encode())
            self._index = self._read_lists(known)

    def resolve(self, names: Sequence[str], *, dependencies: bool = True) -> list[Package]:
        """Return the packages `names`, with all that they depend on unless told otherwise.

        A name may carry a version: "busybox-static=1:1.35.0-4".
        """
        index = self._lists()
        found = index.closure(names) if dependencies else [index.find(name) for name in names]
        packages = []
        for candidate in found:
            package = _package(candidate)
            self._found[package.file_name] = candidate
            packages.append(package)
        return packages

    def depends(self, name: str) -> list[str]:
        """Return the names in the Depends field of the candidate version of `name`."""
        return [alternatives[0].name for alternatives in self._lists().find(name).depends]

    def download(self, packages: Sequence[Package]) -> list[Path]:
        """Return the paths of the .deb files of `packages`, fetching those not here yet."""
        make_directory(self._pool)
        with locked(self._pool / "lock", self._progress):
            missing = [p for p in packages if not intact(self._pool / p.file_name, p)]
            if missing:
                size = sum(package.size for package in missing)
                text = f"downloading {len(missing)} Debian packages ({format_size(size)})"
                require_space(self._pool, size, text)
                with self._progress.step(text) as step:
                    done = 0
                    with ThreadPoolExecutor(_THREADS, "debian") as pool:
                        for package in pool.map(self._fetch_package, missing):
                            done += package.size
                            step.update(done / size if size else None, package.name)
        return [self._pool / package.file_name for package in packages]

    def _lists(self) -> Index:
        self.refresh()
        assert self._index is not None, "refresh() has read the lists"
        return self._index

    def _fetch_package(self, package: Package) -> Package:
        found = self._found[package.file_name]
        if found.size > _MAX_PACKAGE:
            raise HostError(f"the Debian package {package} is larger than 2 GiB")
        data = self._get(f"{found.base}/{found.path}", found.size)
        _check(data, found.size, found.sha256, str(package))
        with atomic_file(self._pool / package.file_name) as file:
            file.write(data)
        return package

    # ---- lists ------------------------------------------------------------

    def _fetch_lists(self) -> list[dict[str, object]]:
        """Fetch the lists of all sources; return where each lies here, and what it is of."""
        found: list[dict[str, object]] = []
        for source in self._sources:
            for suite in source.suites:
                preferred = suite == self._suite
                found.append(self._fetch_list(source, suite) | {"preferred": preferred})
        return found

    def _fetch_list(self, source: Source, suite: str) -> dict[str, object]:
        base = source.uris[0].rstrip("/")
        names = self._release(source, base, suite)
        for suffix, _ in _UNPACKERS:
            name = f"main/binary-{self.architecture}/Packages{suffix}"
            if name not in names:
                continue
            sha256, size = names[name]
            path = self._root / sha256
            if not path.exists() or path.stat().st_size != size:
                if size > _MAX_LIST:
                    raise HostError(f"{base}: the list {name} is larger than it can be")
                data = self._list(base, suite, name, sha256, size)
                with atomic_file(path) as file:
                    file.write(data)
            return {"file": sha256, "suffix": suffix, "base": base}
        raise NotFoundError(
            f"{base} has no packages of {suite} for {self.architecture}",
            hint="RINGZERO_MIRROR names another mirror",
        )

    def _list(self, base: str, suite: str, name: str, sha256: str, size: int) -> bytes:
        place = f"{base}/dists/{suite}"
        # By its hash it is there while the mirror is being updated, too.
        by_hash = f"{place}/{name.rpartition('/')[0]}/by-hash/SHA256/{sha256}"
        for url in (by_hash, f"{place}/{name}"):
            with contextlib.suppress(NotFoundError):
                data = self._get(url, size)
                _check(data, size, sha256, name)
                return data
        raise HostError(
            f"{base} does not have the list {name} that its Release file tells of",
            hint="the mirror is being updated: try again later, or set RINGZERO_MIRROR",
        )

    def _release(self, source: Source, base: str, suite: str) -> dict[str, tuple[str, int]]:
        """Return hash and size of each list of a release, by its name."""
        options = dict(source.options)
        place = f"{base}/dists/{suite}"
        if options.get("Trusted") == "yes":
            text = self._get(f"{place}/Release", _MAX_RELEASE).decode("utf-8", "replace")
        else:
            keys = MIRROR_KEYS.get()
            signature.require()
            text = signature.verified(self._get(f"{place}/InRelease", _MAX_RELEASE), keys)
        release = fields(text)
        if suite not in (release.get("suite"), release.get("codename")):
            raise HostError(
                f"{place} is the release {release.get('codename', 'nobody knows which')!r}",
                hint="the mirror is out of order; RINGZERO_MIRROR names another one",
            )
        _check_date(release, place)
        hashes = {}
        for line in release.get("sha256", "").splitlines():
            words = line.split()
            if len(words) == 3 and words[1].isdecimal() and len(words[1]) < _SIZE_DIGITS:
                hashes[words[2]] = words[0], int(words[1])
        return hashes

    def _read_lists(self, known: Sequence[dict[str, object]]) -> Index:
        index = Index()
        unpackers = dict(_UNPACKERS)
        for item in known:
            path = self._root / str(item["file"])
            try:
                data = unpackers[str(item["suffix"])](path.read_bytes())
            except OSError as fault:
                raise host_error(fault, "read", path) from fault
            except (lzma.LZMAError, zlib.error, EOFError, KeyError) as fault:
                path.unlink(missing_ok=True)
                raise HostError(f"a list of packages is damaged: {fault}", hint="again") from fault
            text = data.decode("utf-8", "replace")
            index.add(text, str(item["base"]), preferred=bool(item["preferred"]))
        return index

    # ---- the archive ------------------------------------------------------

    def _get(self, url: str, limit: int) -> bytes:
        """Return what is at a URL, http, https or file. Raises NotFoundError, HostError."""
        parts = urlsplit(url)
        if parts.scheme == "file":
            path = Path(unquote(parts.path))
            try:
                return path.read_bytes()[: limit + 1]
            except FileNotFoundError as fault:
                raise NotFoundError(f"{path} does not exist") from fault
            except OSError as fault:
                raise host_error(fault, "read", path) from fault
        reason: Exception | None = None
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_PAUSE * 2**attempt)
            try:
                with self._client.request("GET", url, {}, {}) as answer:
                    if answer.status == 404:
                        raise NotFoundError(f"{url} does not exist")
                    if answer.status == 200:
                        return answer.body(limit)
                    reason = OSError(f"it answers {answer.status}")
            except FAULTS as lost:
                reason = lost
                if isinstance(lost, ConnectionRefusedError):
                    break
        raise HostError(
            f"cannot fetch {url}: {getattr(reason, 'strerror', None) or reason}",
            hint="is there a network? RINGZERO_MIRROR names another mirror",
        ) from reason


def _package(found: Candidate) -> Package:
    # As apt writes names of files: a colon of a version is escaped.
    version = found.version.replace(":", "%3a")
    name = f"{found.name}_{version}_{found.architecture}.deb"
    return Package(found.name, found.version, found.architecture, name, found.size, found.sha256)


def _check(data: bytes, size: int, sha256: str, what: str) -> None:
    if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
        raise HostError(
            f"{what} is not what the archive has published: {len(data)} bytes, hash sum mismatch",
            hint="the mirror is being updated or out of order: try again later, or set "
            "RINGZERO_MIRROR",
        )


def _check_date(release: dict[str, str], place: str) -> None:
    """Refuse a Release file that is past its time: somebody may hide what came since."""
    until = release.get("valid-until")
    if until is None:
        return
    try:
        end = parsedate_to_datetime(until).timestamp()
    except ValueError as fault:
        raise HostError(f"{place}: its Valid-Until is {until!r}") from fault
    if end < time.time():
        raise HostError(
            f"{place}: its Release file was valid until {until}",
            hint="the mirror is not kept up, or this host's clock is wrong",
        )


def _read_json(path: Path) -> list[dict[str, object]]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return []
    return value if isinstance(value, list) else []
