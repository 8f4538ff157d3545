"""Kernel modules of a Debian kernel package: which ones a module needs, in order.

Debian's package carries no modules.dep (depmod writes it at installation), so
the dependencies are read where depmod reads them: in each module's .modinfo
section ("depends=a,b", "alias=...").
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from ringzero.errors import GuestImageError

_ELF64 = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
# A signed module ends with the signature, struct module_signature, whose last field is the
# signature's length, and this (kernel/module_signature.h of Linux).
_SIGNED = b"~Module signature appended~\n"
_SIGNATURE = struct.Struct(">8xI")


@dataclass(frozen=True)
class Module:
    """One module file: its name with underscores, its path in the package, its content."""

    name: str
    path: str
    data: bytes

    @cached_property
    def depends(self) -> list[str]:
        """Names of the modules that must be loaded before this one."""
        return [
            canonical(name)
            for value in modinfo(self.data).get("depends", [])
            for name in value.split(",")
            if name
        ]

    @property
    def aliases(self) -> list[str]:
        """The patterns of devices (modalias) that the module is for."""
        return modinfo(self.data).get("alias", [])


def canonical(name: str) -> str:
    """Return a module's name as the kernel knows it: without suffix, "-" as "_"."""
    return name.rsplit("/", 1)[-1].split(".ko", maxsplit=1)[0].replace("-", "_")


def modinfo(module: bytes) -> dict[str, list[str]]:
    """Return the key=value pairs of the .modinfo section; raises GuestImageError."""
    try:
        header = _ELF64.unpack_from(module)
        table, size, count, names_index = header[6], header[11], header[12], header[13]
        sections = [_SECTION.unpack_from(module, table + i * size) for i in range(count)]
        names_at = sections[names_index][4]
        for section in sections:
            start = names_at + section[0]
            if module[start : module.index(b"\0", start)] == b".modinfo":
                content = module[section[4] : section[4] + section[5]]
                break
        else:
            return {}
    except (struct.error, IndexError, ValueError) as fault:
        raise GuestImageError("a kernel module is no valid ELF file") from fault
    info: dict[str, list[str]] = {}
    for pair in content.split(b"\0"):
        key, found, value = pair.decode("utf-8", "replace").partition("=")
        if found:
            info.setdefault(key, []).append(value)
    return info


def unsigned(module: bytes) -> bytes:
    """Return a module without its signature.

    To check one costs the guest a hundred instructions for each byte of the module, a tenth of
    its start; that the package is Debian's is checked before.
    """
    end = len(module) - len(_SIGNED) - _SIGNATURE.size
    if not module.endswith(_SIGNED) or end < 0:
        return module
    (size,) = _SIGNATURE.unpack_from(module, end)
    return module[: end - size] if size <= end else module


def with_dependencies(names: Iterable[str], modules: Mapping[str, Module]) -> list[Module]:
    """Return the modules `names` and all they need, each after what it needs.

    Names that are not in `modules` are built into the kernel, or do not exist
    in it; either way there is nothing to load.
    """
    order: dict[str, Module] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in order or name not in modules or name in path:
            return
        for needed in modules[name].depends:
            visit(needed, (*path, name))
        order[name] = modules[name]

    for name in names:
        visit(canonical(name), ())
    return list(order.values())


def dependency_file(modules: Iterable[Module]) -> str:
    """Return the text of modules.dep (depmod(8)) for `modules`."""
    known = {module.name: module for module in modules}
    lines = []
    for module in known.values():
        needed = [m for m in with_dependencies([module.name], known) if m is not module]
        # modprobe loads from the right to the left.
        paths = " ".join(m.path for m in reversed(needed))
        lines.append(f"{module.path}: {paths}".rstrip())
    return "".join(line + "\n" for line in lines)
