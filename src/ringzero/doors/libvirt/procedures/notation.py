"""The notation in which the procedures are written, and the codecs that are made from it.

    16 DOMAIN_GET_INFO (domain: domain) -> (state: uchar, memory: uhyper)
    201 DOMAIN_OPEN_CONSOLE (domain: domain, dev_name: string?, flags: uint) both ways
    318 DOMAIN_EVENT_CALLBACK_LIFECYCLE (callback_id: int, domain: domain, event: int) event

Number and name are the protocol's. Names of arguments and results are not sent; some are ours,
where the protocol's are short. A type is a number (int, uint, hyper, uhyper, double, char,
uchar, ushort), string, uuid, opaque, or a record of STRUCTURES. Behind it stand

    ?           it may be absent, and is None then
    [OBJECTS]   a list of at most so many (`ringzero.doors.libvirt.limits`); bytes of opaque, char
    [=32]       exactly so many

and behind the procedure "event" for what the server sends of itself, and which way a stream goes
that it opens.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ringzero.doors.libvirt.limits import LIMITS, STRING
from ringzero.doors.libvirt.values import (
    UUID_SIZE,
    CheckpointHandle,
    DiskError,
    DomainHandle,
    DomainStatistics,
    FileSystem,
    FilterBindingHandle,
    FilterHandle,
    GraphicsAddress,
    GraphicsIdentity,
    GuestInterface,
    InterfaceHandle,
    Iothread,
    IpAddress,
    Lease,
    MemoryStatistic,
    NetworkHandle,
    NetworkPortHandle,
    NodeDeviceHandle,
    NodeStatistic,
    Parameter,
    ParameterKind,
    PoolHandle,
    SecretHandle,
    SecurityLabel,
    SnapshotHandle,
    Vcpu,
    VolumeHandle,
)
from ringzero.doors.libvirt.xdr import Reader, Writer
from ringzero.errors import ProtocolError

_TYPE = re.compile(r"(\w+)(\?)?(?:\[(=?)(\w+)\])?")


class Codec(NamedTuple):
    """How values of one type are read and written."""

    read: Callable[[Reader], Any]
    write: Callable[[Writer, Any], None]


# Records by their names in the notation: what they become, and the types of their fields.
STRUCTURES: dict[str, tuple[Callable[..., Any], str]] = {
    "domain": (DomainHandle, "string uuid int"),
    "network": (NetworkHandle, "string uuid"),
    "network_port": (NetworkPortHandle, "network uuid"),
    "nwfilter": (FilterHandle, "string uuid"),
    "nwfilter_binding": (FilterBindingHandle, "string string"),
    "interface": (InterfaceHandle, "string string"),
    "pool": (PoolHandle, "string uuid"),
    "volume": (VolumeHandle, "string string string"),
    "node_device": (NodeDeviceHandle, "string"),
    "secret": (SecretHandle, "uuid int string"),
    "snapshot": (SnapshotHandle, "string domain"),
    "checkpoint": (CheckpointHandle, "string domain"),
    "vcpu": (Vcpu, "uint int uhyper int"),
    "node_statistic": (NodeStatistic, "string uhyper"),
    "disk_error": (DiskError, "string int"),
    "memory_statistic": (MemoryStatistic, "int uhyper"),
    "iothread": (Iothread, "uint opaque[CPUMAP]"),
    "graphics_address": (GraphicsAddress, "int string string"),
    "graphics_identity": (GraphicsIdentity, "string string"),
    "lease": (Lease, "string hyper int string? string? string uint string? string?"),
    "domain_statistics": (DomainStatistics, "domain parameter[STATISTICS]"),
    "file_system": (FileSystem, "string string string string[FILE_SYSTEMS]"),
    "ip_address": (IpAddress, "int string uint"),
    "guest_interface": (GuestInterface, "string string? ip_address[FACTS]"),
    "security_label": (SecurityLabel, "char[LABEL] int"),
}


def _read_parameter(data: Reader) -> Parameter:
    name, number = data.string(STRING), data.int32()
    try:
        kind = ParameterKind(number)
    except ValueError:
        raise ProtocolError(f"{name!r} is a parameter of unknown type {number}") from None
    return Parameter(name, kind, _SIMPLE[_PARAMETER_TYPES[kind]].read(data))


def _write_parameter(data: Writer, value: Parameter) -> None:
    data.string(value.name, STRING)
    data.int32(value.kind)
    _SIMPLE[_PARAMETER_TYPES[value.kind]].write(data, value.value)


_SIMPLE = {
    "int": Codec(Reader.int32, Writer.int32),
    "uint": Codec(Reader.uint32, Writer.uint32),
    "hyper": Codec(Reader.int64, Writer.int64),
    "uhyper": Codec(Reader.uint64, Writer.uint64),
    "double": Codec(Reader.double, Writer.double),
    "char": Codec(lambda d: d.small(-0x80, 0x7F), lambda d, v: d.small(v, -0x80, 0x7F)),
    "uchar": Codec(lambda d: d.small(0, 0xFF), lambda d, v: d.small(v, 0, 0xFF)),
    "ushort": Codec(lambda d: d.small(0, 0xFFFF), lambda d, v: d.small(v, 0, 0xFFFF)),
    "string": Codec(lambda d: d.string(STRING), lambda d, v: d.string(v, STRING)),
    "uuid": Codec(lambda d: d.fixed(UUID_SIZE), lambda d, v: d.fixed(v, UUID_SIZE)),
    "parameter": Codec(_read_parameter, _write_parameter),
}
_PARAMETER_TYPES = {
    ParameterKind.INT: "int",
    ParameterKind.UINT: "uint",
    ParameterKind.LLONG: "hyper",
    ParameterKind.ULLONG: "uhyper",
    ParameterKind.DOUBLE: "double",
    ParameterKind.BOOLEAN: "int",
    ParameterKind.STRING: "string",
}


@functools.cache
def codec(notation: str) -> Codec:
    """Return how values of the type in `notation` are read and written."""
    match = _TYPE.fullmatch(notation)
    if match is None:
        raise ValueError(f"no type in {notation!r}")
    name, optional, exactly, bound = match.groups()
    if exactly:
        return _characters(int(bound), exact=True)
    if bound and name == "opaque":
        return _opaque(LIMITS[bound])
    if bound and name == "char":
        return _characters(LIMITS[bound], exact=False)
    found = _SIMPLE[name] if name in _SIMPLE else _structure(*STRUCTURES[name])
    if optional:
        return _optional(found)
    return _list(found, LIMITS[bound]) if bound else found


def _structure(kind: Callable[..., Any], notation: str) -> Codec:
    fields = tuple(codec(part) for part in notation.split())

    def write(data: Writer, value: Any) -> None:
        for field, item in zip(fields, value, strict=True):
            field.write(data, item)

    return Codec(lambda data: kind(*[field.read(data) for field in fields]), write)


def _optional(item: Codec) -> Codec:
    def write(data: Writer, value: Any) -> None:
        data.present(value is not None)
        if value is not None:
            item.write(data, value)

    return Codec(lambda data: item.read(data) if data.present() else None, write)


def _list(item: Codec, limit: int) -> Codec:
    def write(data: Writer, value: Any) -> None:
        data.length(len(value), limit)
        for each in value:
            item.write(data, each)

    return Codec(lambda data: [item.read(data) for _ in range(data.length(limit))], write)


def _opaque(limit: int) -> Codec:
    return Codec(lambda data: data.opaque(limit), lambda data, value: data.opaque(value, limit))


def _characters(limit: int, *, exact: bool) -> Codec:
    """Return how an array of C's char is read, each of which is a whole number on the wire."""

    def read(data: Reader) -> bytes:
        count = limit if exact else data.length(limit)
        return bytes(data.small(-0x80, 0x7F) & 0xFF for _ in range(count))

    def write(data: Writer, value: bytes) -> None:
        if exact:
            value = value.ljust(limit, b"\0")
        if len(value) > limit:
            raise ProtocolError(f"{len(value)} characters", limit=limit)
        if not exact:
            data.length(len(value), limit)
        for byte in value:
            data.int32(byte - 0x100 if byte > 0x7F else byte)

    return Codec(read, write)


