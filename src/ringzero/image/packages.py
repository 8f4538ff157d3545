"""Debian packages by name, without root and without touching the host's apt.

`apt-get` is the client: it fetches the lists, resolves, downloads and verifies
(signatures of the lists, hashes of the packages). It runs on a private state
directory below the cache, with an empty package database, so that dependencies
are resolved for a guest and not for the host; proxies, certificates and
credentials come from the host's apt configuration.

    apt = Apt()
    paths = apt.download(apt.resolve(["busybox-static"]))

Downloaded packages stay in the cache (`debs/`), which is bounded by what
images ask for. Callers at the same time wait for each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from ringzero.errors import HostError, MissingToolError, NotFoundError
from ringzero.host.files import (
    CACHE_HINT,
    atomic_file,
    free_space,
    host_error,
    locked,
    make_directory,
    require_space,
    too_large,
)
from ringzero.host.progress import QUIET, Progress, Step
from ringzero.image.sources import debian_sources
from ringzero.settings import CACHE_DIR
from ringzero.units import MIB, format_size

# Lists older than this, in seconds, are fetched again before they are used:
# a mirror drops superseded packages, mostly not within a day.
LISTS_AGE = 86400

# What the lists of one Debian release take on the disk, with apt's index of them, in bytes.
_LISTS_SIZE = 160 * MIB
# Less than this left, and apt-get waits for a place to write to that does not come, in bytes.
_FULL = 256 * 1024
# How often a running apt tool is looked at, and after how long without any sign of work it is
# taken to hang, in seconds. Apt itself gives up a silent server after 30, three times over.
_LOOK, _HANGS = 1.0, 300.0

# Options for a private, unprivileged, empty system (apt.conf(5)). The hooks are
# cleared because the host's may need root or clean the host's own caches.
_CONFIGURATION = """\
Dir::State "{root}/state";
Dir::State::status "{root}/state/status";
Dir::Cache "{root}/cache";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Dir::Log "{root}/log";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{root}/sources.list.d";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
#clear APT::Architectures;
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
APT::Sandbox::User "root";
APT::Install-Recommends "false";
APT::Get::Assume-Yes "true";
APT::Color "false";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
pkgCacheGen::ForceEssential "none";
"""

_PRINTED = re.compile(r"'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) (?P<hash>\S*)")
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+(=[A-Za-z0-9.+~:-]+)?")


@dataclass(frozen=True)
class Package:
    """One version of one binary package, as the archive's signed lists describe it."""

    name: str
    version: str
    architecture: str
    file_name: str
    size: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}={self.version}"


