"""What can be asked of one machine."""

from __future__ import annotations

from typing import Annotated, Any

from ringzero.api.action import Actions, Scope, Stream, action
from ringzero.api.values import (
    ALIVE,
    ANY,
    GONE,
    CommandEnd,
    DiskExportSummary,
    DiskJobSummary,
    EventKind,
    ExitRecord,
    MachineSummary,
    MetadataSummary,
    PortSummary,
    ShareSummary,
    Status,
)

# How long many copies on a busy host may take, in seconds.
_FORK = 120.0
# How long memory and disks may take to be written, in seconds: an hour is 200 GB on a slow disk.
_SAVE = 3600.0
# How long a guest may take to mount a folder, in seconds.
_SHARE = 90.0
# How long a process may take to answer before it is ended from outside, in seconds.
_KILL = 2.0
# How long a machine's process may take to build it, in seconds: its engine may be compiled first.
_START = 600.0
_RUNS = (Status.RUNNING, Status.PAUSED)


class MachineActions(Actions):
    """The actions of one machine. Those that its process does want one that is alive."""

    scope = Scope.MACHINE

    @action(states=ANY, reads=True)
    def inspect(self) -> MachineSummary:
        """Tell everything about the machine."""

    @action(states=ALIVE, reads=True)
    def ping(self) -> str:
        """Answer with the machine's state."""

    @action(states=GONE, events=(EventKind.STARTED,), patience=_START)
    def start(self) -> None:
        """Start a machine again that has ended, as it was described."""

    @action(states=(Status.RUNNING,), events=(EventKind.PAUSED,))
    def pause(self) -> None:
        """Stop the guest where it is, until `resume`."""

    @action(states=(Status.PAUSED,), events=(EventKind.RESUMED,))
    def resume(self) -> None:
        """Let a paused guest go on."""

    @action(states=ALIVE, events=(EventKind.STOPPING, EventKind.ENDED))
    def stop(
        self, timeout: Annotated[float, "seconds until a guest that goes on is ended"] = 10.0
    ) -> ExitRecord:
        """Have the guest switch itself off, and end it when it does not."""

    @action(
        states=ANY, events=(EventKind.STOPPING, EventKind.ENDED, EventKind.STARTED), patience=_START
    )
    def restart(
        self, timeout: Annotated[float, "seconds until a guest that goes on is ended"] = 10.0
    ) -> None:
        """Stop the machine if it runs, and start it again."""

    @action(states=ALIVE, events=(EventKind.ENDED,), patience=_KILL)
    def kill(self) -> ExitRecord:
        """End the guest at once, as if the power had failed."""

    @action(states=ANY, streams=True, reads=True)
    def wait(self) -> ExitRecord:
        """Answer when the machine has ended."""

    @action(states=GONE, events=(EventKind.RENAMED,))
    def rename(self, name: Annotated[str, "its new name"]) -> None:
        """Give a machine that does not run another name."""

    @action(states=ANY, reads=True)
    def metadata(self) -> MetadataSummary:
        """Tell what is noted of the machine: UUID, title, whether it starts by itself."""

    @action(states=ANY, events=(EventKind.CHANGED,))
    def describe(
        self,
        title: Annotated[str | None, "a line for people; null: as it is"] = None,
        description: Annotated[str | None, "some lines for people; null: as it is"] = None,
        autostart: Annotated[
            bool | None, "whether `ringzero serve` starts it when the host has booted"
        ] = None,
        metadata: Annotated[
            dict[str, Any] | None, "texts by key, each one's own; one that is null goes"
        ] = None,
    ) -> None:
        """Note something of the machine; it means nothing to the guest."""

    @action(states=ANY, events=(EventKind.CHANGED,))
    def redefine(
        self,
        config: Annotated[dict[str, Any], "the fields of the machine's description, all of them"],
        image: Annotated[str, "the guest image that its kernel is from"] = "",
        command: Annotated[list[str] | None, "what runs in the guest, and ends with it"] = None,
        timeout: Annotated[float | None, "seconds after which it is ended"] = None,
        serial: Annotated[str | None, "a file for what its serial line says"] = None,
    ) -> None:
        """Describe the machine anew, from its next start on."""

    @action(states=ANY, reads=True)
    def next(self) -> dict[str, Any]:
        """Tell the fields of the machine's description from its next start on."""

    @action(states=ANY, events=(EventKind.REMOVED,))
    def remove(self, force: Annotated[bool, "end it first where it runs"] = False) -> None:
        """Remove a machine that does not run, with what is kept of it."""

    @action(states=_RUNS, events=(EventKind.CREATED, EventKind.STARTED), patience=_FORK)
    def fork(
        self,
        count: Annotated[int, "how many"] = 1,
        name: Annotated[str, 'the copies\' names, with % for their number; "": NAME-%'] = "",
    ) -> list[str]:
        """Make running copies of a running machine; return their names."""

    @action(states=(*_RUNS, *GONE), patience=_SAVE)
    def snapshot(
        self,
        name: Annotated[str, "the snapshot's name"],
        store: Annotated[str, 'the directory of snapshots; "": that of the host'] = "",
        memory: Annotated[bool, "memory and state, too; else what is saved boots anew"] = True,
        compress: Annotated[bool, "memory by zstd: smaller, slower to restore"] = False,
    ) -> str:
        """Save the machine while it runs on, or the disks of one that does not run.

        Return the snapshot's identifier.
        """

    @action(states=(*_RUNS, *GONE), patience=_SAVE)
    def revert(self, snapshot: Annotated[str, "the snapshot's directory"]) -> None:
        """Take the machine back to a snapshot: memory, state and disks; it goes on."""

    @action(states=GONE, patience=_SAVE)
    def revert_disks(self, snapshot: Annotated[str, "the snapshot's directory"]) -> None:
        """Take the disks of a machine that does not run back to a snapshot; it stays off."""

    @action(states=_RUNS, reads=True)
    def disk_jobs(self) -> list[DiskJobSummary]:
        """List the block jobs of the machine, the oldest first."""

    @action(states=_RUNS)
    def start_disk_job(
        self,
        kind: Annotated[str, "mirror, backup, commit or stream"],
        disk: Annotated[int, "which disk, from 0 on"] = 0,
        target: Annotated[str, "mirror, backup: the new image, by its absolute path"] = "",
        format: Annotated[str, 'mirror, backup: the image\'s format; "": qcow2, or found'] = "",
        existing: Annotated[bool, "mirror, backup: write over an image that is there"] = False,
        sync: Annotated[str, "mirror: full, top (the same backing file), or none"] = "full",
        top: Annotated[str, 'commit: from which layer on; "": the disk itself'] = "",
        base: Annotated[
            str, 'commit: to which layer, "": the next; stream: the first that stays, "": none'
        ] = "",
        pivot: Annotated[bool, "complete it once it is ready"] = False,
        speed: Annotated[int, "bytes a second; 0: any number"] = 0,
        id: Annotated[str, 'what it is called; "": a free name'] = "",
        auto_finalize: Annotated[bool, "take the last step unasked"] = True,
        auto_dismiss: Annotated[bool, "forget it when it is over"] = False,
    ) -> DiskJobSummary:
        """Start a block job on a disk that the guest goes on using."""

    @action(states=_RUNS)
    def order_disk_job(
        self,
        id: Annotated[str, "which job"],
        order: Annotated[
            str,
            "pause, resume, complete, cancel (a mirror that is ready leaves a copy), abort "
            '(leaves nothing), finalize, dismiss; "": none',
        ] = "",
        speed: Annotated[int | None, "bytes a second from now on; null: as it is"] = None,
    ) -> DiskJobSummary:
        """Ask something of a block job; return how it stands."""

    @action(states=_RUNS, reads=True)
    def disk_exports(self) -> list[DiskExportSummary]:
        """List the disks that the machine exports by NBD."""

    @action(states=_RUNS)
    def export_disk(
        self,
        disk: Annotated[int, "which disk, from 0 on"] = 0,
        name: Annotated[str, 'what clients call it; "": its number'] = "",
        writable: Annotated[bool, "clients may change what the guest uses"] = False,
        path: Annotated[str, 'listen on a Unix socket there; "": see port'] = "",
        port: Annotated[int | None, "listen on 127.0.0.1; 0: a free port; null: see path"] = None,
    ) -> DiskExportSummary:
        """Export a disk by NBD; later ones are on the same socket, where none is given."""

    @action(states=_RUNS)
    def unexport_disk(
        self, name: Annotated[str, 'which export; "": all, and the sockets'] = ""
    ) -> None:
        """Export a disk no longer, and leave the clients that use it."""

    @action(states=ANY, reads=True)
    def ports(self) -> list[PortSummary]:
        """List the ports of the host that lead to the machine."""

    @action(states=(*_RUNS, *GONE))
    def publish(
        self, ports: Annotated[str, "[ADDR:]HOST:GUEST[/udp], HOST 0: any free one; or ranges"]
    ) -> list[PortSummary]:
        """Forward ports of the host to the machine, now or from its next start on."""

    @action(states=(*_RUNS, *GONE))
    def unpublish(
        self, ports: Annotated[str, "the host's port, or as it was published; or ranges"]
    ) -> list[PortSummary]:
        """Forward ports no longer; return which."""

    @action(states=_RUNS)
    def connect(
        self,
        network: Annotated[str, "what --net takes: a network's name, user, none ..."],
        interface: Annotated[int, "which interface, from 0 on; -1: the first that is on none"] = -1,
    ) -> int:
        """Plug an interface of the machine into another network; return which."""

    @action(states=_RUNS)
    def disconnect(self, interface: Annotated[int, "which interface, from 0 on"] = 0) -> None:
        """Unplug an interface of the machine."""

    @action(states=ANY, reads=True)
    def shares(self) -> list[ShareSummary]:
        """List the folders of the host that the machine has."""

    @action(states=(Status.RUNNING,), patience=_SHARE)
    def share(
        self, folder: Annotated[str, "HOST:GUEST[:ro], with an absolute path of the host"]
    ) -> ShareSummary:
        """Share a folder of the host with a running machine."""

    @action(states=(Status.RUNNING,), patience=_SHARE)
    def unshare(
        self,
        target: Annotated[str, "its place in the guest"],
        force: Annotated[bool, "also while programs of the guest use it"] = False,
    ) -> ShareSummary:
        """Take a shared folder from a running machine."""

    @action(states=(Status.STARTING, Status.RUNNING), streams=True)
    def exec(
        self,
        stream: Stream,
        words: Annotated[list[str], "the command and its arguments"],
        stdin: Annotated[bool, "input comes on stream 0"] = False,
        tty: Annotated[bool, "on a terminal of its own"] = False,
        rows: Annotated[int, "the terminal's height in characters"] = 24,
        columns: Annotated[int, "the terminal's width in characters"] = 80,
        term: Annotated[str, "what TERM is"] = "linux",
        wait: Annotated[float, "seconds that the guest may take to take it; 0: no bound"] = 120.0,
    ) -> CommandEnd:
        """Run a command in the guest."""

    @action(states=(Status.STARTING, Status.RUNNING), streams=True)
    def put_archive(
        self,
        stream: Stream,
        path: Annotated[str, "where to in the guest"],
        rule: Annotated[
            str, "what it holds: into, for members that go into a folder; file, folder or contents"
        ] = "into",
        wait: Annotated[float, "seconds that the guest may take to take it; 0: no bound"] = 120.0,
    ) -> None:
        """Unpack a tar archive, which comes on stream 0, in the guest."""

    @action(states=(Status.STARTING, Status.RUNNING), streams=True)
    def get_archive(
        self,
        stream: Stream,
        path: Annotated[str, "a file or folder of the guest; PATH/. is what a folder holds"],
        follow: Annotated[bool, "copy what symbolic links lead to"] = False,
        wait: Annotated[float, "seconds that the guest may take to take it; 0: no bound"] = 120.0,
    ) -> None:
        """Send a file or folder of the guest as a tar archive on stream 1."""

    @action(states=ALIVE, streams=True)
    def console(
        self,
        stream: Stream,
        line: Annotated[str, 'console or serial; "": the one that the guest talks on'] = "",
        watch: Annotated[bool, "see what is there, and do not type"] = False,
        only: Annotated[bool, "nobody else may type meanwhile"] = False,
        scrollback: Annotated[bool, "begin with what was said before"] = True,
        rows: Annotated[int, "the terminal's height in characters"] = 24,
        columns: Annotated[int, "the terminal's width in characters"] = 80,
    ) -> None:
        """Attach to the console, or to the serial line."""

    @action(states=ALIVE, streams=True)
    def gdb(self, stream: Stream) -> None:
        """Speak gdb's remote serial protocol; the machine stands still until gdb has it go on."""

    @action(states=ANY, streams=True, reads=True)
    def logs(
        self,
        stream: Stream,
        follow: Annotated[bool, "go on until the machine ends"] = False,
        lines: Annotated[int | None, "begin so many lines before the end; null: with all"] = None,
        vmm: Annotated[bool, "the log of the machine's process instead"] = False,
    ) -> None:
        """Send what the machine said, serial line, console and command, on stream 1."""
