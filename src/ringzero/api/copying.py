"""Copying files into a guest and out of it: what the guest is asked to do, as commands.

The guest needs a POSIX shell, and tar, mkdir, mv and rm: GNU's or busybox's. What is copied
in arrives beside its target under a name of its own (`receive`) and is renamed when it is
whole (`place`), or thrown away (`discard`): no target is ever half of what it will be.
Plain data: nothing here speaks with a guest.
"""

from __future__ import annotations

import enum
import os

from ringzero.errors import GuestError, InvalidValueError

# What begins the name under which files arrive; a random token follows.
PREFIX = ".ringzero-cp-"
# The exit status of a script that has said itself why it ends.
_TOLD = 3
# As much of what the guest's programs say is kept, in bytes.
MAX_SAID = 16384


class Rule(enum.StrEnum):
    """What an archive holds, and so where it goes; as cp(1) has it."""

    # Members go into the target, a folder that exists.
    INTO = "into"
    # One file, one folder, or what a folder holds: its only member goes into the target where
    # that is a folder, else it is called so. CONTENTS goes among what the target holds.
    FILE = "file"
    FOLDER = "folder"
    CONTENTS = "contents"


_COMMON = """\
die() { printf '%s\\n' "$1" >&2; exit 3; }
dest=$1 rule=$2
if [ -d "$dest" ]; then
    parent=$dest
else
    case $rule in
    into) die "$dest is no folder in the guest" ;;
    file) case $dest in */) die "there is no folder $dest in the guest" ;; esac ;;
    *) [ -e "$dest" ] && die "$dest is a file in the guest, and no folder" ;;
    esac
    while [ "$dest" != "${dest%/}" ]; do dest=${dest%/}; done
    parent=${dest%/*}/
    [ -d "$parent" ] || die "there is no folder $parent in the guest"
fi
work=$parent/$3
"""

_RECEIVE = """\
(umask 077; mkdir "$work") || exit 4
trap 'rm -rf "$work"' EXIT
trap 'exit 129' HUP INT TERM PIPE
tar -x -p -f - -C "$work" || exit 4
trap - EXIT
"""

_PLACE = """\
trap 'rm -rf "$work"' EXIT
put() {
    if [ -d "$1" ] && [ ! -L "$1" ]; then
        if [ -d "$2" ] && [ ! -L "$2" ]; then
            for f in "$1"/* "$1"/.[!.]* "$1"/..?*; do
                if [ -e "$f" ] || [ -L "$f" ]; then put "$f" "$2/${f##*/}"; fi
            done
            return
        fi
        [ -e "$2" ] || [ -L "$2" ] && die "$2 is a file in the guest, and no folder"
    elif [ -d "$2" ] && [ ! -L "$2" ]; then
        die "$2 is a folder in the guest, and no file"
    fi
    mv -f -T "$1" "$2" || exit 4
}
for member in "$work"/* "$work"/.[!.]* "$work"/..?*; do
    [ -e "$member" ] || [ -L "$member" ] || continue
    if [ -d "$dest" ] && [ "$rule" != contents ]; then
        put "$member" "$dest/${member##*/}"
    elif [ -d "$dest" ]; then
        put "$member" "${dest%/}/."
    else
        put "$member" "$dest"
    fi
done
"""

_DISCARD = """\
rm -rf "$work"
"""

_SEND = """\
die() { printf '%s\\n' "$1" >&2; exit 3; }
path=$1
[ -e "$path" ] || [ -L "$path" ] || die "there is no $path in the guest"
case $path in
/ | */.) cd "$path" || exit 4; set -- . ;;
*)
    while [ "$path" != "${path%/}" ]; do path=${path%/}; done
    set -- "./${path##*/}"
    cd "${path%/*}/" || exit 4
    ;;
esac
"""


def absolute(path: str) -> str:
    """Return a path of the guest, which begins at its root. Raises InvalidValueError."""
    if not path or "\0" in path:
        raise InvalidValueError("no path in the guest", hint="NAME:PATH, as web:/etc/hosts")
    return path if path.startswith("/") else "/" + path


def holds_contents(path: str) -> bool:
    """Whether a path of the guest means what a folder holds."""
    return path == "/" or path.endswith("/.")


def token() -> str:
    """Return a new name under which files arrive."""
    return PREFIX + os.urandom(8).hex()


def receive(path: str, rule: Rule, name: str) -> list[str]:
    """Return the command that unpacks an archive, its standard input, beside its target."""
    return _words(_COMMON + _RECEIVE, absolute(path), rule, name)


def place(path: str, rule: Rule, name: str) -> list[str]:
    """Return the command that puts what arrived where it belongs."""
    return _words(_COMMON + _PLACE, absolute(path), rule, name)


def discard(path: str, rule: Rule, name: str) -> list[str]:
    """Return the command that throws away what arrived."""
    return _words(_COMMON + _DISCARD, absolute(path), rule, name)


def send(path: str, *, follow: bool) -> list[str]:
    """Return the command that writes a file or folder as an archive; PATH/. is its contents."""
    tar = f'exec tar -c {"-h " if follow else ""}-f - "$@"\n'
    return _words(_SEND + tar, absolute(path))


def rule(text: str) -> Rule:
    """Return the rule called so. Raises InvalidValueError."""
    try:
        return Rule(text)
    except ValueError:
        known = ", ".join(Rule)
        raise InvalidValueError(
            f"no rule is called {text[:64]!r}", hint=f"known: {known}"
        ) from None


def fault(said: bytes, status: int) -> GuestError:
    """Return the error of a command that ended with another status than 0."""
    lines = said.decode("utf-8", "replace").strip().splitlines()
    if status == 127 or any("tar: not found" in line for line in lines):
        return GuestError("the guest has no tar", hint="install tar, or busybox, in it")
    if status == _TOLD and lines:
        return GuestError(lines[-1])
    text = lines[-1].removeprefix("tar: ") if lines else f"tar ended with status {status}"
    return GuestError(f"the guest cannot copy it: {text}")


def _words(script: str, *arguments: str) -> list[str]:
    return ["sh", "-c", script, "sh", *arguments]
