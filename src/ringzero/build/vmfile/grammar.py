"""How each instruction is written: one reader for each keyword.

Dockerfile reference, "ADD" to "WORKDIR"; KERNEL, DISK, MEMORY, CPUS, SERVICE, READY and SNAPSHOT
are a machine's own. A reader raises FaultError, and RingzeroError for values of other grammars.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from ringzero.build.vmfile import instructions as kinds
from ringzero.build.vmfile.faults import FaultError, meant
from ringzero.build.vmfile.instructions import Command, Instruction, Mount
from ringzero.build.vmfile.lines import Line
from ringzero.build.vmfile.words import Word, expand, json_words, split, variables, word_at
from ringzero.errors import InvalidValueError, RingzeroError
from ringzero.image.machinespec import FORMATS, LEAST_DISK, MOST_DISK
from ringzero.units import format_size, parse_duration, parse_size

T = TypeVar("T")
_KEY = re.compile(r"[^\s=]+")
_STAGE_NAME = re.compile(r"[a-z][a-z0-9._-]*")
_SERVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_MOUNTS = ("bind", "cache", "tmpfs", "secret", "ssh")
_MOUNT_KEYS = {
    "type", "target", "dst", "destination", "source", "src", "from", "id", "ro", "readonly", "rw",
    "readwrite", "required", "sharing", "size", "mode", "uid", "gid", "env",
}  # fmt: skip
_RESTARTS = ("always", "no", "on-failure")
_MOST_CPUS = 255


class Arguments:
    """What stands behind a keyword: flags, then words or free text."""

    def __init__(self, line: Line, start: int, escape: str) -> None:
        self.line = line
        self.escape = escape
        self.start = start
        self._flags: dict[str, list[Word]] = {}
        text = line.text
        at = start
        while True:
            at += len(text[at:]) - len(text[at:].lstrip())
            if not text.startswith("--", at):
                break
            word = word_at(text, at, escape)
            at = word.at + len(word.text)
            if word.text == "--":
                break
            name, equals, value = word.text[2:].partition("=")
            place = word.at + 2 + len(name) + len(equals)
            self._flags.setdefault(name, []).append(Word(value if equals else "true", place))
        self.start = at

    @property
    def text(self) -> str:
        """All behind the flags."""
        return self.line.text[self.start :].strip()

    def words(self) -> list[Word]:
        """Return what is behind the flags, split."""
        return split(self.line.text, self.escape, self.start)

    def one(self, what: str) -> Word:
        """Return the only word."""
        words = self.words()
        if len(words) != 1:
            at = words[1].at if words else self.start
            raise FaultError(at, 1, f"one {what} is wanted" + (", not more" if words else ""))
        return words[0]

    def some(self, what: str) -> tuple[Word, ...]:
        """Return the words of a list or of a JSON array, at least one."""
        array = json_words(self.text)
        found = (
            [Word(self._quoted(word), self.start) for word in array]
            if array is not None
            else self.words()
        )
        if not found:
            raise FaultError(self.start, 1, f"{what} are wanted")
        return tuple(found)

    def _quoted(self, text: str) -> str:
        """Return a string of a JSON array as a word: its white space and quotes are its own."""
        return "".join(
            self.escape + c if c in "\"'" or c == self.escape or c.isspace() else c for c in text
        )

    def flag(self, name: str) -> Word | None:
        """Take a flag that may stand once."""
        found = self._flags.pop(name, [])
        if len(found) > 1:
            raise FaultError(found[1].at, 1, f"--{name} stands twice")
        return found[0] if found else None

    def flags(self, name: str) -> tuple[Word, ...]:
        """Take a flag that may stand often."""
        return tuple(self._flags.pop(name, []))

    def switch(self, name: str) -> bool | None:
        """Take a flag that is true or false."""
        word = self.flag(name)
        if word is None:
            return None
        if word.text not in ("true", "false"):
            raise FaultError(word.at, len(word.text), f"--{name} is true or false")
        return word.text == "true"

    def plain(self, word: Word) -> str:
        """Return a word that has no variables, without its quotes."""
        used = variables(word, self.escape)
        if used:
            raise FaultError(
                word.at, len(word.text), f"no variable may stand here (${sorted(used)[0]})"
            )
        return expand(word, lambda _: None, self.escape)

    def end(self, known: tuple[str, ...]) -> None:
        """Refuse the flags that nobody has taken."""
        for name in self._flags:
            at = self.line.text.find(f"--{name}")
            close = meant(name, list(known)).replace("mean ", "mean --")
            has = "" if known else "; there are none here"
            raise FaultError(max(at, 0), len(name) + 2, f"no flag --{name}{close}{has}")

    def command(self, *, documents: bool = False) -> Command:
        """Return the rest as a command: a JSON array is run as it is, all else by a shell."""
        text = self.text
        array = json_words(text)
        if array is not None:
            if not array:
                raise FaultError(self.start, len(text), "an empty command")
            return Command(words=tuple(array))
        if not text:
            raise FaultError(self.start, 1, "a command is wanted")
        return Command(text=text, documents=self.line.documents if documents else ())


Reader = Callable[[Line, Arguments], Instruction]
READERS: dict[str, Reader] = {}
# The flags that each takes, for suggestions.
_FLAGS: dict[str, tuple[str, ...]] = {}


def _reads(keyword: str, *flags: str) -> Callable[[Reader], Reader]:
    def enter(reader: Reader) -> Reader:
        def checked(line: Line, rest: Arguments) -> Instruction:
            found = reader(line, rest)
            rest.end(flags)
            return found

        READERS[keyword] = checked
        _FLAGS[keyword] = flags
        return reader

    return enter


@_reads("FROM", "platform")
def _from(line: Line, rest: Arguments) -> Instruction:
    platform = rest.flag("platform")
    words = rest.words()
    if len(words) == 3 and words[1].text.upper() == "AS":
        name = words[2].text.lower()
        if not _STAGE_NAME.fullmatch(name):
            raise FaultError(
                words[2].at, len(name), "a stage's name is a letter, then letters, digits, . _ -"
            )
        return kinds.From(line, words[0], name, platform)
    if len(words) != 1:
        at = words[1].at if len(words) > 1 else rest.start
        raise FaultError(at, 1, "written as: FROM IMAGE [AS NAME]")
    return kinds.From(line, words[0], "", platform)


@_reads("RUN", "mount", "network", "security")
def _run(line: Line, rest: Arguments) -> Instruction:
    mounts = tuple(_mount(rest, word) for word in rest.flags("mount"))
    network = _choice(rest, "network", ("default", "none", "host", "user"))
    security = rest.flag("security")
    if security is not None and security.text != "sandbox":
        raise FaultError(security.at, len(security.text), "a machine needs no rights of the host's")
    # As they say it: each machine has a network of its own, the host's never.
    network = {"default": "", "host": "user"}.get(network, network)
    return kinds.Run(line, rest.command(documents=True), mounts, network)


def _mount(rest: Arguments, word: Word) -> Mount:
    given: dict[str, str] = {}
    for item in rest.plain(word).split(","):
        key, equals, value = item.partition("=")
        key = key.strip().lower()
        if key not in _MOUNT_KEYS:
            raise FaultError(
                word.at, len(word.text), f"no option {key!r}{meant(key, sorted(_MOUNT_KEYS))}"
            )
        given[key] = value if equals else "true"

    def pick(*names: str) -> str:
        return next((given[name] for name in names if name in given), "")

    def number(name: str, base: int) -> int | None:
        text = given.get(name)
        try:
            return None if text is None else int(text, base)
        except ValueError:
            raise FaultError(word.at, len(word.text), f"{name}={text} is no number") from None

    kind = given.get("type", "bind")
    if kind not in _MOUNTS:
        raise FaultError(word.at, len(word.text), f"no mount {kind!r}; known: {', '.join(_MOUNTS)}")
    if kind == "ssh":
        raise FaultError(word.at, len(word.text), "keys of an SSH agent are not handed in")
    target, name = pick("target", "dst", "destination"), pick("id")
    if kind == "secret":
        name = name or pick("source", "src") or target.rpartition("/")[2]
        target = target or ("" if given.get("env") else f"/run/secrets/{name}")
    if (not target and not given.get("env")) or (kind == "secret" and not name):
        raise FaultError(word.at, len(word.text), f"a {kind} mount says its target=PATH")
    sharing = given.get("sharing", "shared")
    if sharing not in ("shared", "private", "locked"):
        raise FaultError(word.at, len(word.text), "sharing is shared, private or locked")
    writes = pick("rw", "readwrite") == "true" or kind in ("cache", "tmpfs")
    return Mount(
        kind=kind,
        target=target,
        source="" if kind == "secret" else pick("source", "src"),
        stage=pick("from"),
        name=name or (target if kind == "cache" else ""),
        read_only=pick("ro", "readonly") == "true" or not writes,
        required=pick("required") == "true",
        size=_value(rest, word, parse_size, given["size"]) if "size" in given else 0,
        mode=number("mode", 8),
        owner=(number("uid", 10) or 0, number("gid", 10) or 0),
        sharing=sharing,
        variable=pick("env"),
    )


_COPY_FLAGS = ("from", "chown", "chmod", "link", "parents", "exclude")


@_reads("COPY", *_COPY_FLAGS)
def _copy(line: Line, rest: Arguments) -> Instruction:
    # Each step is a layer of its own already.
    rest.switch("link")
    sources, target = _paths(rest)
    return kinds.Copy(
        line,
        sources,
        target,
        line.documents,
        stage=rest.flag("from"),
        owner=rest.flag("chown"),
        mode=rest.flag("chmod"),
        parents=rest.switch("parents") or False,
        exclude=rest.flags("exclude"),
    )


@_reads("ADD", "chown", "chmod", "link", "exclude", "checksum", "unpack", "keep-git-dir")
def _add(line: Line, rest: Arguments) -> Instruction:
    rest.switch("link")
    git = rest.flag("keep-git-dir")
    if git is not None:
        raise FaultError(git.at, 1, "ADD takes files and http(s) addresses, no Git repositories")
    sources, target = _paths(rest)
    return kinds.Add(
        line,
        sources,
        target,
        line.documents,
        owner=rest.flag("chown"),
        mode=rest.flag("chmod"),
        exclude=rest.flags("exclude"),
        checksum=rest.flag("checksum"),
        unpack=rest.switch("unpack"),
    )


def _paths(rest: Arguments) -> tuple[tuple[Word, ...], Word]:
    words = rest.some("files and where they go")
    if len(words) < 2:
        raise FaultError(words[0].at, len(words[0].text), "where does it go? SOURCE... TARGET")
    names = {document.name for document in rest.line.documents}
    # A here-document is the file of its name.
    sources = tuple(
        Word(word.text.lstrip("<-").strip("\"'"), word.at)
        if word.text.startswith("<<") and word.text.lstrip("<-").strip("\"'") in names
        else word
        for word in words[:-1]
    )
    return sources, words[-1]


def _pairs(rest: Arguments) -> tuple[tuple[Word, Word], ...]:
    words = rest.words()
    if not words:
        raise FaultError(rest.start, 1, "written as: NAME=VALUE ...")
    first = words[0]
    key = _KEY.match(first.text)
    if key and "=" not in first.text[: key.end() + 1]:
        # The old form: one name, and the rest of the line.
        if len(words) < 2:
            raise FaultError(first.at, len(first.text), f"{first.text} has no value; NAME=VALUE")
        text = rest.line.text[words[1].at :]
        return ((first, Word(text, words[1].at)),)
    return tuple(_pair(word) for word in words)


def _pair(word: Word) -> tuple[Word, Word]:
    key, equals, value = word.text.partition("=")
    if not key or not equals:
        raise FaultError(word.at, len(word.text), f"{word.text} is no NAME=VALUE")
    return Word(key, word.at), Word(value, word.at + len(key) + 1)


@_reads("ENV")
def _env(line: Line, rest: Arguments) -> Instruction:
    return kinds.Env(line, _pairs(rest))


@_reads("LABEL")
def _label(line: Line, rest: Arguments) -> Instruction:
    return kinds.Label(line, _pairs(rest))


@_reads("ARG")
def _arg(line: Line, rest: Arguments) -> Instruction:
    names: list[tuple[str, Word | None]] = []
    for word in rest.words():
        name, equals, value = word.text.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise FaultError(word.at, max(1, len(name)), f"{name!r} is no name of a variable")
        names.append((name, Word(value, word.at + len(name) + 1) if equals else None))
    if not names:
        raise FaultError(rest.start, 1, "written as: ARG NAME[=DEFAULT] ...")
    return kinds.Arg(line, tuple(names))


@_reads("WORKDIR")
def _workdir(line: Line, rest: Arguments) -> Instruction:
    return kinds.Workdir(line, _rest(rest, "a directory"))


@_reads("USER")
def _user(line: Line, rest: Arguments) -> Instruction:
    return kinds.User(line, rest.one("user, or user:group,"))


@_reads("EXPOSE")
def _expose(line: Line, rest: Arguments) -> Instruction:
    return kinds.Expose(line, rest.some("ports"))


@_reads("VOLUME")
def _volume(line: Line, rest: Arguments) -> Instruction:
    return kinds.Volume(line, rest.some("directories"))


@_reads("ENTRYPOINT")
def _entrypoint(line: Line, rest: Arguments) -> Instruction:
    return kinds.Entrypoint(line, _command_or_none(rest))


@_reads("CMD")
def _cmd(line: Line, rest: Arguments) -> Instruction:
    return kinds.Cmd(line, _command_or_none(rest))


def _command_or_none(rest: Arguments) -> Command:
    """Return a command; an empty array takes away what the base says."""
    return Command() if json_words(rest.text) == [] else rest.command()


@_reads("SHELL")
def _shell(line: Line, rest: Arguments) -> Instruction:
    array = json_words(rest.text)
    if not array:
        raise FaultError(rest.start, len(rest.text), 'written as: SHELL ["/bin/sh", "-c"]')
    return kinds.Shell(line, tuple(array))


@_reads("STOPSIGNAL")
def _stopsignal(line: Line, rest: Arguments) -> Instruction:
    return kinds.Stopsignal(line, rest.one("signal"))


_PROBE_FLAGS = ("interval", "timeout", "start-period", "start-interval", "retries")


@_reads("HEALTHCHECK", *_PROBE_FLAGS)
def _healthcheck(line: Line, rest: Arguments) -> Instruction:
    if rest.text.upper() == "NONE":
        return kinds.Healthcheck(line)
    return _probe(kinds.Healthcheck, line, rest, interval=30, timeout=30)


@_reads("READY", *_PROBE_FLAGS)
def _ready(line: Line, rest: Arguments) -> Instruction:
    return _probe(kinds.Ready, line, rest, interval=0.2, timeout=60)


def _probe(
    kind: type[kinds.Probe], line: Line, rest: Arguments, *, interval: float, timeout: float
) -> kinds.Probe:
    period = _duration(rest, "start-period", 0)
    first = _duration(rest, "start-interval", 5)
    interval, timeout = _duration(rest, "interval", interval), _duration(rest, "timeout", timeout)
    retries = rest.flag("retries")
    count = 3 if retries is None else _count(rest, retries, 1000)
    command, port, url = None, 0, ""
    head, _, tail = rest.text.partition(" ")
    if head.upper() == "CMD":
        rest.start = rest.line.text.index(head, rest.start) + len(head)
        command = rest.command()
    elif head.startswith("tcp:") and not tail:
        port = _port(rest, head[4:])
    elif head.startswith(("http://", "https://")) and not tail:
        url = head
    else:
        raise FaultError(rest.start, len(head), "written as: CMD COMMAND, tcp:PORT or http://...")
    return kind(line, command, port, url, interval, timeout, period, first, count)


@_reads("MEMORY")
def _memory(line: Line, rest: Arguments) -> Instruction:
    return kinds.Memory(line, _size(rest, rest.one("size")))


@_reads("CPUS")
def _cpus(line: Line, rest: Arguments) -> Instruction:
    return kinds.Cpus(line, _count(rest, rest.one("number"), _MOST_CPUS))


@_reads("KERNEL")
def _kernel(line: Line, rest: Arguments) -> Instruction:
    return kinds.Kernel(line, rest.one("file"))


@_reads("DISK", "format")
def _disk(line: Line, rest: Arguments) -> Instruction:
    words = rest.words()
    if len(words) != 2:
        raise FaultError(rest.start, max(1, len(rest.text)), "written as: DISK SIZE DIRECTORY")
    size = _size(rest, words[0])
    if not LEAST_DISK <= size <= MOST_DISK:
        raise FaultError(
            *(words[0].at, len(words[0].text)),
            f"a disk has {format_size(LEAST_DISK)} to {format_size(MOST_DISK)}",
        )
    return kinds.DataDisk(line, size, words[1], _choice(rest, "format", FORMATS) or FORMATS[0])


@_reads("SERVICE", "restart", "user", "after")
def _service(line: Line, rest: Arguments) -> Instruction:
    restart = _choice(rest, "restart", _RESTARTS) or "on-failure"
    user, after = rest.flag("user"), rest.flag("after")
    words = rest.words()
    if len(words) < 2:
        raise FaultError(rest.start, max(1, len(rest.text)), "written as: SERVICE NAME COMMAND")
    name = rest.plain(words[0])
    if not _SERVICE_NAME.fullmatch(name):
        raise FaultError(
            words[0].at, len(words[0].text), "a service's name: letters, digits, . _ -"
        )
    rest.start = words[1].at
    return kinds.Service(
        line,
        name,
        rest.command(),
        restart,
        rest.plain(user) if user else "",
        tuple(rest.plain(after).split(",")) if after else (),
    )


@_reads("SNAPSHOT")
def _snapshot(line: Line, rest: Arguments) -> Instruction:
    if rest.text:
        raise FaultError(rest.start, len(rest.text), "nothing stands behind SNAPSHOT")
    return kinds.KeepMemory(line)


def _rest(rest: Arguments, what: str) -> Word:
    """Return all that is left as one word."""
    words = rest.words()
    if not words:
        raise FaultError(rest.start, 1, f"{what} is wanted")
    return Word(rest.line.text[words[0].at :].rstrip(), words[0].at)


def _choice(rest: Arguments, name: str, known: tuple[str, ...]) -> str:
    word = rest.flag(name)
    if word is None:
        return ""
    if word.text not in known:
        raise FaultError(word.at, len(word.text), f"--{name} is {' or '.join(known)}")
    return word.text


def _value(rest: Arguments, word: Word, read: Callable[[str], T], text: str) -> T:
    """Read a value by another grammar."""
    try:
        return read(text)
    except RingzeroError as fault:
        raise FaultError(word.at, len(word.text), fault.message) from fault


def _size(rest: Arguments, word: Word) -> int:
    size = _value(rest, word, parse_size, rest.plain(word))
    if size <= 0:
        raise FaultError(word.at, len(word.text), "more than nothing is wanted")
    return size


def _count(rest: Arguments, word: Word, most: int) -> int:
    text = rest.plain(word)
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= most):
        raise FaultError(word.at, len(word.text), f"a number from 1 to {most} is wanted")
    return int(text)


def _port(rest: Arguments, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= 65535):
        raise FaultError(rest.start, max(1, len(text)), f"{text!r} is no port")
    return int(text)


def _duration(rest: Arguments, name: str, default: float) -> float:
    word = rest.flag(name)
    if word is None:
        return default
    try:
        return parse_duration(word.text)
    except InvalidValueError as fault:
        told = f"{fault.message}; {fault.hint}"
        raise FaultError(word.at, max(1, len(word.text)), told) from None
