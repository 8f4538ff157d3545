"""`RUN --mount`: what is there for one step alone (Dockerfile reference, "RUN --mount")."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from ringzero.build import copying, entries
from ringzero.build.cache import BuildCache
from ringzero.build.copying import Placement
from ringzero.build.entries import Entry
from ringzero.build.origin import Origin
from ringzero.build.view import View
from ringzero.build.vmfile.instructions import Mount
from ringzero.build.worker import Attachment, Sink
from ringzero.errors import InvalidValueError
from ringzero.host.files import atomic_file
from ringzero.records import replace

_SECRET_MODE, _SHARED_MODE, _TEMPORARY_MODE = 0o400, 0o755, 0o1777


class Mounts:
    """The mounts of one RUN. `view` returns what the image holds, `secrets` are by their ids."""

    def __init__(
        self,
        mounts: Sequence[Mount],
        view: Callable[[], View],
        builds: BuildCache,
        secrets: Mapping[str, bytes],
    ) -> None:
        self._view = view
        self._builds = builds
        self._secrets = secrets
        # A secret that is not given and need not be is no mount.
        self._mounts = [
            mount
            for mount in mounts
            if mount.kind != "secret" or mount.required or mount.name in secrets
        ]

    def plan(self, origin: Callable[[str], Origin]) -> tuple[tuple[Attachment, ...], list[str]]:
        """Return the attachments, and what of them belongs to the step's key.

        `origin` returns where files come from: a stage's or image's name, "" for the build's
        directory. What secrets and caches hold changes no key. Raises InvalidValueError, and what
        `copying.plan` raises.
        """
        found: list[Attachment] = []
        covered: list[str] = []
        for mount in self._mounts:
            covered.append(repr(mount))
            if mount.kind == "bind":
                attachment, digest = self._bind(mount, origin(mount.stage))
                covered.append(digest)
                found.append(attachment)
            elif mount.kind == "cache":
                found.append(self._cache(mount))
            elif mount.kind == "tmpfs":
                found.append(
                    Attachment("tmpfs", self._place(mount), mount.size, mount.mode or 0o1777)
                )
            elif mount.target:
                found.append(self._secret(mount))
        return tuple(found), covered

    def variables(self) -> dict[str, str]:
        """Return the environment that secrets are wanted in. Raises InvalidValueError."""
        return {
            mount.variable: os.fsdecode(self._content(mount))
            for mount in self._mounts
            if mount.kind == "secret" and mount.variable
        }

    def _place(self, mount: Mount) -> str:
        """Return where it is mounted, without links. Raises InvalidValueError for the root."""
        real, _ = self._view().resolve(os.fsencode(mount.target))
        if not real:
            raise InvalidValueError(f"nothing is mounted over the root directory ({mount.target})")
        return os.fsdecode(real)

    def _bind(self, mount: Mount, origin: Origin) -> tuple[Attachment, str]:
        files = copying.plan(origin, [mount.source or "."], {}, Placement("/"), View(None))
        with Path(os.devnull).open("wb") as nowhere:
            layer = entries.write(files, nowhere, 0)
        kind = "bind" if mount.read_only else "bind-rw"
        if len(files) == 1 and stat.S_ISREG(files[0].mode) and mount.source:
            kind, files = "file", [replace(files[0], name=b"file")]
        place = self._place(mount)
        return Attachment(kind, place, fill=lambda to: entries.write(files, to, 0)), layer.digest

    def _cache(self, mount: Mount) -> Attachment:
        path = self._builds.kept(mount.name)

        def fill(target: BinaryIO) -> None:
            target.write(path.read_bytes())

        def keep(take: Callable[[Sink], None]) -> None:
            with atomic_file(path) as file:
                take(file.write)

        mode = _SHARED_MODE if mount.mode is None else mount.mode
        attachment = Attachment("cache", self._place(mount), 0, mode, mount.owner, keep=keep)
        return replace(attachment, fill=fill) if path.exists() else attachment

    def _secret(self, mount: Mount) -> Attachment:
        data = self._content(mount)

        def fill(target: BinaryIO) -> None:
            content: Iterator[bytes] = iter((data,))
            file = Entry(b"file", stat.S_IFREG, size=len(data), content=lambda: content)
            entries.write([file], target, 0)

        mode = _SECRET_MODE if mount.mode is None else mount.mode
        return Attachment("secret", self._place(mount), 0, mode, mount.owner, fill)

    def _content(self, mount: Mount) -> bytes:
        if mount.name not in self._secrets:
            raise InvalidValueError(
                f"the secret {mount.name!r} is not there",
                hint=f"ringzero image build --secret id={mount.name},src=FILE",
            )
        return self._secrets[mount.name]
