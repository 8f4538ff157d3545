"""libvirt's remote protocol, for unmodified virsh, virt-install, virt-manager and others."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from ringzero.api.values import EventKind
from ringzero.doors.caller import Caller
from ringzero.doors.contract import DOORS, Address, Door
from ringzero.doors.libvirt import transient
from ringzero.doors.libvirt.connection import Connection
from ringzero.doors.libvirt.handlers import load

# What libvirt's clients add to the name of a socket for who only reads.
_READ_ONLY = "-ro"
# Over TCP, with certificates: who has one that was signed may do everything.
_BY_CERTIFICATE = "certificate"
# What a client waits for behind the handshake: its certificate was taken.
_WELCOME = b"\1"


@DOORS.register("libvirt")
class Libvirt(Door):
    summary = "libvirt's protocol: a path, or [HOST]:PORT with TLS and --client-ca"

    @classmethod
    def addresses(cls) -> list[Address]:
        """Return where libvirt's clients look by themselves for the scheme `ringzero`."""
        return cls.named("ringzero")

    @classmethod
    def named(cls, scheme: str) -> list[Address]:
        """Return where libvirt's clients look by themselves for a scheme."""
        return cls.at(Address(_directory() / f"virt{scheme}d-sock"))

    @classmethod
    def at(cls, address: Address) -> list[Address]:
        """Return a path, and beside it the one for who only reads."""
        if address.path is None:
            return [address]
        beside = address.path.with_name(address.path.name + _READ_ONLY)
        return [address, Address(beside, reads=True)]

    async def attend(self) -> None:
        """Remove machines that were defined for one life, when that is over."""
        with self.manager.events.listen() as listener:
            await self.manager.work(transient.sweep, self.manager.host)
            async for found in listener.events():
                if found.event.kind == EventKind.ENDED.value:
                    name = found.event.machine
                    await self.manager.work(transient.remove, self.manager.host, name)

    async def converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller | None
    ) -> None:
        """Serve a client until it leaves."""
        load()
        if writer.get_extra_info("ssl_object") is not None:
            writer.write(_WELCOME)
            await writer.drain()
        await Connection(self.manager, caller or Caller(_BY_CERTIFICATE), reader, writer).serve()


def _directory() -> Path:
    """Return where libvirt keeps its sockets for this user (libvirt's uri.html, "session")."""
    if os.geteuid() == 0:
        return Path("/run/libvirt")
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        return Path(runtime) / "libvirt"
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if cache.startswith("/") else Path.home() / ".cache") / "libvirt"