class Apt:
    """Debian's archive for one guest architecture.

    `architecture` is Debian's name for it (amd64, i386, arm64); packages of
    `suite`, where it has them, are preferred to the machine's release. Every method
    may raise MissingToolError (no apt-get here), HostError (no network, disk
    full) and NotFoundError (no such package).
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
        self._progress = progress
        self._cache = cache if cache is not None else CACHE_DIR.get()
        self._suite = suite
        self._sources = "\n".join(source.render() for source in debian_sources(suite))
        key = hashlib.sha256(f"{architecture}\n{suite}\n{self._sources}".encode()).hexdigest()[:16]
        self._root = self._cache / "apt" / key
        self._pool = self._cache / "debs"
        self._fresh = False

    def refresh(self, max_age: float = LISTS_AGE) -> None:
        """Fetch the package lists unless the ones here are younger than `max_age` seconds.

        Lists that are here but old stay in use when the archive cannot be
        reached.
        """
        if self._fresh and max_age > 0:
            return
        stamp = self._root / "fetched"
        with locked(self._cache / "apt" / "lock", self._progress) as lock:
            if not stamp.exists():
                require_space(self._root, _LISTS_SIZE, "fetching Debian's package lists")
            self._prepare()
            age = time.time() - stamp.stat().st_mtime if stamp.exists() else None
            if age is None or not 0 <= age < max_age:
                try:
                    with self._progress.step("fetching the package lists") as step:
                        self._run(["apt-get", "update", "--error-on=any"], lock=lock, step=step)
                except NotFoundError as fault:
                    raise HostError(fault.message, hint=fault.hint, **fault.context) from fault
                except MissingToolError:
                    raise
                except HostError:
                    # One source of several may be out of order: what the others
                    # have given will do for now, and the next call tries again.
                    if age is None and not any(self._root.glob("state/lists/*_Packages*")):
                        raise
                else:
                    with atomic_file(stamp):
                        pass
        self._fresh = True

    def resolve(self, names: Sequence[str], *, dependencies: bool = True) -> list[Package]:
        """Return the packages `names`, with all that they depend on unless told otherwise.

        A name may carry a version: "busybox-static=1:1.35.0-4".
        """
        for name in names:
            if not _NAME.fullmatch(name):
                raise NotFoundError(f"{name!r} cannot be the name of a Debian package")
        self.refresh()
        wanted = list(names)
        with locked(self._cache / "apt" / "lock", self._progress) as lock:
            if dependencies:
                answer = self._run(["apt-get", "--print-uris", "install", *wanted], lock=lock)
                wanted = [
                    "=".join(_identity(match["file"])[:2]) for match in _PRINTED.finditer(answer)
                ]
            answer = self._run(["apt-get", "--print-uris", "download", *wanted], lock=lock)
        packages = []
        for match in _PRINTED.finditer(answer):
            name, version, architecture = _identity(match["file"])
            kind, _, digest = match["hash"].partition(":")
            if kind != "SHA256":
                raise HostError(f"the archive gives no SHA256 for {name}", hash=match["hash"])
            packages.append(
                Package(name, version, architecture, match["file"], int(match["size"]), digest)
            )
        return packages

    def depends(self, name: str) -> list[str]:
        """Return the names in the Depends field of the candidate version of `name`."""
        self.refresh()
        with locked(self._cache / "apt" / "lock", self._progress) as lock:
            record = self._run(["apt-cache", "show", "--no-all-versions", name], lock=lock)
        match = re.search(r"^Depends: (.*)$", record, re.MULTILINE)
        alternatives = match[1].split(",") if match else []
        return [text.split("|")[0].split("(")[0].strip() for text in alternatives]

    def download(self, packages: Sequence[Package]) -> list[Path]:
        """Return the paths of the .deb files of `packages`, fetching those not here yet."""
        make_directory(self._pool)
        with locked(self._pool / "lock", self._progress) as lock:
            missing = [p for p in packages if not intact(self._pool / p.file_name, p)]
            if missing:
                self._fetch(missing, lock)
        return [self._pool / package.file_name for package in packages]

    def _fetch(self, packages: Sequence[Package], lock: int) -> None:
        size = sum(package.size for package in packages)
        plural = "package" if len(packages) == 1 else "packages"
        text = f"downloading {len(packages)} Debian {plural} ({format_size(size)})"
        try:
            require_space(self._pool, size + _FULL, text)
            with (
                self._progress.step(text) as step,
                tempfile.TemporaryDirectory(prefix=".fetch-", dir=self._pool) as place,
            ):
                command = ["apt-get", "download", *map(str, packages)]
                self._run(command, lock=lock, step=step, directory=Path(place))
                for package in packages:
                    file = Path(place) / package.file_name
                    if not intact(file, package):
                        raise HostError(f"apt-get did not deliver {package}", path=file)
                    file.replace(self._pool / package.file_name)
        except OSError as fault:
            raise host_error(fault, "write to", self._pool) from fault

    def _prepare(self) -> None:
        """Create the private state directory; cheap when it exists."""
        for part in ("state/lists/partial", "cache/archives/partial", "sources.list.d", "log"):
            make_directory(self._root / part)
        root = str(self._root)
        if '"' in root or "\n" in root:
            raise HostError(f"apt cannot use a cache directory of this name: {root!r}")
        configuration = _CONFIGURATION.format(root=root, architecture=self.architecture)
        if self._suite is not None:
            configuration += f'APT::Default-Release "{self._suite}";\n'
        texts = {
            "apt.conf": configuration,
            "sources.list.d/ringzero.sources": self._sources,
            "state/status": "",
        }
        for name, text in texts.items():
            path = self._root / name
            if not path.exists():
                with atomic_file(path) as file:
                    file.write(text.encode())

    def _run(
        self,
        command: Sequence[str],
        *,
        lock: int,
        step: Step | None = None,
        directory: Path | None = None,
    ) -> str:
        """Run an apt tool on the private state and return its standard output."""
        self._prepare()
        options = ["-c", str(self._root / "apt.conf")]
        reader, writer = os.pipe()
        if step is not None:
            options += ["-o", f"APT::Status-Fd={writer}"]
        environment = os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        try:
            # The child inherits the lock, so that an apt-get that outlives a
            # killed ringzero keeps the next one waiting.
            child = subprocess.Popen(
                [command[0], *options, *command[1:]],
                cwd=directory or self._root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(writer, lock),
                text=True,
                errors="replace",
            )
        except FileNotFoundError as fault:
            os.close(reader)
            raise MissingToolError(
                f"{command[0]} is not installed on this machine",
                hint="give a kernel and an initrd of your own: "
                "ringzero run --kernel FILE --initrd FILE",
            ) from fault
        except OSError as fault:
            os.close(reader)
            raise host_error(fault, "run", command[0]) from fault
        finally:
            os.close(writer)
        signs = _Signs()
        watcher = threading.Thread(
            target=_watch, args=(os.fdopen(reader, "rb"), step, signs), daemon=True
        )
        watcher.start()
        try:
            output, complaints = self._communicate(child, command[0], signs)
        except BaseException:
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)
            child.kill()
            child.wait()
            raise
        watcher.join(1)
        if child.returncode == -signal.SIGXFSZ:
            raise too_large(f"{command[0]} was ended by the host")
        if child.returncode < 0:
            name = signal.Signals(-child.returncode).name
            raise HostError(
                f"{command[0]} was ended by {name}",
                hint="SIGKILL mostly means that memory ran out; try again",
            )
        if child.returncode != 0:
            raise _failure(command, complaints)
        return output

    def _communicate(
        self, child: subprocess.Popen[str], tool: str, signs: _Signs
    ) -> tuple[str, str]:
        """Return what the tool prints; raises HostError when it can come to no end."""
        free = before = free_space(self._root)
        while True:
            try:
                return child.communicate(timeout=_LOOK)
            except subprocess.TimeoutExpired:
                before, free = free, free_space(self._root)
            if free != before:
                signs.last = time.monotonic()
            elif free < _FULL:
                raise _stuck(tool, f"the disk of {self._root} is full", CACHE_HINT)
            if time.monotonic() - signs.last > _HANGS:
                raise _stuck(
                    tool,
                    f"it has done nothing for {_HANGS:.0f} seconds",
                    "is there a network? RINGZERO_MIRROR names another mirror",
                )


class _Signs:
    """When a running apt tool last showed that it works, by the monotonic clock."""

    def __init__(self) -> None:
        self.last = time.monotonic()


def _watch(status: BinaryIO, step: Step | None, signs: _Signs) -> None:
    """Read apt's status pipe (`dlstatus:number:percent:text`) to its end."""
    with status:
        for line in status:
            signs.last = time.monotonic()
            fields = line.decode(errors="replace").strip().split(":", 3)
            if step is not None and fields[0] == "dlstatus" and len(fields) == 4:
                # Whatever goes wrong: apt would wait for a reader.
                with contextlib.suppress(Exception):
                    step.update(float(fields[2]) / 100)


