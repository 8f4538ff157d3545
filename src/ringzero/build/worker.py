"""The machine in which the steps of a stage run.

It boots the base image. Each step has a directory of its own in the guest's memory, which an
overlay file system lays over those of the steps before: what the step leaves there is its layer.

    /run/ringzero/build/N/u     what step N wrote (overlayfs.rst)
    /run/ringzero/build/N/r     the step's root: all of it together
"""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from ringzero.api.command import AS_ROOT
from ringzero.build import entries
from ringzero.build.archives import content_of
from ringzero.build.entries import WHITEOUT, Entry, Layer
from ringzero.build.view import View
from ringzero.config.machine import MachineConfig
from ringzero.errors import GuestError, TimeoutExpiredError
from ringzero.image.guest.enter import IMAGE, TOOLS
from ringzero.image.layers import tar
from ringzero.image.layers.plain import map_whole
from ringzero.image.names import BootFiles
from ringzero.records import record
from ringzero.units import GIB
from ringzero.vm.boot import with_network, with_root
from ringzero.vm.guest.command import Command
from ringzero.vm.guest.contract import INPUT_AHEAD
from ringzero.vm.machine import Machine
from ringzero.vm.saved.store import Store

# A build of packages needs more than a machine that runs them.
MEMORY = GIB
# Seconds until a guest takes commands: twenty times what a slow host needs.
_BOOT = 120.0
# Whether a command that takes no more input has ended, in seconds.
_LOOK_AGAIN = 1.0
_BUSYBOX = f"{TOOLS}/bin/busybox"
_WORK = "/run/ringzero/build"
# Files that are the machine's and not the image's: they come and go with each step.
_OWN = ("etc/resolv.conf", "etc/hosts", "etc/hostname")

Sink = Callable[[bytes], object]

