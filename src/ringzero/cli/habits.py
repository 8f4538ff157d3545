"""What people know from other programs: names of verbs, and flags that are others here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ringzero.errors import NotFoundError

# Verbs by the names that docker, virsh, VBoxManage, vagrant or systemctl have for them.
ALIASES: dict[str, tuple[str, ...]] = {
    "list": ("ps",),
    "ls": ("ps",),
    "attach": ("console",),
    "images": ("image", "ls"),
    "shutdown": ("stop",),
    "halt": ("stop",),
    "poweroff": ("stop",),
    "reboot": ("restart",),
    "suspend": ("pause",),
    "unpause": ("resume",),
    "top": ("stats",),
    "remove": ("rm",),
    "undefine": ("rm",),
    "dumpxml": ("inspect",),
    "domrename": ("rename",),
    "snapshots": ("snapshot", "ls"),
}
# Names that mean different things in different programs, or that need more than another name.
ADVICE: dict[str, str] = {
    "destroy": "`ringzero kill NAME` cuts the power, `ringzero rm -f NAME` removes it, too",
    "delete": "`ringzero rm NAME` removes a machine, `ringzero image rm NAME` an image",
    "rmi": "`ringzero image rm NAME`",
    "up": "`ringzero run -d --name NAME`",
    "ssh": "`ringzero exec -it NAME sh`",
    "shell": "`ringzero exec -it NAME sh`, or `ringzero run` for a new machine",
    "pull": "images are made when they are first used: `ringzero run IMAGE`",
    "build": "`ringzero image build NAME`",
    "clone": "`ringzero fork NAME` copies a running machine",
    "checkpoint": "`ringzero snapshot save NAME SNAPSHOT`",
    "save": "`ringzero snapshot save NAME SNAPSHOT`",
    "restore": "`ringzero snapshot restore SNAPSHOT`",
    "log": "`ringzero logs NAME`",
    "convert": "`ringzero disk convert`",
}
# Flags of other programs' run and exec, with or without a value, and what to do here.
_FOREIGN_RUN: dict[str, str] = {
    "-P --publish-all": "name the ports: `-p HOST:GUEST`, with HOST 0 for any free one",
    "--cdrom -cdrom": "attach the image as a disk: `--disk FILE.iso,ro,format=raw`",
    "--hda -hda -drive --drive": "attach a disk: `--disk FILE`",
    "--network --nic -nic -netdev": "it is called `--net` (docs/network.md)",
    "--smp -smp --vcpus": "it is called `--cpus N`",
    "--ram --mem": "it is called `--memory SIZE`",
    "--kernel-args --cmdline -append": "it is called `--append TEXT`",
    "-kernel": "it is called `--kernel FILE`",
    "-initrd": "it is called `--initrd FILE`",
    "-nographic": "not needed: a machine has no display",
    "-enable-kvm --enable-kvm": "it is called `--engine kvm`; the fastest engine is the default",
    "--restart": "machines are not restarted by themselves; `ringzero restart NAME` does it",
    "--privileged --cap-add --security-opt": "not needed: a guest has a kernel of its own",
    "-h --hostname": "the guest is called as the machine: `--name NAME`",
}
_FOREIGN_EXEC: dict[str, str] = {
    "-d --detach": "end the command with &: `ringzero exec NAME sh -c 'CMD &'`",
    "--privileged": "not needed: commands run as root",
}
FOREIGN: dict[str, dict[str, str]] = {
    "run": _FOREIGN_RUN,
    "create": _FOREIGN_RUN,
    "exec": _FOREIGN_EXEC,
}


def translate(words: Sequence[str]) -> list[str]:
    """Return a command line with the verb's name replaced by ours, where it is another's."""
    if words and words[0] in ALIASES:
        return [*ALIASES[words[0]], *words[1:]]
    return list(words)


def unknown(word: str, known: Iterable[str]) -> NotFoundError:
    """Return the error for a verb that there is not, with what may have been meant."""
    import difflib

    if word in ADVICE:
        return NotFoundError(f"no command called {word!r}", hint=f"here: {ADVICE[word]}")
    names = list(known)
    close = difflib.get_close_matches(word, [*names, *ALIASES], n=1)
    close = close or [name for name in names if name.startswith(word[:2])]
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
    return NotFoundError(f"no command called {word!r}", hint=hint)


def foreign(verb: str, words: Sequence[str], known: Iterable[str]) -> list[str]:
    """Return what to do instead of each flag in `words` that another program has."""
    ours, found = set(known), list[str]()
    for word in words:
        flag = word.partition("=")[0]
        for names, advice in FOREIGN.get(verb, {}).items():
            if flag in names.split() and flag not in ours:
                found.append(f"{flag}: {advice}")
    return found
