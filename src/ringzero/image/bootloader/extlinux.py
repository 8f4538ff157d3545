"""EXTLINUX and SYSLINUX: their configuration files (Alpine's images; U-Boot reads them too)."""

from __future__ import annotations

from ringzero.errors import FileSystemError, NotFoundError
from ringzero.image.bootloader.bls import path_of
from ringzero.image.bootloader.contract import (
    BootEntry,
    FileAt,
    Volume,
    Volumes,
    exists,
    read_text,
)
from ringzero.records import mutable_record, replace

_PATHS = tuple(
    f"{directory}{name}"
    for directory in (
        "/boot/",
        "/boot/extlinux/",
        "/extlinux/",
        "/boot/syslinux/",
        "/syslinux/",
        "/",
    )
    for name in ("extlinux.conf", "syslinux.cfg")
)
_MAX_INCLUDES = 8
_MAX_LABELS = 500


@mutable_record
class _Label:
    name: str
    title: str = ""
    kernel: str = ""
    initrd: str = ""
    append: str | None = None
    default: bool = False


def find(volumes: Volumes) -> list[BootEntry]:
    """Return what the menu has, its default marked."""
    for volume in volumes:
        for path in _PATHS:
            if exists(volume, path):
                found = _Menu(volume, path).entries()
                if found:
                    return found
    return []


class _Menu:
    def __init__(self, volume: Volume, path: str) -> None:
        self._volume = volume
        self._path = path
        self._directory = path.rpartition("/")[0]
        # Nobody presses a key: what is booted then goes before what is chosen else.
        self._on_timeout = ""
        self._default = ""
        self._append = ""
        self._labels: list[_Label] = []
        self._read(path, 0)

    def _read(self, path: str, depth: int) -> None:
        if depth > _MAX_INCLUDES:
            return
        try:
            text = read_text(self._volume, path)
        except (NotFoundError, FileSystemError):
            return
        for line in text.splitlines():
            word, _, rest = line.strip().replace("\t", " ").partition(" ")
            self._line(word.lower(), rest.strip(), depth)

    def _line(self, word: str, rest: str, depth: int) -> None:
        label = self._labels[-1] if self._labels else None
        if word == "label" and len(self._labels) < _MAX_LABELS:
            self._labels.append(_Label(rest, rest))
        elif word == "include":
            self._read(f"{self._directory}/{rest}", depth + 1)
        elif word == "default" and label is None:
            self._default = rest
        elif word == "ontimeout":
            self._on_timeout = rest
        elif word == "append" and label is None:
            self._append = rest
        elif label is None:
            return
        elif word == "menu":
            kind, _, text = rest.partition(" ")
            if kind.lower() == "label":
                # A caret marks the key that chooses the entry.
                label.title = text.strip().replace("^", "")
            elif kind.lower() == "default":
                label.default = True
        elif word in ("kernel", "linux"):
            label.kernel = rest
        elif word == "initrd":
            label.initrd = rest
        elif word == "append":
            label.append = rest

    def entries(self) -> list[BootEntry]:
        found = []
        for label in self._labels:
            # Modules of SYSLINUX's own are no kernels.
            if not label.kernel or label.kernel.endswith((".c32", ".bin", ".0")):
                continue
            words = (self._append if label.append is None else label.append).split()
            if words == ["-"]:
                words = []
            # "initrd=" may stand among the kernel's words, several with commas.
            given = [word[7:] for word in words if word.startswith("initrd=")]
            initrds = [p for p in ",".join([label.initrd, *given]).split(",") if p]
            line = " ".join(word for word in words if not word.startswith("initrd="))
            found.append(
                BootEntry(
                    label.name,
                    label.title,
                    self._file(label.kernel),
                    tuple(self._file(path) for path in initrds),
                    line,
                    f"EXTLINUX ({self._path})",
                )
            )
        chosen = self._chosen([entry.id for entry in found])
        return [replace(entry, default=entry.id == chosen) for entry in found]

    def _chosen(self, names: list[str]) -> str:
        """Return which label is booted where nobody chooses."""
        marked = [label.name for label in self._labels if label.default]
        wanted = (self._on_timeout, *marked, self._default, *names)
        return next((name for name in wanted if name in names), "")

    def _file(self, path: str) -> FileAt:
        if not path.startswith("/"):
            path = f"{self._directory}/{path}"
        return path_of(self._volume, path)