class Fields:
    """Values by name, in order: the arguments of a procedure, or its results."""

    def __init__(self, notation: str) -> None:
        pairs = [part.split(": ") for part in notation.split(", ")] if notation else []
        self.types = dict(pairs)
        self._codecs = {name: codec(kind) for name, kind in self.types.items()}

    def decode(self, data: bytes | memoryview) -> dict[str, Any]:
        """Return the values that a packet's body holds; raises ProtocolError."""
        reader = Reader(data)
        found = {name: field.read(reader) for name, field in self._codecs.items()}
        reader.end()
        return found

    def encode(self, values: Mapping[str, Any]) -> bytes:
        """Return the body for all of these values; raises ProtocolError for what has none.

        A name that is missing or unknown is a programming error (TypeError).
        """
        if values.keys() != self._codecs.keys():
            raise TypeError(f"{', '.join(values)} in the place of {', '.join(self._codecs)}")
        writer = Writer()
        for name, field in self._codecs.items():
            field.write(writer, values[name])
        return bytes(writer.data)


_PROCEDURE = re.compile(
    r"(\d+) (\w+) \(([^)]*)\)(?: -> \(([^)]*)\))?(?: (event|to server|to client|both ways))?\s+"
)
# Whether the client's bytes go into the stream, and whether the server's do.
STREAMS = {"to server": (True, False), "to client": (False, True), "both ways": (True, True)}


class Procedure:
    """A procedure of a program: what it is called, takes and gives.

    `event` says that the server sends it of itself. `stream` is whether the client and whether the
    server writes to the stream that the procedure opens; None: it opens none.
    """

    def __init__(self, number: int, name: str, arguments: str, results: str, way: str) -> None:
        self.number, self.name = number, name
        self.event = way == "event"
        self.stream = STREAMS.get(way)
        self._arguments, self._results = arguments, results

    @functools.cached_property
    def arguments(self) -> Fields:
        """What is sent with a call, or with an event."""
        return Fields(self._arguments)

    @functools.cached_property
    def results(self) -> Fields:
        """What a good answer holds."""
        return Fields(self._results)

    def __repr__(self) -> str:
        return f"<{self.number} {self.name}>"


class Program:
    """A program of the protocol: its procedures by number and by name."""

    def __init__(self, name: str, number: int, version: int, texts: Iterable[str]) -> None:
        self.name, self.number, self.version = name, number, version
        self.procedures: dict[int, Procedure] = {}
        for text in texts:
            self._read(" ".join(text.split()) + " ")
        self.by_name = {found.name: found for found in self.procedures.values()}

    def _read(self, text: str) -> None:
        at = 0
        while at < len(text):
            match = _PROCEDURE.match(text, at)
            if match is None or int(match[1]) in self.procedures:
                raise ValueError(f"no procedure, or one that is there, in {text[at : at + 60]!r}")
            number = int(match[1])
            self.procedures[number] = Procedure(
                number, match[2], match[3], match[4] or "", match[5] or ""
            )
            at = match.end()
