"""The agent for any Linux guest: an initrd that is put behind the guest's own.

    ringzero/start      the first process (rdinit=), which hands over to the initrd's own
    ringzero/init       the script that is the agent, as in ringzero's own guests
    ringzero/bin        busybox
    ringzero/sbin       the programs that it calls

It needs no package, and changes nothing of the guest's disks: all of it is in memory, and is
gone with the next start. Where there is no initrd, cloud-init's disk can carry it (`on_seed`).
"""

from __future__ import annotations

import io

from ringzero.errors import GuestImageError
from ringzero.host.progress import QUIET, Progress
from ringzero.image import cpio, micro
from ringzero.image.cpio import Entry

PARAMETER = "rdinit=/ringzero/start"
_FOLDER, _PROGRAM = 0o40755, 0o100755
# Of the default guest's own programs, those that an agent calls.
_PROGRAMS = ("become", "execute", "identity", "launch", "relay", "runner", "share")
_BUSYBOX = "usr/bin/busybox"
# A word of a command line that begins so chooses another first process of the initrd.
_RDINIT = "rdinit="


def initrd(*, progress: Progress = QUIET) -> bytes:
    """Return the archive, uncompressed. Raises what making the default guest does."""
    found = _files(progress) | {"start": micro.script("start")}
    entries = [Entry(f"ringzero{at}", _FOLDER) for at in ("", "/bin", "/sbin")]
    entries += [Entry(f"ringzero/{name}", _PROGRAM, data) for name, data in found.items()]
    out = io.BytesIO()
    cpio.write(entries, out)
    return out.getvalue()


def on_seed(*, progress: Progress = QUIET) -> tuple[str, dict[str, bytes]]:
    """Return a boot hook by which cloud-init starts the agent, and the files that it needs.

    It runs at every start. Raises what making the default guest does.
    """
    files = {f"agent-{at.rpartition('/')[2]}": data for at, data in _files(progress).items()}
    return micro.script("boothook").decode(), files


def _files(progress: Progress) -> dict[str, bytes]:
    """Return the agent's files by their place below `ringzero`."""
    image = micro.ensure(progress=progress)
    wanted = {f"usr/sbin/{name}": f"sbin/{name}" for name in _PROGRAMS}
    wanted |= {_BUSYBOX: "bin/busybox", "init": "init"}
    return {
        wanted[entry.name]: entry.data
        for entry in cpio.read(image.initrd.read_bytes())
        if entry.name in wanted
    }


def brought(own: memoryview, command_line: str) -> tuple[memoryview, str]:
    """Return a guest's initrd and command line with the agent brought along.

    Raises GuestImageError where the guest has no initrd, or chooses its first process itself.
    """
    if not len(own):
        raise GuestImageError(
            "the agent comes with an initrd, and this kernel has none to put it behind",
            hint="give the kernel its initrd: --initrd FILE; or leave --agent out",
        )
    if any(word.startswith(_RDINIT) for word in command_line.split()):
        raise GuestImageError("the command line has an rdinit= of its own, and --agent has, too")
    # The kernel finds an archive behind another one at multiples of 4 bytes.
    whole = bytes(own) + bytes(-len(own) % 4) + initrd()
    return memoryview(whole), f"{command_line} {PARAMETER}".strip()
