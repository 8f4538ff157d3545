"""The instructions of a Vmfile as records.

Text that variables may stand in is a `Word`, expanded when the step runs; all else is read.
"""

from __future__ import annotations

from typing import ClassVar

from ringzero.build.vmfile.lines import Document, Line
from ringzero.build.vmfile.words import Word
from ringzero.records import record


@record
class Command:
    """A command: words to run as they are, or else text for the stage's shell.

    Here-documents stand behind the shell's text; where there is nothing else, the first one is
    a script.
    """

    words: tuple[str, ...] = ()
    text: str = ""
    documents: tuple[Document, ...] = ()


@record
class Mount:
    """`--mount` of a RUN: something that is there for this step alone."""

    kind: str
    target: str
    source: str = ""
    stage: str = ""
    name: str = ""
    read_only: bool = False
    required: bool = False
    size: int = 0
    mode: int | None = None
    owner: tuple[int, int] = (0, 0)
    # Of caches: shared, private or locked between builds at a time.
    sharing: str = "shared"
    # Of secrets: the variable that holds it.
    variable: str = ""


@record
class Instruction:
    """What all have: the line it was written on."""

    keyword: ClassVar[str] = ""

    line: Line


@record
class From(Instruction):
    keyword = "FROM"

    image: Word
    name: str = ""
    platform: Word | None = None


@record
class Run(Instruction):
    keyword = "RUN"

    command: Command
    mounts: tuple[Mount, ...] = ()
    network: str = ""


@record
class Copy(Instruction):
    """COPY and ADD; `documents` are files of the sources' names with their content."""

    keyword = "COPY"

    sources: tuple[Word, ...]
    target: Word
    documents: tuple[Document, ...] = ()
    stage: Word | None = None
    owner: Word | None = None
    mode: Word | None = None
    parents: bool = False
    exclude: tuple[Word, ...] = ()


@record
class Add(Copy):
    keyword = "ADD"

    checksum: Word | None = None
    unpack: bool | None = None


@record
class Pairs(Instruction):
    """ENV and LABEL: names and values."""

    pairs: tuple[tuple[Word, Word], ...]


@record
class Env(Pairs):
    keyword = "ENV"


@record
class Label(Pairs):
    keyword = "LABEL"


@record
class Arg(Instruction):
    keyword = "ARG"

    names: tuple[tuple[str, Word | None], ...]


@record
class Workdir(Instruction):
    keyword = "WORKDIR"

    path: Word


@record
class User(Instruction):
    keyword = "USER"

    user: Word


@record
class Expose(Instruction):
    keyword = "EXPOSE"

    ports: tuple[Word, ...]


@record
class Volume(Instruction):
    keyword = "VOLUME"

    paths: tuple[Word, ...]


@record
class Entrypoint(Instruction):
    keyword = "ENTRYPOINT"

    command: Command


@record
class Cmd(Instruction):
    keyword = "CMD"

    command: Command


@record
class Shell(Instruction):
    keyword = "SHELL"

    words: tuple[str, ...]


@record
class Stopsignal(Instruction):
    keyword = "STOPSIGNAL"

    signal: Word


@record
class Probe(Instruction):
    """What asks whether something is well; times in seconds.

    Exactly one of `command`, `port` (TCP, it accepts) and `url` (HTTP, it answers below 400), or
    none of them where nothing shall be asked.
    """

    command: Command | None = None
    port: int = 0
    url: str = ""
    interval: float = 30
    timeout: float = 30
    start_period: float = 0
    start_interval: float = 5
    retries: int = 3


@record
class Healthcheck(Probe):
    keyword = "HEALTHCHECK"


@record
class Ready(Probe):
    """What must answer before memory is kept; asked each `interval` until `timeout` is over."""

    keyword = "READY"


@record
class Memory(Instruction):
    keyword = "MEMORY"

    size: int


@record
class Cpus(Instruction):
    keyword = "CPUS"

    count: int


@record
class Kernel(Instruction):
    """The kernel: a path of the image's, from its root, or else of the build's directory."""

    keyword = "KERNEL"

    source: Word


@record
class DataDisk(Instruction):
    """A disk of its own at a directory of the guest's, made with each machine."""

    keyword = "DISK"

    size: int
    path: Word
    format: str = "ext4"


@record
class Service(Instruction):
    """A command that starts with the machine and is started again as `restart` says."""

    keyword = "SERVICE"

    name: str
    command: Command
    restart: str = "on-failure"
    user: str = ""
    after: tuple[str, ...] = ()


@record
class KeepMemory(Instruction):
    """SNAPSHOT: machines of this image begin with the memory of this moment."""

    keyword = "SNAPSHOT"


@record
class Stage:
    """What one FROM begins; `steps` are its other instructions, in order."""

    begin: From
    steps: tuple[Instruction, ...]

    @property
    def name(self) -> str:
        """Its name in lower case, empty where it has none."""
        return self.begin.name


@record
class Vmfile:
    """A whole file: the stages, ARGs before the first one, what was said of the file itself."""

    name: str
    stages: tuple[Stage, ...]
    arguments: tuple[Arg, ...] = ()
    escape: str = "\\"
    # As they stand in the file, for faults that show later.
    lines: tuple[str, ...] = ()

    def stage(self, name: str) -> int | None:
        """Return the index of the stage with a name or number, or None."""
        for index, stage in enumerate(self.stages):
            if stage.name and stage.name == name.lower():
                return index
        return (
            int(name)
            if name.isascii() and name.isdigit() and int(name) < len(self.stages)
            else None
        )