def _stuck(tool: str, reason: str, hint: str) -> HostError:
    return HostError(f"{tool} was ended: {reason}", hint=hint)


def _failure(command: Sequence[str], complaints: str) -> HostError | NotFoundError:
    """Return the error that says what an apt tool's complaints mean."""
    lines = [line for line in complaints.splitlines() if line.startswith(("E:", "W:"))]
    errors = [line[2:].strip() for line in lines if line.startswith("E:")]
    first = errors[0] if errors else (complaints.strip().splitlines() or ["no message"])[-1]
    text = "\n".join(lines)
    absent = re.search(
        r"Unable to locate package (\S+)|(?:No packages found)|has no installation candidate|"
        r"Version '(\S+)' for '(\S+)' was not found",
        text,
    )
    if absent:
        return NotFoundError(
            f"{first} ({' '.join(command[-3:])})", hint="is the package in the archive's release?"
        )
    hint = None
    if re.search(r"No space left|not enough free space|Disk quota", complaints, re.IGNORECASE):
        hint = "the disk is full: free some space, or set RINGZERO_CACHE_DIR to another disk"
    elif re.search(r"unexpected size|Hash Sum mismatch|Mirror sync", complaints):
        hint = (
            "the mirror is being updated or out of order: try again later, or set RINGZERO_MIRROR"
        )
    elif re.search(
        r"Could not (resolve|connect)|Temporary failure|Unable to connect|timed out|"
        r"Failed to fetch",
        complaints,
    ):
        hint = (
            "is there a network? Debian packages come from this machine's apt sources; "
            "RINGZERO_MIRROR names another mirror"
        )
    elif re.search(r"NO_PUBKEY|not signed|no longer signed", complaints):
        hint = "install the package debian-archive-keyring"
    return HostError(f"{command[0]} failed: {first}", hint=hint, command=" ".join(command))


def _identity(file_name: str) -> tuple[str, str, str]:
    """Split "name_version_arch.deb" as apt writes it, with its % escapes."""
    name, version, rest = file_name.split("_")
    return name, unquote(version), rest.removesuffix(".deb")


def intact(path: Path, package: Package) -> bool:
    """Tell whether `path` is there and holds exactly what the archive published."""
    try:
        if path.stat().st_size != package.size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256
    except OSError:
        return False
