"""The machine in which the steps of a stage run.

It boots the base image. Each step has a directory of its own in the guest's memory, which an
overlay file system lays over those of the steps before: what the step leaves there is its layer.

    /run/ringzero/build/N/u     what step N wrote (overlayfs.rst)
    /run/ringzero/build/N/r     the step's root: all of it together

The root of the next step is there as soon as a step has been taken: a build that goes on from the
machine's snapshot finds it.
"""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from ringzero.api.command import AS_ROOT
from ringzero.build import entries
from ringzero.build.archives import content_of
from ringzero.build.entries import WHITEOUT, Entry, Layer
from ringzero.build.view import View
from ringzero.config.machine import MachineConfig
from ringzero.errors import GuestError, TimeoutExpiredError
from ringzero.image.guest import xattrs
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
# Where the guest's own programs are in a step's root, too.
_OURS = "/dev/.ringzero"
# Files that are the machine's and not the image's: they come and go with each step.
_OWN = ("etc/resolv.conf", "etc/hosts", "etc/hostname")
# The overlay's own attributes (overlayfs.rst): of a directory that hides what is below it.
_OVERLAY, _OPAQUE = b"trusted.overlay.", b"trusted.overlay.opaque"

Sink = Callable[[bytes], object]

# What the shell can do, it does: mkdir, rm and printf are no processes of their own.
_HEAD = f"""\
b={_BUSYBOX} w={_WORK}
die() {{ echo "$1" >&2; exit 125; }}
"""
# Has the root of step $1.
_ROOT = (
    _HEAD
    + f"""\
begin() {{
    cd $w && mkdir -p $1/u $1/w $1/r || die "no memory"
    n=$1 below=
    while [ $n -gt 1 ]; do
        n=$((n - 1))
        below=$below$n/u:
    done
    mount -t overlay -o "lowerdir=$below{IMAGE}/rootfs,upperdir=$1/u,workdir=$1/w" overlay $1/r ||
        die "the step's root cannot be mounted"
    cd $1/r
    for d in dev proc sys; do
        [ -d $d ] || mkdir $d
        mount -o rbind /$d $d || die "the root has no /$d"
    done
    [ -d etc ] || mkdir etc
    for f in {" ".join(_OWN)}; do
        [ -h $f ] && continue
        [ -e $f ] || {{ : >$f; : >$w/$1/${{f#etc/}}; }}
        [ -e /$f ] && mount -o bind /$f $f
    done
}}
"""
)
# The place of all steps, the one program of theirs that the guest has not, and what each step's
# /dev has of ours; then the root of the first step.
_SET_UP = (
    _ROOT
    + f"""\
mkdir $w && mount -t tmpfs -o size=90%,mode=755 build $w || die "no memory"
cat >$w/xattrs && chmod 700 $w/xattrs
mkdir -p {_OURS} && mount -o bind {TOOLS} {_OURS} || die "no tools"
begin 1
exit 0
"""
)
_BEGIN = f"{_ROOT}begin $1\nexit 0\n"
# Leaves what the step wrote, and nothing else, in its directory; tells the attributes of all of it,
# up to an empty path, and the files. Then the next step has its root, unless there is none.
_TAKE = (
    _ROOT
    + f"""\
cd $w/$1 || exit 125
[ -z "$2" ] || umount -l r
for f in {" ".join(_OWN)}; do
    [ -e ${{f#etc/}} ] && rm -f u/$f
done
cd u && find . -print0 | xargs -0 $w/xattrs && printf '\\0' && tar -c -f - . || exit 125
[ -z "$2" ] || begin $2
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
# A root that the step may have by now is of no use.
_PUT = (
    _HEAD
    + """\
cd $w && { [ ! -e $1/r ] || { umount -l $1/r && rm -rf $1; }; } || die "a step's root stays"
mkdir -p $1/u && cd $1/u && exec $b tar -x -p -f -
"""
)
_SET = f"{_HEAD}cd $w/$1/u && exec $w/xattrs\n"
# In the step's root: a directory, then the program as the path finds it, as a user.
_ENTER = """\
[ -d "$1" ] || mkdir -p "$1"
cd "$1" || exit 125
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
    [ -n "$program" ] || { echo "$1: not found in the image" >&2; exit 127; }
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
        # Whether the next step has its root.
        self._begun = True

    @classmethod
    def boot(cls, files: BootFiles, *, memory: int = MEMORY, cpus: int = 1) -> Worker:
        """Return one that begins to boot an image; `set_up` follows. Raises as `Machine` does."""
        config = MachineConfig.create(
            **with_network({"name": "build", "memory": memory, "cpus": cpus}),
            kernel=files.kernel,
            initrd=files.initrd,
            command_line=files.command_line,
            agent=True,
        )
        return cls(Machine(with_root(config, files)))

    def set_up(self) -> None:
        """Boot, and have all that steps need. Raises as `Machine` does, TimeoutExpiredError."""
        self._machine.start()
        if not self._machine.agent.wait_ready(_BOOT):
            raise TimeoutExpiredError(f"the base image did not boot within {_BOOT:.0f} s")
        self._must(_SET_UP, given=xattrs.build())

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
        number, self._begun = self.steps + 1, False
        with layer.open("rb") as file, tempfile.TemporaryFile() as made:
            archive = map_whole(file.fileno())
            found = list(_overlaid(archive))
            entries.write(found, made, 1 << 62)
            made.seek(0)
            self._must(_PUT, str(number), source=made)
        records = [
            (entry.name, name, value)
            for entry in found
            for name, value in (entry.xattrs or {}).items()
        ]
        for given in xattrs.pack(records):
            self._must(_SET, str(number), given=given)
        self.steps = number

    def run(self, call: Call, on_output: Sink) -> int:
        """Run a command as the next step; return its status. `take` follows, where it is 0."""
        number = str(self.steps + 1)
        if not self._begun:
            self._must(_BEGIN, number)
            self._begun = True
        for index, attachment in enumerate(call.attachments):
            self._attach(number, index, attachment)
        words = inside(self.steps + 1, call, call.words)
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

    def take(self, view: View, target: BinaryIO, epoch: int, *, goes_on: bool) -> Layer:
        """Write the layer that the last `run` made; `view` is what was there before.

        A machine that does not go on has done its last step. Raises GuestError, GuestImageError,
        OSError.
        """
        with tempfile.TemporaryFile() as raw:
            following = str(self.steps + 2) if goes_on else ""
            self._must(_TAKE, str(self.steps + 1), following, on_stdout=raw.write)
            raw.flush()
            told = map_whole(raw.fileno())
            attributes, end = xattrs.unpack(told)
            found, gone = _written(_members(told[end:]))
            gone += _replaced(_attach(found, attributes), found, view)
            layer = entries.write([*found.values(), *map(_whiteout, gone)], target, epoch)
        self.steps += 1
        return layer

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


def inside(number: int, call: Call, words: Sequence[str]) -> list[str]:
    """Return what runs `words` in the root of a step, as its own command was run."""
    cut_off = () if call.network else (_BUSYBOX, "unshare", "-n")
    return [
        *(*AS_ROOT, _BUSYBOX, "env", "-i", *(f"{k}={v}" for k, v in call.env.items())),
        *(*cut_off, _BUSYBOX, "chroot", f"{_WORK}/{number}/r"),
        *(f"{_OURS}/bin/busybox", "sh", "-c", _ENTER, "sh", call.directory, str(call.uid)),
        *(",".join(map(str, call.gids)), *words),
    ]


def _written(members: Iterable[Entry]) -> tuple[dict[bytes, Entry], list[bytes]]:
    """Return what a step wrote, by name, and what the overlay marks as gone.

    Marks are devices 0:0, and many are one inode, so that a tar has them as hard links.
    """
    found: dict[bytes, Entry] = {}
    marks: dict[bytes, None] = {}
    for entry in members:
        is_mark = stat.S_ISCHR(entry.mode) and entry.device == (0, 0)
        if is_mark or (not entry.mode and entry.link in marks):
            marks[entry.name] = None
        else:
            found[entry.name] = entry
    return found, list(marks)


def _attach(found: Mapping[bytes, Entry], attributes: Iterable[xattrs.Record]) -> list[bytes]:
    """Give files their attributes; return the directories that hide those below (overlayfs.rst)."""
    opaque = []
    for path, name, value in attributes:
        entry = found.get(path.removeprefix(b".").removeprefix(b"/"))
        if name == _OPAQUE and value == b"y" and entry is not None:
            opaque.append(entry.name)
        elif not name.startswith(_OVERLAY) and entry is not None and entry.mode:
            entry.xattrs = {**(entry.xattrs or {}), name: value}
    return opaque


def _replaced(opaque: Iterable[bytes], found: Mapping[bytes, Entry], view: View) -> Iterator[bytes]:
    """Yield what was in directories that the step made anew, and is not; `view` is from before."""
    anew = set(opaque)
    for name, entry in sorted(found.items()):
        # One below needs no mark of its own.
        if name not in anew and name.rpartition(b"/")[0] not in anew:
            continue
        if not stat.S_ISDIR(entry.mode):
            continue
        anew.add(name)
        before, node = view.resolve(name)
        # Not through a link that the step has replaced.
        if before == name and node is not None:
            for child in node.children or ():
                if (path := name + b"/" + child) not in found:
                    yield path


def _whiteout(path: bytes) -> Entry:
    directory, slash, name = path.rpartition(b"/")
    return Entry(directory + slash + WHITEOUT + name, stat.S_IFREG | 0o644)


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
