"""Errors as libvirt's clients know them: codes, who says so, and their form on the wire."""

from __future__ import annotations

import enum
from typing import NamedTuple

from ringzero.doors.libvirt.procedures.notation import Fields
from ringzero.doors.libvirt.values import DomainHandle, NetworkHandle


class ErrorCode(enum.IntEnum):
    """What went wrong (virErrorNumber): those that a server has a use for."""

    OK = 0
    INTERNAL_ERROR = 1
    NO_MEMORY = 2
    NO_SUPPORT = 3
    NO_CONNECT = 5
    INVALID_CONN = 6
    INVALID_DOMAIN = 7
    INVALID_ARG = 8
    OPERATION_FAILED = 9
    OS_TYPE = 16
    NO_KERNEL = 17
    NO_SOURCE = 19
    NO_TARGET = 20
    NO_NAME = 21
    NO_DEVICE = 23
    XML_ERROR = 27
    DOM_EXIST = 28
    OPERATION_DENIED = 29
    OPEN_FAILED = 30
    READ_FAILED = 31
    PARSE_FAILED = 32
    WRITE_FAILED = 34
    XML_DETAIL = 35
    INVALID_NETWORK = 36
    NETWORK_EXIST = 37
    SYSTEM_ERROR = 38
    RPC = 39
    NO_DOMAIN = 42
    NO_NETWORK = 43
    INVALID_MAC = 44
    AUTH_FAILED = 45
    INVALID_STORAGE_POOL = 46
    INVALID_STORAGE_VOL = 47
    NO_STORAGE_POOL = 49
    NO_STORAGE_VOL = 50
    NO_NODE_DEVICE = 53
    OPERATION_INVALID = 55
    NO_INTERFACE = 57
    NO_NWFILTER = 62
    NO_SECRET = 66
    CONFIG_UNSUPPORTED = 67
    OPERATION_TIMEOUT = 68
    INVALID_DOMAIN_SNAPSHOT = 71
    NO_DOMAIN_SNAPSHOT = 72
    INVALID_STREAM = 73
    ARGUMENT_UNSUPPORTED = 74
    SNAPSHOT_REVERT_RISKY = 77
    OPERATION_ABORTED = 78
    NO_DOMAIN_METADATA = 80
    OVERFLOW = 82
    OPERATION_UNSUPPORTED = 84
    AGENT_UNRESPONSIVE = 86
    RESOURCE_BUSY = 87
    ACCESS_DENIED = 88
    STORAGE_VOL_EXIST = 90
    CPU_INCOMPATIBLE = 91
    XML_INVALID_SCHEMA = 92
    AUTH_UNAVAILABLE = 94
    DEVICE_MISSING = 99
    NO_DOMAIN_CHECKPOINT = 103
    NO_NETWORK_PORT = 107
    NO_HOSTNAME = 108
    MULTIPLE_DOMAINS = 110


class ErrorDomain(enum.IntEnum):
    """Which part says so (virErrorDomain): those that a server has a use for."""

    NONE = 0
    XML = 5
    DOM = 6
    RPC = 7
    CONF = 9
    QEMU = 10
    NET = 11
    REMOTE = 13
    STORAGE = 18
    NETWORK = 19
    DOMAIN = 20
    NODEDEV = 22
    SECURITY = 24
    INTERFACE = 26
    SECRET = 30
    CPU = 31
    NWFILTER = 33
    DOMAIN_SNAPSHOT = 35
    STREAMS = 38
    EVENT = 40
    CAPABILITIES = 44
    AUTH = 46
    DEVICE = 49
    ACCESS = 55


class ErrorLevel(enum.IntEnum):
    """How bad it is (virErrorLevel)."""

    NONE = 0
    WARNING = 1
    ERROR = 2


# remote_error: the two handles belong to who asked, and are not used any more.
_FIELDS = Fields(
    "code: int, domain: int, message: string?, level: int, machine: domain?, text1: string?, "
    "text2: string?, text3: string?, number1: int, number2: int, network: network?"
)
# No one reads more, and XML that is quoted in a message may be large.
_LONGEST_MESSAGE = 16 << 10


class Error(NamedTuple):
    """The body of a reply or stream packet whose status is ERROR (remote_error).

    `code` and `domain` are numbers of ErrorCode and ErrorDomain, or of newer ones. libvirt
    itself puts the unformatted message into `text1` and the first name in it into `text2`.
    """

    code: int
    domain: int
    message: str | None
    level: int = ErrorLevel.ERROR
    machine: DomainHandle | None = None
    text1: str | None = None
    text2: str | None = None
    text3: str | None = None
    number1: int = -1
    number2: int = -1
    network: NetworkHandle | None = None

    @classmethod
    def decode(cls, body: bytes) -> Error:
        """Return the error in a body; raises ProtocolError."""
        return cls(**_FIELDS.decode(body))

    def encode(self) -> bytes:
        """Return the error as a body; its message is cut where it is too long."""
        message = None if self.message is None else _cut(self.message)
        return _FIELDS.encode(self._replace(message=message)._asdict())


def _cut(message: str) -> str:
    message = message.replace("\0", " ")
    return message if len(message) <= _LONGEST_MESSAGE else message[:_LONGEST_MESSAGE] + "..."
