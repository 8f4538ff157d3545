"""The modules of a start in one file of the cache, for processes of the command line.

To find, open and read some 250 modules one by one takes an eighth of a start that resumes. So `run`
and `image build` write down what they have loaded, and later processes take modules from there:

    HEADER      magic, length of the index
    index       marshalled: length of the code, and of each module its place there, its source,
                inode, size and times of that
    code        of each, as in Python's own .pyc file

A module whose source is not what it was is loaded as ever. The file is this user's alone, and of
one Python and one place of this package.
"""

from __future__ import annotations

import contextlib
import marshal
import mmap
import os
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import SourceFileLoader
from types import CodeType, ModuleType

from ringzero import basedirs
from ringzero.digest import blake2b

# TYPE_CHECKING of `typing`, which is not loaded for it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_MAGIC = b"RZBUND01"
_WORD = 8
_HEAD = len(_MAGIC) + _WORD
# Of a .pyc file (PEP 552): magic, flags, time and size of the source.
_PYC_HEAD = 16
# What `pathlib` takes a function from.
_QUOTING = "urllib.parse"
_OTHERS = 0o077
# Of a module in the index: where its code is and how long, the source's path and what it was, and
# whether it is a package.
_Entry = tuple[int, int, str, tuple[int, ...], bool]


class Bundle:
    """A finder for `sys.meta_path`, of the modules in an open file."""

    def __init__(self, data: memoryview, index: dict[str, _Entry]) -> None:
        self.data = data
        self.index = index

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the specification of a module whose source is what it was."""
        entry = self.index.get(name)
        if entry is None or entry[3] != _stamp(entry[2]):
            return None
        _, _, source, _, package = entry
        spec = ModuleSpec(name, _Loader(name, source, self), origin=source, is_package=package)
        spec.has_location = True
        if package:
            spec.submodule_search_locations = [os.path.dirname(source)]  # noqa: PTH120 - no pathlib
        return spec

    def has(self, spec: ModuleSpec) -> bool:
        """Whether a module is in the file, however it was loaded."""
        entry = self.index.get(spec.name)
        return entry is not None and entry[3] == _stamp(str(spec.origin))

    def code(self, name: str) -> CodeType:
        """Return the code of a module."""
        start, size, *_ = self.index[name]
        code = marshal.loads(self.data[start : start + size])
        assert isinstance(code, CodeType)
        return code


class _Loader(SourceFileLoader):
    """As Python's own, but for where the code comes from."""

    def __init__(self, name: str, path: str, bundle: Bundle) -> None:
        super().__init__(name, path)
        self._bundle = bundle

    def get_code(self, fullname: str) -> CodeType | None:
        return self._bundle.code(fullname)


def install() -> Bundle:
    """Have modules come from the file, where there is one."""
    found = _read(_place()) or Bundle(memoryview(b""), {})
    sys.meta_path.insert(0, found)
    _load_pathlib()
    return found


def _load_pathlib() -> None:
    """Load `pathlib`, without what it loads for `Path.as_uri` alone (until Python 3.13).

    That is `urllib.parse`, and `ipaddress`: a fiftieth of a start.
    """
    if "pathlib" in sys.modules or _QUOTING in sys.modules:
        return
    stand_in = ModuleType(_QUOTING)
    vars(stand_in)["quote_from_bytes"] = _quote_from_bytes
    sys.modules[_QUOTING] = stand_in
    try:
        import pathlib  # noqa: F401
    finally:
        del sys.modules[_QUOTING]


def _quote_from_bytes(data: bytes) -> str:
    from urllib.parse import quote_from_bytes

    return quote_from_bytes(data)


def write(bundle: Bundle) -> None:
    """Write down what this process has loaded, where that is not in the file; no faults."""
    place = _place()
    specs = [getattr(module, "__spec__", None) for module in list(sys.modules.values())]
    missing = [s for s in specs if s is not None and _is_plain(s) and not bundle.has(s)]
    with contextlib.suppress(OSError, ValueError):
        added = [(spec, code) for spec in missing if (code := _bytecode(spec))]
        if place and added:
            _keep(place, _content(bundle, added))


def _is_plain(spec: ModuleSpec) -> bool:
    """Whether a module is source of ours, or of Python's own library, that was found as such."""
    if type(spec.loader) is not SourceFileLoader:
        return False
    library = f"{os.path.dirname(os.__file__)}/"  # noqa: PTH120
    ours = spec.name.partition(".")[0] == __name__.partition(".")[0]
    return (ours or str(spec.origin).startswith(library)) and spec.name in sys.modules


def _place() -> str:
    """Return where the file is, "" where there is no place for it."""
    cache = os.environ.get("RINGZERO_CACHE_DIR") or basedirs.ours(*basedirs.CACHE)
    facts = f"{sys.version} {sys.flags.optimize} {__file__}"
    return cache and f"{cache}/modules-{blake2b(facts.encode(), digest_size=8).hexdigest()}"


def _stamp(path: str) -> tuple[int, ...]:
    """Return what changes whenever a file's content does, () where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - of 250 files at each start
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(path: str) -> Bundle | None:
    """Return what is in a file that is this user's, whole."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_mode & _OTHERS:
            return None
        data = mmap.mmap(descriptor, 0, mmap.MAP_SHARED, mmap.PROT_READ)
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)
    head = data[:_HEAD]
    end = _HEAD + int.from_bytes(head[len(_MAGIC) :], "little")
    if not head.startswith(_MAGIC) or len(data) < end:
        return None
    try:
        size, index = marshal.loads(data[_HEAD:end])
        return Bundle(memoryview(data)[end:], dict(index)) if end + size == len(data) else None
    except (ValueError, EOFError, TypeError):
        return None


def _bytecode(spec: ModuleSpec) -> bytes:
    """Return a module's code as Python has kept it; empty where it has not. Raises OSError."""
    cached = spec.cached
    if cached is None or not os.path.exists(cached):  # noqa: PTH110
        return b""
    with open(cached, "rb") as file:  # noqa: PTH123
        data = file.read()
    return data[_PYC_HEAD:] if _is_of(data, _stamp(str(spec.origin))) else b""


def _content(bundle: Bundle, added: list[tuple[ModuleSpec, bytes]]) -> bytes:
    """Return the file for modules with their code, and for those of `bundle`."""
    index: dict[str, _Entry] = {}
    code = bytearray()
    for name, entry in bundle.index.items():
        if entry[3] == _stamp(entry[2]):
            index[name] = (len(code), *entry[1:])
            code += bundle.data[entry[0] : entry[0] + entry[1]]
    for spec, data in added:
        source = str(spec.origin)
        package = spec.submodule_search_locations is not None
        index[spec.name] = len(code), len(data), source, _stamp(source), package
        code += data
    # Places count from the beginning of the code, which follows the index.
    head = marshal.dumps((len(code), list(index.items())))
    return b"".join((_MAGIC, len(head).to_bytes(_WORD, "little"), head, code))


def _is_of(data: bytes, stamp: tuple[int, ...]) -> bool:
    """Whether a .pyc file is of the source that is there, by its time and size (PEP 552)."""
    flags, changed, size = (int.from_bytes(data[at : at + 4], "little") for at in (4, 8, 12))
    return bool(stamp) and (flags, changed, size) == (
        0,
        stamp[2] // 10**9 & 0xFFFF_FFFF,
        stamp[1] & 0xFFFF_FFFF,
    )


def _keep(path: str, data: bytes) -> None:
    temporary = f"{path}-{os.urandom(4).hex()}"
    os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(data)
        os.replace(temporary, path)  # noqa: PTH105
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108
