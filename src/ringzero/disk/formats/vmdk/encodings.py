"""The encodings that VMDK descriptors are written in (the line `encoding="..."`).

VMware writes the names of files in the code page of the host that makes the disk, under the
name that ICU or Windows has for it. On this host a file may be called by the text of such a
name, or still by its bytes.
"""

from __future__ import annotations

import codecs
import os
import re

from ringzero.errors import DiskUnsupportedError

UTF8 = "UTF-8"
_BOM = b"\xef\xbb\xbf"
_LINE = re.compile(rb'(?mi)^[ \t]*(ddb\.)?encoding[ \t]*=[ \t]*"?([^"\r\n]*?)"?[ \t]*\r?$')
_PRINTABLE = bytes(range(0x20, 0x7F))
# Python's codecs that are sets of characters, and no transformations of text.
_CHARSETS = re.compile(r"(cp\d+|iso8859_\d+|koi8_.|mac_\w+|euc_\w+|ascii|utf_8|johab|hp_roman8)")

# Python's codecs for a code page, the one first that knows most of it: Windows has characters
# in its pages that the standards of the same names have not, or have elsewhere.
_CHINESE = ("gb18030", "gbk")
_TAIWANESE = ("cp950", "big5hkscs", "big5")
_JAPANESE = ("cp932", "shift_jis", "shift_jisx0213")
_KOREAN = ("cp949", "euc_kr")
_CODECS = {
    "gbk": _CHINESE, "gb2312": _CHINESE, "gb18030": _CHINESE, "936": _CHINESE, "54936": _CHINESE,
    "big5": _TAIWANESE, "big5hkscs": ("big5hkscs", "cp950"), "950": _TAIWANESE,
    "shiftjis": _JAPANESE, "sjis": _JAPANESE, "mskanji": _JAPANESE, "932": _JAPANESE,
    "943": _JAPANESE, "windows31j": _JAPANESE, "eucjp": ("euc_jp", "euc_jis_2004"),
    "51932": ("euc_jp",), "euckr": _KOREAN, "949": _KOREAN, "ksc56011987": _KOREAN,
    "51949": _KOREAN, "uhc": _KOREAN, "1363": _KOREAN, "874": ("cp874",), "tis620": ("cp874",),
    "65001": ("utf-8",), "20127": ("ascii",), "20866": ("koi8_r",), "21866": ("koi8_u",),
    **{str(28590 + part): (f"iso8859_{part}",) for part in (*range(1, 12), *range(13, 17))},
}  # fmt: skip


def label_of(raw: bytes) -> str:
    """Return the name of the encoding that a descriptor gives; UTF-8 when it gives none."""
    found = list(_LINE.finditer(raw))
    # The descriptor's own line goes before the one in its data base.
    found.sort(key=lambda match: bool(match[1]))
    return found[0][2].decode("ascii", "replace") or UTF8 if found else UTF8


def codec_for(raw: bytes, label: str, name: str) -> str:
    """Return the codec that reads the descriptor `raw`; DiskUnsupportedError when none is known."""
    known = _known(label)
    if not known:
        if raw.isascii():
            return "utf-8"
        raise DiskUnsupportedError(
            f"{name}: its names are in the encoding {label!r}, which is not known",
            hint='write the descriptor anew in UTF-8, with encoding="UTF-8"',
            path=name,
        )
    for codec in known:
        try:
            raw.decode(codec)
        except UnicodeDecodeError:
            continue
        return codec
    # The line is wrong, or the text damaged: bytes are names too.
    return "utf-8"


def decode(raw: bytes, codec: str) -> str:
    """Return the text of a descriptor; bytes that are none in it stay what they are."""
    return raw.removeprefix(_BOM).decode(codec, "surrogateescape")


def encode(text: str, codec: str) -> bytes:
    """Return the bytes of a text; UnicodeEncodeError when the encoding lacks a character."""
    return text.encode(codec, "surrogateescape")


def spellings(name: str, codec: str, label: str) -> list[str]:
    """Return what a file may be called here that a descriptor calls `name`."""
    found = [name]
    if not name.isascii():
        raw = encode(name, codec)
        for other in _known(label):
            try:
                found.append(raw.decode(other))
            except UnicodeDecodeError:
                continue
        found.append(os.fsdecode(raw))
    return list(dict.fromkeys(found))


def _known(label: str) -> tuple[str, ...]:
    """Return the codecs for an encoding that has all of ASCII; none for others."""
    plain = re.sub(r"[^a-z0-9]", "", label.lower())
    number = re.fullmatch(r"(?:windows|ibm|cp|x?ms|codepage|dos)?(\d{3,5})(?:p\w*)?", plain)
    for key in (plain, number[1] if number else plain):
        if key in _CODECS:
            return _CODECS[key]
    codec = f"cp{number[1]}" if number else label
    try:
        found = codecs.lookup(codec).name
    except (LookupError, ValueError):
        return ()
    if not _CHARSETS.fullmatch(found.replace("-", "_")):
        return ()
    ascii_too = _PRINTABLE.decode(found, "replace") == _PRINTABLE.decode("ascii")
    return (found,) if ascii_too else ()