_HEAD = f"""\
b={_BUSYBOX} w={_WORK}
die() {{ $b echo "$1" >&2; exit 125; }}
if [ ! -d $w ]; then
    $b mkdir $w && $b mount -t tmpfs -o size=90%,mode=755 build $w || die "no memory"
fi
"""
_BEGIN = (
    _HEAD
    + f"""\
cd $w && $b mkdir -p $1/u $1/w $1/r || die "no memory"
n=$1 below=
while [ $n -gt 1 ]; do
    n=$((n - 1))
    below=$below$n/u:
done
$b mount -t overlay -o "lowerdir=$below{IMAGE}/rootfs,upperdir=$1/u,workdir=$1/w" overlay $1/r ||
    die "the step's root cannot be mounted"
cd $1/r
for d in dev proc sys; do
    [ -d $d ] || $b mkdir $d
    $b mount -o rbind /$d $d || die "the root has no /$d"
done
$b mkdir -p dev/.ringzero && $b mount -o bind {TOOLS} dev/.ringzero || die "no tools"
[ -d etc ] || $b mkdir etc
for f in {" ".join(_OWN)}; do
    [ -h $f ] && continue
    [ -e $f ] || {{ : >$f; : >$w/$1/${{f#etc/}}; }}
    [ -e /$f ] && $b mount -o bind /$f $f
done
exit 0
"""
)
# Leaves what the step wrote, and nothing else, in its directory.
_END = (
    _HEAD
    + f"""\
cd $w/$1/r || exit 125
for f in {" ".join(_OWN)}; do
    $b umount $f 2>/dev/null
    [ -e $w/$1/${{f#etc/}} ] && $b rm -f $f
done
$b umount dev/.ringzero; $b rmdir /dev/.ringzero 2>/dev/null
for d in dev proc sys; do $b umount -l $d; done
exit 0
"""
)
# Directories on the way to a mount are noted where they had to be made, and go again.
_ATTACH = (
    _HEAD
    + """\
cd $w/$1/r || exit 125
source=$w/$1/m$2 kind=$3 size=$4 mode=$5 owner=$6 place=$7 noted=$w/$1/noted
make() {
    [ -d "$1" ] && return
    case $1 in */*) make "${1%/*}" ;; esac
    $b mkdir "$1" && $b echo "$1" >>$noted || die "/$1 is no directory"
}
case $kind in
secret | file)
    case $place in */*) make "${place%/*}" ;; esac
    [ -e "$place" ] || { : >"$place" && $b echo "$place" >>$noted; }
    [ $kind = secret ] && { $b chown $owner $source/file && $b chmod $mode $source/file; }
    $b mount -o bind $source/file "$place" || die "/$place cannot be mounted"
    ;;
tmpfs)
    make "$place"
    $b mount -t tmpfs -o size=$size,mode=$mode tmpfs "$place" || die "/$place cannot be mounted"
    ;;
*)
    make "$place"
    $b mkdir -p $source && $b mount -o bind $source "$place" || die "/$place cannot be mounted"
    if [ $kind = bind ]; then
        $b mount -o remount,ro,bind "$place" || die "/$place cannot be read-only"
    elif [ $kind = cache ]; then
        $b chown $owner $source && $b chmod $mode $source
    fi
    ;;
esac
"""
)
_DETACH = (
    _HEAD
    + """\
cd $w/$1/r || exit 125
n=$1
shift
for place; do $b umount -l "$place" 2>/dev/null; done
if [ -e $w/$n/noted ]; then
    $b tac $w/$n/noted | while IFS= read -r place; do
        if [ -d "$place" ]; then $b rmdir "$place"; else $b rm -f "$place"; fi 2>/dev/null
    done
fi
exit 0
"""
)
_FILL = f"{_HEAD}$b mkdir -p $w/$1/m$2 && cd $w/$1/m$2 && exec $b tar -x -p -f -\n"
_EMPTY = f"{_HEAD}cd $w/$1/m$2 && exec $b tar -c -f - .\n"
_TAKE = f"{_HEAD}cd $w/$1/u && exec $b tar -c -f - .\n"
_LIST = (
    _HEAD
    + """\
cd $w/$1/r && exec $b xargs -0 $b sh -c '
b=$0
for d; do
    $b printf "/%s\\0" "$d"
    $b find "./$d" -mindepth 1 -maxdepth 1 -print0
done' $b
"""
)
_CLOSE = f"{_HEAD}cd $w && $b umount -l $1/r\n"
_PUT = (
    _HEAD
    + """\
$b mkdir -p $w/$1/u && cd $w/$1/u && exec $b tar -x -p -f -
"""
)
# In the step's root: a directory, then the program as the path finds it, as a user.
_ENTER = """\
b=/dev/.ringzero/bin/busybox
$b mkdir -p "$1" && cd "$1" || exit 125
user=$2 groups=$3
shift 3
case $1 in
*/*) program=$1 ;;
*)
    program= IFS=:
    for place in $PATH; do
        [ -f "$place/$1" ] && [ -x "$place/$1" ] && program=$place/$1 && break
    done
    unset IFS
    [ -n "$program" ] || { $b echo "$1: not found in the image" >&2; exit 127; }
    ;;
esac
exec /dev/.ringzero/sbin/become "$user" "$groups" "$program" "$@"
"""


@record
class Attachment:
    """Something that is there for one step alone, at the `place` that `view.resolve` tells.

    `kind` is bind (read-only), bind-rw, cache, tmpfs, file or secret. `fill` writes a tar of what
    is in it, the one file of the last two being called "file"; `keep` is given one of a cache
    after the step.
    """

    kind: str
    place: str
    size: int = 0
    mode: int = 0o755
    owner: tuple[int, int] = (0, 0)
    fill: Callable[[BinaryIO], object] | None = None
    keep: Callable[[Callable[[Sink], None]], object] | None = None


@record
class Call:
    """A command of a step: who runs it, where, with which environment. Numbers of users."""

    words: tuple[str, ...]
    env: Mapping[str, str]
    directory: str = "/"
    uid: int = 0
    gids: tuple[int, ...] = (0,)
    network: bool = True
    attachments: tuple[Attachment, ...] = ()


