"""A running machine's shared folders: which there are, others, and fewer.

What is changed here is the machine's description from then on: its copies have it, too.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ringzero.api.command import Invocation
from ringzero.config.devices.share import ShareConfig
from ringzero.config.shares import with_share, without_share
from ringzero.errors import ConfigError, ConflictError, GuestError
from ringzero.vm.ends.backends.share import ShareBackend
from ringzero.vm.guest.execution import Execution

if TYPE_CHECKING:
    from ringzero.vm.build import Assembly

# How long a guest may take to mount a folder, in seconds: it may load a module first.
_PATIENCE = 60.0


class Shares:
    """The shared folders of the machine of `parts`, which runs."""

    def __init__(self, parts: Assembly) -> None:
        self._parts = parts
        self._changing = threading.Lock()

    @property
    def all(self) -> tuple[ShareConfig, ...]:
        """Those that the guest has now."""
        return tuple(share for share in self._parts.config.shares if share.target)

    def mount_all(self) -> None:
        """Have a guest that has booted without them mount them all. Raises GuestError."""
        with self._changing:
            try:
                self._in_guest()
            except GuestError as fault:
                reason = f"a shared folder cannot be mounted: {fault.message}"
                raise GuestError(reason, hint=fault.hint) from fault

    def add(self, share: ShareConfig) -> ShareConfig:
        """Share a further folder; the guest has it at its place when this returns.

        Raises ConfigError, ConflictError where the machine has no device for it or something is
        at that place, HostError, GuestError.
        """
        with self._changing:
            backend, config = self._backend(), self._parts.config
            faults = share.faults() + share.file_faults()
            if faults:
                raise ConfigError(faults, hint="see docs/shared-folders.md")
            share = share.absolute()
            config, share = with_share(config, share)
            number = share.number
            assert number is not None
            backend.join(share, number)
            try:
                self._in_guest(str(number))
            except BaseException:
                backend.leave_out(number)
                raise
            self._parts.config = config
        return share

    def remove(self, target: str, *, force: bool = False) -> ShareConfig:
        """Take a folder away; with `force` also while programs of the guest use it.

        Raises NotFoundError, and ConflictError where it is in use.
        """
        with self._changing:
            backend = self._backend()
            config, share = without_share(self._parts.config, target)
            number = share.number
            assert number is not None
            try:
                self._in_guest("-f" if force else "-r", str(number))
            except GuestError as fault:
                if not force:
                    raise ConflictError(
                        f"the guest does not let {share.target} go: {fault.message}",
                        hint="--force takes it from programs that use it",
                    ) from fault
            backend.leave_out(number)
            self._parts.config = config
        return share

    def _backend(self) -> ShareBackend:
        for backend in self._parts.devices.backends.values():
            if isinstance(backend, ShareBackend):
                return backend
        raise ConflictError(
            "the machine has no device for shared folders",
            hint="start it with a folder (-v HOST:GUEST), or with room for them: -v later",
        )

    def _in_guest(self, *words: str) -> None:
        """Have the guest mount, or let go; nothing to do where it is none of ringzero's own."""
        guest = self._parts.guest
        if guest is None:
            return
        invocation = Invocation(["/sbin/share", *words], timeout=_PATIENCE, text=True)
        result = Execution(guest.agent, invocation).finish()
        if result.exit_code:
            told = str(result.stderr).strip().splitlines()
            raise GuestError(told[-1] if told else f"status {result.exit_code}")
