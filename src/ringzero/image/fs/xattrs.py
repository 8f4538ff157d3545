"""Names of extended attributes as ext and EROFS have them, and numbers of devices; no I/O.

A name's beginning is a number (fs/ext4/xattr.h and fs/erofs/erofs_fs.h of the Linux source).
"""

from __future__ import annotations

USER, ACL_ACCESS, ACL_DEFAULT, TRUSTED, SECURITY = 1, 2, 3, 4, 6
_PREFIXES = {
    USER: b"user.",
    ACL_ACCESS: b"system.posix_acl_access",
    ACL_DEFAULT: b"system.posix_acl_default",
    TRUSTED: b"trusted.",
    SECURITY: b"security.",
}


def full_name(index: int, rest: bytes) -> bytes | None:
    """Return an attribute's whole name; None for a beginning that is not known."""
    begin = _PREFIXES.get(index)
    return None if begin is None else begin + rest


def device(number: int) -> tuple[int, int]:
    """Return major and minor of a device in 32 bits (`new_decode_dev` of linux/kdev_t.h)."""
    return (number & 0xFFF00) >> 8, (number & 0xFF) | (number >> 12 & 0xFFF00)
