"""What is in the packets: handles of objects, and the records that lists are made of."""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from ringzero.errors import ProtocolError

# A universally unique identifier is 16 bytes on the wire.
UUID_SIZE = 16


class DomainHandle(NamedTuple):
    """A machine by name, UUID and, while it runs, number; -1 while it does not."""

    name: str
    uuid: bytes
    id: int = -1


class NetworkHandle(NamedTuple):
    name: str
    uuid: bytes


class NetworkPortHandle(NamedTuple):
    network: NetworkHandle
    uuid: bytes


class FilterHandle(NamedTuple):
    name: str
    uuid: bytes


class FilterBindingHandle(NamedTuple):
    port: str
    filter: str


class InterfaceHandle(NamedTuple):
    """A network interface of the host."""

    name: str
    mac: str


class PoolHandle(NamedTuple):
    name: str
    uuid: bytes


class VolumeHandle(NamedTuple):
    """A volume by its pool and name, and by `key`, which is the same wherever it lies."""

    pool: str
    name: str
    key: str


class NodeDeviceHandle(NamedTuple):
    name: str


class SecretHandle(NamedTuple):
    uuid: bytes
    usage_type: int
    usage_id: str


class SnapshotHandle(NamedTuple):
    name: str
    domain: DomainHandle


class CheckpointHandle(NamedTuple):
    name: str
    domain: DomainHandle


class ParameterKind(enum.IntEnum):
    """What a typed parameter holds (virTypedParameterType)."""

    INT = 1
    UINT = 2
    LLONG = 3
    ULLONG = 4
    DOUBLE = 5
    BOOLEAN = 6
    STRING = 7


class Parameter(NamedTuple):
    """A value with a name, of a kind that the name does not tell (virTypedParameter)."""

    name: str
    kind: ParameterKind
    value: int | float | str

    @classmethod
    def of(cls, name: str, value: bool | float | str) -> Parameter:
        """Return a parameter of the widest kind that the Python value fits."""
        if isinstance(value, bool):
            return cls(name, ParameterKind.BOOLEAN, int(value))
        if isinstance(value, int):
            return cls(name, ParameterKind.LLONG if value < 0 else ParameterKind.ULLONG, value)
        if isinstance(value, float):
            return cls(name, ParameterKind.DOUBLE, value)
        return cls(name, ParameterKind.STRING, value)


class Vcpu(NamedTuple):
    """A processor of a domain; `cpu_time` is in nanoseconds, `cpu` the host's or -1."""

    number: int
    state: int
    cpu_time: int
    cpu: int


class NodeStatistic(NamedTuple):
    name: str
    value: int


class DiskError(NamedTuple):
    disk: str
    error: int


class MemoryStatistic(NamedTuple):
    tag: int
    value: int


class Iothread(NamedTuple):
    id: int
    cpumap: bytes


class GraphicsAddress(NamedTuple):
    family: int
    node: str
    service: str


class GraphicsIdentity(NamedTuple):
    type: str
    name: str


class Lease(NamedTuple):
    """An address that a network gave; `expiry` is in seconds since 1970, 0: never."""

    interface: str
    expiry: int
    type: int
    mac: str | None
    iaid: str | None
    address: str
    prefix: int
    hostname: str | None
    client_id: str | None


class DomainStatistics(NamedTuple):
    domain: DomainHandle
    parameters: list[Parameter]


class FileSystem(NamedTuple):
    """A file system that is mounted in the guest."""

    mountpoint: str
    name: str
    type: str
    disks: list[str]


class IpAddress(NamedTuple):
    type: int
    address: str
    prefix: int


class GuestInterface(NamedTuple):
    name: str
    mac: str | None
    addresses: list[IpAddress]


class SecurityLabel(NamedTuple):
    label: bytes
    enforcing: int


def uuid_text(uuid: bytes) -> str:
    """Return a UUID as people write it (RFC 4122): 8-4-4-4-12 digits."""
    if len(uuid) != UUID_SIZE:
        raise ProtocolError(f"a UUID of {len(uuid)} bytes")
    first, *middle, last = struct.unpack(">4s2s2s2s6s", uuid)
    return "-".join(part.hex() for part in (first, *middle, last))


def uuid_bytes(text: str) -> bytes:
    """Return the bytes of a UUID with or without its dashes; raises ProtocolError."""
    try:
        found = bytes.fromhex(text.strip().replace("-", ""))
    except ValueError:
        found = b""
    if len(found) != UUID_SIZE:
        raise ProtocolError(f"{text!r} is no UUID", hint="32 digits: 8-4-4-4-12")
    return found
