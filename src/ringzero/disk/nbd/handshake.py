"""The fixed newstyle handshake (doc/proto.md, "Newstyle negotiation"). No I/O."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from ringzero.disk.nbd import wire
from ringzero.disk.nbd.wire import (
    REP_ACK,
    REP_ERR_INVALID,
    REP_ERR_TOO_BIG,
    REP_ERR_UNKNOWN,
    REP_ERR_UNSUP,
)
from ringzero.records import record

_U16, _U32 = struct.Struct(">H"), struct.Struct(">I")
# How many options one client may ask: real ones ask a dozen, and one for each export.
_MOST_OPTIONS = 4096


@record
class Offer:
    """What a client hears of an export: its size in bytes and the rest."""

    name: str
    size: int
    read_only: bool = False
    description: str = ""

    @property
    def flags(self) -> int:
        """The transmission flags."""
        both = (
            wire.HAS_FLAGS | wire.SEND_FLUSH | wire.SEND_FUA | wire.SEND_DF | wire.SEND_CACHE
            | wire.CAN_MULTI_CONN
        )  # fmt: skip
        if self.read_only:
            return both | wire.READ_ONLY
        return both | wire.SEND_TRIM | wire.SEND_WRITE_ZEROES


class _Refusal(Exception):  # noqa: N818 - an answer
    """An option is answered by an error, and the handshake goes on."""

    def __init__(self, reply: int, message: str) -> None:
        super().__init__(message)
        self.reply = reply
        self.message = message


class Handshake:
    """One client's. `offers` returns what there is at the moment, by name.

    `feed` takes what the client says and returns what it is to hear. `chosen` is the export
    once there is one; from then on `rest` is what the client has sent as requests already.
    `over` says that the client is to be left.
    """

    def __init__(self, offers: Callable[[], Mapping[str, Offer]]) -> None:
        self.chosen: Offer | None = None
        self.over = False
        self.structured = False
        # Whether the client may ask for the state of blocks of the export.
        self.allocation = False
        self._offers = offers
        self._data = bytearray()
        self._flags: int | None = None
        self._skipping = 0
        self._options = 0
        # The export for which contexts were chosen.
        self._context_of: str | None = None

    @property
    def greeting(self) -> bytes:
        """What the server says first."""
        flags = wire.FIXED_NEWSTYLE | wire.NO_ZEROES
        return wire.GREETING.pack(wire.GREETING_MAGIC, wire.OPTION_MAGIC, flags)

    @property
    def rest(self) -> bytes:
        """What is not the handshake's any more."""
        return bytes(self._data)

    def feed(self, data: bytes) -> bytes:
        """Take what the client says; return the answer."""
        self._data += data
        answer = bytearray()
        while not self.over and self.chosen is None:
            said = self._step()
            if said is None:
                break
            answer += said
        return bytes(answer)

    # ---- one message -------------------------------------------------------

    def _step(self) -> bytes | None:
        """Take one message; return the answer, None when it is not there as a whole yet."""
        if self._flags is None:
            return self._take_flags()
        if self._skipping:
            return self._skip()
        if len(self._data) < wire.OPTION.size:
            return None
        magic, option, length = wire.OPTION.unpack_from(self._data)
        self._options += 1
        if magic != wire.OPTION_MAGIC or length > wire.OPTION_HOPELESS:
            self.over = True
            return b""
        if self._options > _MOST_OPTIONS:
            self.over = True
            return b""
        if length > wire.OPTION_MAX:
            del self._data[: wire.OPTION.size]
            self._skipping = length
            if option == wire.OPT_EXPORT_NAME:
                self.over = True
            return self._reply(option, REP_ERR_TOO_BIG, b"the option is too long")
        end = wire.OPTION.size + length
        if len(self._data) < end:
            self._options -= 1
            return None
        body = bytes(self._data[wire.OPTION.size : end])
        del self._data[:end]
        return self._answer(option, body)

    def _take_flags(self) -> bytes | None:
        if len(self._data) < wire.CLIENT_FLAGS.size:
            return None
        (flags,) = wire.CLIENT_FLAGS.unpack_from(self._data)
        del self._data[: wire.CLIENT_FLAGS.size]
        # "MUST close the connection" for what it does not know; fixed newstyle is what all speak.
        self.over = bool(flags & ~(wire.FIXED_NEWSTYLE | wire.NO_ZEROES))
        self._flags = flags
        return b""

    def _skip(self) -> bytes | None:
        count = min(self._skipping, len(self._data))
        del self._data[:count]
        self._skipping -= count
        return None if self._skipping else b""

    def _answer(self, option: int, body: bytes) -> bytes:
        if option == wire.OPT_EXPORT_NAME:
            return self._export_name(body)
        if option == wire.OPT_ABORT:
            self.over = True
            return self._reply(option, REP_ACK)
        take = {
            wire.OPT_LIST: self._list,
            wire.OPT_INFO: self._info,
            wire.OPT_GO: self._info,
            wire.OPT_STRUCTURED_REPLY: self._structured_reply,
            wire.OPT_LIST_META_CONTEXT: self._meta_context,
            wire.OPT_SET_META_CONTEXT: self._meta_context,
        }.get(option)
        if take is None:
            return self._reply(option, REP_ERR_UNSUP, b"this option is not known here")
        try:
            return take(option, body)
        except _Refusal as refusal:
            return self._reply(option, refusal.reply, refusal.message.encode())

    # ---- the options -------------------------------------------------------

    def _export_name(self, body: bytes) -> bytes:
        try:
            offer = self._find(_text(body))
        except _Refusal:
            # There is no way to say so (doc/proto.md, NBD_OPT_EXPORT_NAME).
            self.over = True
            return b""
        self._choose(offer)
        assert self._flags is not None
        padding = b"" if self._flags & wire.NO_ZEROES else wire.EXPORT_PADDING
        return wire.EXPORT_REPLY.pack(offer.size, offer.flags) + padding

    def _list(self, option: int, body: bytes) -> bytes:
        if body:
            raise _Refusal(REP_ERR_INVALID, "a list is asked for without data")
        said = b"".join(
            self._reply(option, wire.REP_SERVER, _string(offer.name) + offer.description.encode())
            for offer in self._offers().values()
        )
        return said + self._reply(option, REP_ACK)

    def _info(self, option: int, body: bytes) -> bytes:
        name, at = _take_string(body, 0)
        wanted, at = _take(body, at, _U16)
        if len(body) != at + 2 * wanted:
            raise _Refusal(REP_ERR_INVALID, "the number of requests is not that of the data")
        asked = {_U16.unpack_from(body, at + 2 * n)[0] for n in range(wanted)}
        offer = self._find(name)
        infos = [(wire.INFO_EXPORT, wire.EXPORT_REPLY.pack(offer.size, offer.flags))]
        if wire.INFO_NAME in asked:
            infos.append((wire.INFO_NAME, offer.name.encode()))
        if wire.INFO_DESCRIPTION in asked and offer.description:
            infos.append((wire.INFO_DESCRIPTION, offer.description.encode()))
        if wire.INFO_BLOCK_SIZE in asked:
            sizes = struct.pack(">III", 1, wire.BLOCK_PREFERRED, wire.PAYLOAD_MAX)
            infos.append((wire.INFO_BLOCK_SIZE, sizes))
        said = b"".join(
            self._reply(option, wire.REP_INFO, _U16.pack(kind) + data) for kind, data in infos
        )
        if option == wire.OPT_GO:
            self._choose(offer)
        return said + self._reply(option, REP_ACK)

    def _structured_reply(self, option: int, body: bytes) -> bytes:
        if body:
            raise _Refusal(REP_ERR_INVALID, "structured replies are asked for without data")
        self.structured = True
        return self._reply(option, REP_ACK)

    def _meta_context(self, option: int, body: bytes) -> bytes:
        sets = option == wire.OPT_SET_META_CONTEXT
        if sets:
            # Whatever comes of it, an earlier choice is gone.
            self._context_of = None
        if not self.structured:
            raise _Refusal(REP_ERR_INVALID, "structured replies come first")
        name, at = _take_string(body, 0)
        count, at = _take(body, at, _U32)
        queries = []
        for _ in range(count):
            query, at = _take_string(body, at)
            queries.append(query)
        if at != len(body):
            raise _Refusal(REP_ERR_INVALID, "there are bytes behind the last query")
        offer = self._find(name)
        # "base:" alone asks for all that begin so, in a list.
        fits = wire.BASE_ALLOCATION in queries or (not sets and (not queries or "base:" in queries))
        said = b""
        if fits:
            identifier = wire.BASE_ALLOCATION_ID if sets else 0
            data = _U32.pack(identifier) + wire.BASE_ALLOCATION.encode()
            said = self._reply(option, wire.REP_META_CONTEXT, data)
            if sets:
                self._context_of = offer.name
        return said + self._reply(option, REP_ACK)

    # ---- small things ------------------------------------------------------

    def _find(self, name: str) -> Offer:
        offers = self._offers()
        offer = offers.get(name)
        if offer is None and not name and len(offers) == 1:
            # "" is the default export: the one that there is.
            offer = next(iter(offers.values()))
        if offer is None:
            raise _Refusal(REP_ERR_UNKNOWN, f"there is no export {name[:256]!r}")
        return offer

    def _choose(self, offer: Offer) -> None:
        self.chosen = offer
        self.allocation = self._context_of == offer.name

    def _reply(self, option: int, kind: int, data: bytes = b"") -> bytes:
        return wire.OPTION_REPLY.pack(wire.REPLY_MAGIC, option, kind, len(data)) + data


def _take(body: bytes, at: int, form: struct.Struct) -> tuple[int, int]:
    """Return (a number, where the rest begins)."""
    if at + form.size > len(body):
        raise _Refusal(REP_ERR_INVALID, "the option ends early")
    return form.unpack_from(body, at)[0], at + form.size


def _take_string(body: bytes, at: int) -> tuple[str, int]:
    """Return (a string with its length before it, where the rest begins)."""
    length, at = _take(body, at, _U32)
    if at + length > len(body):
        raise _Refusal(REP_ERR_INVALID, "a name ends behind the option")
    return _text(body[at : at + length]), at + length


def _text(data: bytes) -> str:
    if len(data) > wire.NAME_MAX:
        raise _Refusal(REP_ERR_TOO_BIG, "the name is too long")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _Refusal(REP_ERR_INVALID, "the name is not UTF-8") from None


def _string(text: str) -> bytes:
    data = text.encode()
    return _U32.pack(len(data)) + data
