"""The names of disk formats: ours, and QEMU's, which other programs' images hold.

Inside ringzero a format has our name throughout; what is written into an image for others to
read has QEMU's.
"""

from __future__ import annotations

# What QEMU calls a format, where it has another name than ours (QAPI, BlockdevDriver).
_QEMU_NAMES = {"vhd": "vpc"}
# The drivers of plain bytes are protocols to QEMU, but images name them as formats too.
_ALIASES = {
    **{theirs: ours for ours, theirs in _QEMU_NAMES.items()},
    **dict.fromkeys(("file", "host_device", "host_cdrom"), "raw"),
}


def format_name(name: str) -> str:
    """Return our name of a format that may be given by QEMU's, in any case of letters."""
    name = name.lower()
    return _ALIASES.get(name, name)


def qemu_format_name(name: str) -> str:
    """Return QEMU's name of a format of ours."""
    return _QEMU_NAMES.get(name, name)