class Worker:
    """A machine that runs steps, which have the numbers 1, 2, ...; stop it.

    `steps` is how many it has: those of a machine that goes on from a snapshot are there.
    """

    def __init__(self, machine: Machine, steps: int = 0) -> None:
        self._machine = machine
        self.steps = steps

    @classmethod
    def boot(cls, files: BootFiles, *, memory: int = MEMORY, cpus: int = 1) -> Worker:
        """Return one that boots an image. Raises what `Machine` raises, TimeoutExpiredError."""
        config = MachineConfig.create(
            **with_network({"name": "build", "memory": memory, "cpus": cpus}),
            kernel=files.kernel,
            initrd=files.initrd,
            command_line=files.command_line,
            agent=True,
        )
        machine = Machine(with_root(config, files))
        try:
            machine.start()
            if not machine.agent.wait_ready(_BOOT):
                raise TimeoutExpiredError(f"the base image did not boot within {_BOOT:.0f} s")
        except BaseException:
            machine.stop()
            raise
        return cls(machine)

    @classmethod
    def resume(cls, store: Store, name: str, steps: int) -> Worker:
        """Return one that goes on from what `save` kept. Raises NotFoundError, StateError."""
        return cls(store.get(name).start(), steps)

    def save(self, store: Store, name: str) -> None:
        """Keep the machine as it is now. Raises HostError, InvalidValueError."""
        store.save(self._machine, name)

    def stop(self) -> None:
        """End the machine."""
        self._machine.stop()

    def put(self, layer: Path) -> None:
        """Give the guest a layer as the next step's. Raises GuestError, HostError."""
        number = self.steps + 1
        with layer.open("rb") as file, tempfile.TemporaryFile() as made:
            archive = map_whole(file.fileno())
            entries.write(_overlaid(archive), made, 1 << 62)
            made.seek(0)
            self._must(_PUT, str(number), source=made)
        self.steps = number

    def run(self, call: Call, on_output: Sink) -> int:
        """Run a command as the next step; return its status. `take` follows, where it is 0."""
        number = str(self.steps + 1)
        self._must(_BEGIN, number)
        for index, attachment in enumerate(call.attachments):
            self._attach(number, index, attachment)
        inside = (
            *("sh", "-c", _ENTER, "sh", call.directory, str(call.uid)),
            *(",".join(map(str, call.gids)), *call.words),
        )
        cut_off = () if call.network else (_BUSYBOX, "unshare", "-n")
        words = [
            *(*AS_ROOT, _BUSYBOX, "env", "-i", *(f"{k}={v}" for k, v in call.env.items())),
            *(*cut_off, _BUSYBOX, "chroot", f"{_WORK}/{number}/r"),
            *("/dev/.ringzero/bin/busybox", *inside),
        ]
        command = self._machine.agent.run(words, on_stdout=on_output, on_stderr=on_output)
        try:
            status = command.wait()
        except KeyboardInterrupt:
            command.signal("KILL")
            raise
        assert status is not None
        if call.attachments:
            self._must(_DETACH, number, *(a.place for a in reversed(call.attachments)))
        if status == 0:
            for index, attachment in enumerate(call.attachments):
                if attachment.keep is not None:
                    where = (number, str(index))
                    attachment.keep(lambda sink, at=where: self._must(_EMPTY, *at, on_stdout=sink))  # type: ignore[misc]
        return status

    def _attach(self, number: str, index: int, what: Attachment) -> None:
        if what.fill is not None:
            with tempfile.TemporaryFile() as made:
                what.fill(made)
                made.seek(0)
                self._must(_FILL, number, str(index), source=made)
        self._must(
            *(_ATTACH, number, str(index), what.kind, str(what.size or "50%"), f"{what.mode:o}"),
            *(":".join(map(str, what.owner)), what.place),
        )

    def take(self, view: View, target: BinaryIO, epoch: int) -> Layer:
        """Write the layer that the last `run` made; `view` is what was there before.

        Raises GuestError, GuestImageError, OSError.
        """
        number = str(self.steps + 1)
        self._must(_END, number)
        with tempfile.TemporaryFile() as raw:
            self._must(_TAKE, number, on_stdout=raw.write)
            raw.flush()
            archive = map_whole(raw.fileno())
            found = _written(_members(archive))
            gone = self._gone(number, view, found)
            self._must(_CLOSE, number)
            layer = entries.write([*found.values(), *gone], target, epoch)
        self.steps += 1
        return layer

    def _gone(self, number: str, view: View, found: Mapping[bytes, Entry]) -> list[Entry]:
        """Return whiteouts for what was in directories that the step wrote to, and is not.

        The guest says what is there. Its overlay's own marks tell the same, but in attributes
        that its tar does not write.
        """
        asked: dict[bytes, set[bytes]] = {}
        for name, entry in found.items():
            if stat.S_ISDIR(entry.mode):
                before, node = view.resolve(name)
                # Not through a link that the step has replaced.
                if before == name and node is not None and node.children:
                    asked[name] = set(node.children)
        if b"" not in asked and view.root.children:
            asked[b""] = set(view.root.children)
        told = bytearray()
        self._must(_LIST, number, given=b"".join(n + b"\0" for n in asked), on_stdout=told.extend)
        left = {name: set(children) for name, children in asked.items()}
        here: set[bytes] | None = None
        for item in bytes(told).split(b"\0"):
            if item.startswith(b"/"):
                here = left.get(item[1:])
            elif here is not None:
                here.discard(item.rpartition(b"/")[2])
        return [
            Entry((name + b"/" if name else b"") + WHITEOUT + child, stat.S_IFREG | 0o644)
            for name, children in left.items()
            for child in children
            if not (not name and child in (b"dev", b"proc", b"sys"))
        ]

    def _must(
        self,
        script: str,
        *words: str,
        source: BinaryIO | None = None,
        given: bytes = b"",
        on_stdout: Sink | None = None,
    ) -> None:
        """Run a script of ours in the guest's own root. Raises GuestError unless it ends well."""
        said = bytearray()
        command = self._machine.agent.run(
            [*AS_ROOT, _BUSYBOX, "sh", "-c", script, "sh", *words],
            takes_input=bool(given or source),
            on_stdout=on_stdout,
            on_stderr=said.extend,
        )
        _feed(command, _pieces(source) if source else (given,))
        status = command.wait()
        if status:
            text = os.fsdecode(bytes(said[-400:])).strip().rpartition("\n")[2]
            raise GuestError(
                f"the build's machine could not go on: {text or f'status {status}'}",
                hint="give the build more memory: --memory 4G",
            )


