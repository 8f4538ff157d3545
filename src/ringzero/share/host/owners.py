"""Who owns a file for the guest, and with which mode, where the host's file cannot say so.

Whoever runs ringzero without root is the guest's root: files of theirs are root's in the guest.
What the guest sets beyond that (owners, set-uid bits, devices) is no business of the host's. It
is kept beside the file, in the attribute `user.ringzero.stat`, as rootless containers do, with
the host's mode at that time: once the host changes its mode, the host's counts again.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

ATTRIBUTE = b"user.ringzero.stat"
# Attributes of other name spaces than user.* are kept behind this.
FOREIGN = b"user.ringzero.x."
_VERSION = b"1"
# What a chmod of the guest's may set on the host: a set-group-id bit of a directory would be
# harmless, but what new files inherit from it is served here.
_ON_HOST = 0o777


class Override(NamedTuple):
    """What the guest has set: `mode` with its type; `base` is the host's mode of then."""

    uid: int
    gid: int
    mode: int
    rdev: int
    base: int

    def pack(self) -> bytes:
        """Return the attribute's value."""
        return b":".join(
            (_VERSION, *(b"%o" % number for number in self)),
        )

    @classmethod
    def parse(cls, value: bytes) -> Override | None:
        """Return what was packed, or None: anybody may write such an attribute."""
        version, *numbers = value.split(b":")
        if version != _VERSION or len(numbers) != len(cls._fields):
            return None
        try:
            found = cls(*(int(number, 8) for number in numbers))
        except ValueError:
            return None
        return found if all(0 <= number < 1 << 32 for number in found) else None


class Owners:
    """How owners of the host and of the guest go together.

    `real` says that the guest's numbers are the host's, and are set there: as root, who may.
    """

    def __init__(self, real: bool, uid: int | None = None, gid: int | None = None) -> None:
        self.real = real
        self._uid = os.geteuid() if uid is None else uid
        self._gid = os.getegid() if gid is None else gid

    def shown(self, found: os.stat_result, override: Override | None) -> tuple[int, int, int, int]:
        """Return (mode, uid, gid, rdev) as the guest sees them."""
        mode, uid, gid, rdev = found.st_mode, found.st_uid, found.st_gid, found.st_rdev
        if not self.real:
            uid = 0 if uid == self._uid else uid
            gid = 0 if gid == self._gid else gid
        if override is None:
            return mode, uid, gid, rdev
        if override.base == mode:
            mode = override.mode
        else:
            mode = stat.S_IFMT(override.mode) | stat.S_IMODE(mode)
        return mode, override.uid, override.gid, override.rdev

    def on_host(self, mode: int) -> int:
        """Return the permissions that a file of the guest's `mode` gets on the host."""
        kept = mode & _ON_HOST
        if self.real:
            return kept | mode & stat.S_ISVTX if stat.S_ISDIR(mode) else kept
        # The guest's root may do everything with it, and that is us.
        return kept | (0o700 if stat.S_ISDIR(mode) else 0o600)
