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
    "build": ("image", "build"),
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
    "dominfo": ("inspect",),
    "showvminfo": ("inspect",),
    "startvm": ("start",),
    "unregistervm": ("rm",),
    "snapshots": ("snapshot", "ls"),
    "ssh-config": ("ssh", "--config"),
    "snapshot-list": ("snapshot", "ls"),
    "net": ("network",),
    "networks": ("network", "ls"),
    "net-list": ("network", "ls"),
    "qemu-img": ("disk",),
}
# Commands of groups, in every group that has the other name.
GROUP_ALIASES: dict[str, tuple[str, ...]] = {
    "list": ("ls",),
    "remove": ("rm",),
    "delete": ("rm",),
    "show": ("inspect", "info"),
    "add": ("create",),
    "create": ("save",),
    "take": ("save",),
    "apply": ("revert",),
}
# Names that mean different things in different programs, or that need more than another name.
ADVICE: dict[str, str] = {
    "destroy": "`ringzero kill NAME` cuts the power, `ringzero rm -f NAME` removes it, too",
    "delete": "`ringzero rm NAME` removes a machine, `ringzero image rm NAME` an image",
    "rmi": "`ringzero image rm NAME`",
    "up": "`ringzero run -d --name NAME`; services of a file: `ringzero deploy -f run.toml`",
    "down": "`ringzero stop NAME`; services of a file: `ringzero deploy rm NAME`",
    "compose": "`ringzero deploy -f run.toml` (docs/deploy.md)",
    "rollout": "`ringzero deploy status`, `ringzero deploy rollback`",
    "rollback": "`ringzero deploy rollback NAME`",
    "shell": "`ringzero exec -it NAME sh`, or `ringzero run` for a new machine",
    "define": "`ringzero create --name NAME`, with the flags of `ringzero run`",
    "createvm": "`ringzero create --name NAME`, with the flags of `ringzero run`",
    "init": "`ringzero create --name NAME`, with the flags of `ringzero run`",
    "edit": "what a machine is stays as it was made; `ringzero create` makes another",
    "update": "what a machine is stays as it was made; `ringzero create` makes another",
    "modifyvm": "what a machine is stays as it was made; `ringzero create` makes another",
    "controlvm": "`ringzero pause NAME`, `resume`, `restart`, `stop` or `kill`",
    "status": "`ringzero ps -a` lists all machines, `ringzero inspect NAME` tells all about one",
    "provision": "`ringzero exec NAME CMD`",
    "commit": "`ringzero snapshot save NAME SNAPSHOT`",
    "snapshot-create": "`ringzero snapshot save NAME SNAPSHOT`",
    "snapshot-revert": "`ringzero snapshot revert NAME SNAPSHOT`",
    "migrate": "`ringzero snapshot export` and `import` take a machine to another host",
    "export": "`ringzero snapshot export SNAPSHOT FILE`",
    "import": "`ringzero snapshot import FILE`",
    "prune": "`ringzero rm $(ringzero ps -aq --status ended)`; images: `ringzero image rm NAME`",
    "system": "`ringzero info` tells of this host",
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
    "--restart": '`ringzero deploy` keeps services running: restart = "always" in run.toml',
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
    "ps": {
        "-f --filter": "machines in one state: `--status STATE`; the rest is in `--json`",
        "--format --no-trunc": "all that is known is in `--json`",
        "-l -n --latest --last": "`ringzero events` tells what happens to machines",
    },
    "logs": {"--tail": "it is called `-n N`"},
    "stop": {
        "-t --time": "it is called `--timeout S`",
        "-a --all": "`ringzero stop $(ringzero ps -q)`",
        "-f --force": "`ringzero kill NAME` cuts the power",
    },
    "kill": {
        "-s --signal": "the machine ends at once; a signal to a command: `ringzero exec NAME kill`",
        "-a --all": "`ringzero kill $(ringzero ps -q)`",
    },
    "rm": {"-a --all": "`ringzero rm $(ringzero ps -aq)`"},
    "inspect": {"-f --format": "it is JSON, for jq or Python"},
    "": {"-v -V": "`ringzero --version`"},
}
# What people run first elsewhere: names of container images.
_CONTAINERS = frozenset((
    "alpine", "arch", "archlinux", "busybox", "centos", "debian", "fedora", "golang",
    "hello-world", "mysql", "nginx", "node", "opensuse", "postgres", "python", "redis",
    "rockylinux", "ubuntu",
))  # fmt: skip
# What disk images are called.
_DISKS = (".img", ".iso", ".ova", ".qcow2", ".raw", ".vdi", ".vhd", ".vhdx", ".vmdk")


def translate(words: Sequence[str]) -> list[str]:
    """Return a command line with the verb's name replaced by ours, where it is another's."""
    if words and words[0] in ALIASES:
        return [*ALIASES[words[0]], *words[1:]]
    return list(words)


def command_of(group: str, word: str, known: Iterable[str]) -> str:
    """Return the command of `group` (as `ringzero disk`) that `word` means, or NotFoundError."""
    import difflib

    names = list(known)
    for name in GROUP_ALIASES.get(word, ()):
        if name in names:
            return name
    close = difflib.get_close_matches(word, names, n=1)
    raise NotFoundError(
        f"`{group}` has no command {word!r}",
        hint=f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}",
    )


def perhaps_container(word: str, *, alone: bool) -> bool:
    """Whether a word is meant for a container's image; `alone` where no others are behind it."""
    if word.endswith(_DISKS):
        return False
    return alone or ":" in word or word.rpartition("/")[2] in _CONTAINERS


def no_image(word: str, before: str, after: str, known: Iterable[str]) -> NotFoundError:
    """Return the error for an image that there is not, with what may have been meant.

    `before` is the verb with the flags before the word, `after` what stands behind it.
    """
    if word.endswith(_DISKS):
        hint = f"a disk is attached: --disk {word}"
    else:
        line = f"{word} {after}".strip()
        hint = (
            f"a command goes behind --: ringzero {before}-- {line}; images: {', '.join(known)}, "
            "and those of containers: ringzero run alpine"
        )
    return NotFoundError(f"no image is called {word!r}", hint=hint)


def unknown(word: str, known: Iterable[str]) -> NotFoundError:
    """Return the error for a verb that there is not, with what may have been meant."""
    import difflib

    if word in ADVICE:
        return NotFoundError(f"no command called {word!r}", hint=f"here: {ADVICE[word]}")
    names = list(known)
    close = difflib.get_close_matches(word, [*names, *ALIASES, *ADVICE], n=1)
    if close and close[0] in ADVICE:
        return unknown(close[0], names)
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