def _feed(command: Command, pieces: Iterable[bytes]) -> None:
    """Send a command its input, no more at a time than the guest takes, and end it."""
    room = threading.Event()
    command.on_room = room.set
    for piece in pieces:
        command.write(piece)
        while command.backlog > INPUT_AHEAD and command.status is None and command.fault is None:
            room.wait(_LOOK_AGAIN)
            room.clear()
    command.close_input()


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while data := file.read(1 << 20):
        yield data


def _written(members: Iterable[Entry]) -> dict[bytes, Entry]:
    """Return what a step wrote, by name, without the overlay's marks that something is gone.

    Those are devices 0:0, and many are one inode, so that a tar has them as hard links.
    """
    found: dict[bytes, Entry] = {}
    marks: set[bytes] = set()
    for entry in members:
        is_mark = stat.S_ISCHR(entry.mode) and entry.device == (0, 0)
        if is_mark or (not entry.mode and entry.link in marks):
            marks.add(entry.name)
        else:
            found[entry.name] = entry
    return found


def _members(archive: memoryview) -> Iterator[Entry]:
    """Yield what a guest's tar holds, by names from the top. Raises GuestImageError."""
    for member in tar.read(archive):
        name = b"/".join(part for part in member.name.split(b"/") if part not in (b"", b"."))
        if not name or b".." in name.split(b"/"):
            continue
        link = member.link.removeprefix(b"./") if not member.mode else member.link
        yield Entry(
            name,
            member.mode,
            member.uid,
            member.gid,
            member.mtime // 1_000_000_000,
            link,
            member.device,
            dict(member.xattrs or {}),
            member.size if stat.S_ISREG(member.mode) else 0,
            content_of(archive, member.offset, member.size),
        )


def _overlaid(archive: memoryview) -> Iterator[Entry]:
    """Yield a layer's entries, with whiteouts as overlay file systems have them."""
    for entry in _members(archive):
        directory, slash, name = entry.name.rpartition(b"/")
        if name.startswith(WHITEOUT):
            hidden = directory + slash + name.removeprefix(WHITEOUT)
            yield Entry(hidden, stat.S_IFCHR)
        else:
            yield entry
