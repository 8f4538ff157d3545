"""The one error tree.

    RingzeroError
    ├── InvalidValueError       a flag, field or argument that makes no sense
    ├── ConfigError             a machine description with faults, all reported together
    ├── NotFoundError           something named does not exist
    ├── HostError               the operating system refused
    │   ├── MissingFileError    a file that the user named does not exist
    │   ├── MissingToolError    a program or package of the host is absent
    │   └── OutputError         results that cannot be written where they should go
    ├── GuestImageError         a kernel, initrd or image that cannot be booted
    │   ├── FileSystemError     a partition table or file system whose bytes cannot be read
    │   └── SignatureError      an image that is not signed by who should have
    ├── DiskError               a disk image
    │   ├── DiskFormatError     its bytes are not what the format allows
    │   ├── DiskUnsupportedError a feature of the format that is not implemented
    │   ├── DiskLockedError     somebody else is writing to it
    │   └── DiskReadOnlyError   a write to a read-only image
    ├── EngineError             a CPU engine
    │   └── EngineUnavailableError this host cannot run it
    ├── DeviceError             a device was wired or configured wrongly
    │   └── GuestAddressError   a guest-physical range that is not RAM
    ├── StateError              saved state that cannot be restored
    ├── GuestError              the guest itself ended badly, or before what was asked of it
    │   ├── CommandError        a command in it ended with another status than 0
    │   ├── TripleFaultError
    │   └── GuestPanicError
    ├── BuildError              a step of an image's build that failed
    ├── DeployError             a version that did not come up, and was taken back
    ├── ControlError            a machine's process that cannot be spoken with
    │   └── ProtocolError       bytes on a machine's socket that break its protocol
    ├── ConflictError           a name that is taken, a machine in the wrong state
    ├── ForbiddenError          one who may not do what was asked
    │   └── UnauthorizedError   one who has not shown who it is
    └── TimeoutExpiredError     the time that the user allowed is over

Every error has a stable `kind` (for programs), a message and a `hint` (for
people: what to do next), `context` (path, offset, field, expected, seen) and
the exit code with which the command line ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar


class RingzeroError(Exception):
    """Base of all errors that ringzero raises on purpose."""

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, **context: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.context = context

    def to_dict(self) -> dict[str, Any]:
        """Return the error as plain data, for `--json` and the REST face."""
        return {
            "kind": self.kind,
            "message": self.message,
            "hint": self.hint,
            "context": {key: str(value) for key, value in self.context.items()},
        }


class InvalidValueError(RingzeroError):
    kind = "invalid-value"
    exit_code = 2


class ConfigError(RingzeroError):
    """A machine description with one or more faults; `faults` lists them all."""

    kind = "config"
    exit_code = 2

    def __init__(self, faults: list[str], *, hint: str | None = None, **context: Any) -> None:
        super().__init__("; ".join(faults), hint=hint, **context)
        self.faults = faults

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"faults": self.faults}


class NotFoundError(RingzeroError):
    kind = "not-found"
    exit_code = 3


class HostError(RingzeroError):
    kind = "host"
    exit_code = 4


class MissingFileError(HostError):
    kind = "missing-file"
    # As whatever else is named and does not exist.
    exit_code = NotFoundError.exit_code


class MissingToolError(HostError):
    kind = "missing-tool"


class OutputError(HostError):
    """Results that cannot be written: a full disk, a closed descriptor, a reader that left."""

    kind = "output"


class GuestImageError(RingzeroError):
    kind = "guest-image"
    exit_code = 5


class FileSystemError(GuestImageError):
    kind = "file-system"


class SignatureError(GuestImageError):
    kind = "signature"


class DiskError(RingzeroError):
    kind = "disk"
    exit_code = 6


class DiskFormatError(DiskError):
    kind = "disk-format"


class DiskUnsupportedError(DiskError):
    kind = "disk-unsupported"


class DiskLockedError(DiskError):
    kind = "disk-locked"


class DiskReadOnlyError(DiskError):
    kind = "disk-read-only"


class EngineError(RingzeroError):
    kind = "engine"
    exit_code = 7


class EngineUnavailableError(EngineError):
    kind = "engine-unavailable"


class DeviceError(RingzeroError):
    kind = "device"
    exit_code = 8


class GuestAddressError(DeviceError):
    """A guest-physical range that is not (wholly, contiguously) RAM."""

    kind = "guest-address"


class StateError(RingzeroError):
    kind = "state"
    exit_code = 9


class GuestError(RingzeroError):
    kind = "guest"
    # 125: the convention of docker run and timeout(1) for "the runner, not the command".
    exit_code = 125


class CommandError(GuestError):
    """`context` holds exit_code (the command's), stdout and stderr."""

    kind = "command"

    @property
    def returncode(self) -> int:
        """The command's exit status; `exit_code` is that of the command line."""
        return int(self.context["exit_code"])

    @property
    def stdout(self) -> bytes | str:
        """What the command printed; str where text was asked for."""
        printed: bytes | str = self.context["stdout"]
        return printed

    @property
    def stderr(self) -> bytes | str:
        """What the command said on its standard error, as `stdout`."""
        said: bytes | str = self.context["stderr"]
        return said


class TripleFaultError(GuestError):
    kind = "triple-fault"


class GuestPanicError(GuestError):
    kind = "guest-panic"


class BuildError(RingzeroError):
    """A RUN that ended with another status than 0; `context` has it as status."""

    kind = "build"


class DeployError(RingzeroError):
    """A version that did not come up; `context` has its number, and the live one's (0: none)."""

    kind = "deploy"


class ControlError(RingzeroError):
    kind = "control"
    exit_code = 10


class ProtocolError(ControlError):
    kind = "protocol"


class ConflictError(RingzeroError):
    kind = "conflict"
    exit_code = 11


class ForbiddenError(RingzeroError):
    kind = "forbidden"
    exit_code = 12


class UnauthorizedError(ForbiddenError):
    """A request without a token, or with one that is none."""

    kind = "unauthorized"


class TimeoutExpiredError(RingzeroError):
    kind = "timeout"
    exit_code = 124  # as timeout(1)


def from_dict(data: dict[str, Any]) -> RingzeroError:
    """Return the error that another process put into plain data (`RingzeroError.to_dict`).

    What is missing or of an unknown kind becomes a RingzeroError: the data may
    come from a newer version, or from nobody of ours.
    """
    kind, hint, context = data.get("kind"), data.get("hint"), data.get("context")
    message = str(data.get("message", "an error without a message"))
    hint = None if hint is None else str(hint)
    found = next((c for c in _tree(RingzeroError) if c.kind == kind), RingzeroError)
    clean = {str(key): value for key, value in context.items()} if isinstance(context, dict) else {}
    for name in ("message", "hint", "faults"):
        clean.pop(name, None)
    if issubclass(found, ConfigError):
        faults = data.get("faults")
        lines = [str(line) for line in faults] if isinstance(faults, list) and faults else [message]
        return found(lines, hint=hint, **clean)
    return found(message, hint=hint, **clean)


def _tree(root: type[RingzeroError]) -> Iterator[type[RingzeroError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)
