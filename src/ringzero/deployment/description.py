"""What is deployed: services, and how each of them runs. Plain records, as versions keep them.

A version is written down with its images pinned: what `image` named then has `digest`, and no
other image is ever taken for it.
"""

from __future__ import annotations

import json

from ringzero.config.ports import Forward
from ringzero.digest import blake2b
from ringzero.plain import to_plain
from ringzero.records import field, record

NEVER, ON_FAILURE, ALWAYS = "no", "on-failure", "always"
RESTARTS = (NEVER, ON_FAILURE, ALWAYS)
START_FIRST, STOP_FIRST = "start-first", "stop-first"
ORDERS = (START_FIRST, STOP_FIRST)
HTTP, TCP, COMMAND, NO_CHECK = "http", "tcp", "command", "none"
# A machine's name has 63 characters; a version, a replica and what stands between take the rest.
LONGEST_NAME = 50
MOST_REPLICAS = 100


@record
class Check:
    """What tells whether a machine is well; times are in seconds.

    `kind` is "http" (`port` of the guest, `path`), "tcp" (`port`), "command" (`words`, run in the
    guest) or "none". Docker's rules: asked each `interval`, an answer takes `timeout` at most;
    `retries` failures in a row are needed to be unhealthy. In the first `start_period` it is
    asked each `start_interval`, and failures do not count until one answer was good.
    """

    kind: str = NO_CHECK
    port: int = 0
    path: str = "/"
    words: tuple[str, ...] = ()
    interval: float = 5.0
    timeout: float = 3.0
    retries: int = 3
    start_period: float = 60.0
    start_interval: float = 0.1


@record
class Restart:
    """When a machine that has ended is started again: `when` is one of RESTARTS.

    `most` is how often in a row, None without bound.
    """

    when: str = ALWAYS
    most: int | None = None

    def __str__(self) -> str:
        return self.when if self.most is None else f"{self.when}:{self.most}"


@record
class Secret:
    """A variable of a service's command whose value is read when the command starts.

    From `file`, or from the variable `env` of whoever deploys. The value is in no record.
    """

    file: str | None = None
    env: str | None = None


@record
class Update:
    """How a new version comes: `parallel` machines are started at once.

    `order` is one of ORDERS: beside the old ones, or after they have stopped.
    """

    parallel: int = 4
    order: str = START_FIRST


@record
class Service:
    """One service: `replicas` machines of one image. Sizes are in bytes, times in seconds.

    `command` stands for the image's own, and so does `entrypoint`; None: the image's. `memory`
    and `cpus` None: what the image asks for. `ports` are the host's that lead to the service;
    `mounts`, `disks` and `networks` are written as `-v`, `--disk` and `--net` take them. `check`
    None: that of the image, or that its TCP ports answer. Connections to a machine that goes
    may take `drain`, its guest's end `stop`. It is started when the services in `after` are well.
    """

    name: str
    image: str
    digest: str = ""
    command: tuple[str, ...] | None = None
    entrypoint: str | None = None
    memory: int | None = None
    cpus: int | None = None
    cpu: str | None = None
    engine: str | None = None
    ports: tuple[Forward, ...] = ()
    mounts: tuple[str, ...] = ()
    disks: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, Secret] = field(default_factory=dict)
    workdir: str | None = None
    user: str | None = None
    replicas: int = 1
    check: Check | None = None
    restart: Restart = Restart()
    update: Update = Update()
    drain: float = 10.0
    stop: float = 10.0
    after: tuple[str, ...] = ()

    @property
    def checked(self) -> Check:
        """What tells whether a machine of it is well, where its image does not say."""
        if self.check is not None:
            return self.check
        first = next(iter(self.ports), None)
        return Check() if first is None else Check(TCP, first.guest_port)

    def spec(self) -> str:
        """Return digits that are the same for descriptions whose machines are the same.

        How they are watched and updated, how many they are, and by which port of the host they
        are reached, changes no machine.
        """
        tree = to_plain(self)
        for name in ("replicas", "restart", "update", "drain", "stop", "after", "image"):
            del tree[name]
        tree["ports"] = sorted({(port.protocol, port.guest_port) for port in self.ports})
        if self.check is None or self.check.kind != COMMAND:
            # The machine's own process asks by a command, and nobody where another way is given.
            tree["check"] = None if self.check is None else "another"
        return blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=8).hexdigest()


@record
class Deployment:
    """Services by one name."""

    name: str
    services: tuple[Service, ...]

    def service(self, name: str) -> Service | None:
        """Return the service called `name`."""
        return next((service for service in self.services if service.name == name), None)

    def base(self, service: str) -> str:
        """Return how the names of a service's machines begin."""
        return self.name if service == self.name else f"{self.name}-{service}"
