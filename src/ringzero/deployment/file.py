"""run.toml, the file that a deployment is described by (docs/deploy.md), and the same in YAML.

    name = "shop"

    [services.web]
    image = "shop/web:1"
    ports = ["8080:80"]
    check.http = ":80/healthz"

All that is wrong is told at once, with lines. A mapping of Python's is read by the same rules.
"""

from __future__ import annotations

import graphlib
import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ringzero.config.device import NAME, DeviceConfig
from ringzero.config.devices.disk import DiskConfig
from ringzero.config.devices.net import NetConfig, publish
from ringzero.config.devices.share import ShareConfig
from ringzero.config.machine import MachineConfig
from ringzero.config.ports import Forward, double_faults, parse_ports
from ringzero.deployment import description as kinds
from ringzero.deployment import directory
from ringzero.deployment.description import (
    LONGEST_NAME,
    MOST_REPLICAS,
    Check,
    Deployment,
    Restart,
    Secret,
    Service,
    Update,
)
from ringzero.deployment.lines import parse_toml, parse_yaml
from ringzero.deployment.reading import Faults, Key, Table, text_of, with_text_keys
from ringzero.errors import ConfigError, MissingFileError, RingzeroError
from ringzero.host.files import host_error, open_regular
from ringzero.records import record, replace

DEFAULT = "run.toml"
_LARGEST = 1 << 20
MOST_CPUS, MOST_PARALLEL, MOST_RETRIES = 255, 100, 1000
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
_VARIABLE = re.compile(VARIABLE)
_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
HTTP_ADDRESS = r"(?:http://[^/:]*)?(?::(\d{1,5}))?(/[!-~]*)?"
_HTTP = re.compile(HTTP_ADDRESS)
_RESTART = re.compile(r"(no|always|on-failure)(?::(\d{1,6}))?")


@record
class Source:
    """A file that was read: the description, and where it came from ("" for none)."""

    deployment: Deployment
    path: str = ""


def read(source: str | Path | Mapping[str, Any], name: str | None = None) -> Source:
    """Return the deployment that a file, or a mapping of the same keys, describes.

    `name` is what it is called where the source does not say. Raises ConfigError with all
    faults, MissingFileError, HostError.
    """
    if isinstance(source, Mapping):
        faults = Faults("the description", {})
        values = with_text_keys(source)
        return Source(_deployment(Table(values, (), faults), Path.cwd(), name, faults))
    path = Path(source)
    text = _text(path)
    parse = parse_yaml if path.suffix in (".yaml", ".yml") else parse_toml
    values, lines = parse(text, path.name)
    faults = Faults(path.name, lines)
    base = path.absolute().parent
    found = _deployment(Table(values, (), faults), base, name or _folder(base), faults)
    return Source(found, str(path.absolute()))


def _text(path: Path) -> str:
    try:
        with open(open_regular(path.resolve()), "rb") as file:  # noqa: PTH123 - a descriptor
            data = file.read(_LARGEST + 1)
    except FileNotFoundError as fault:
        raise MissingFileError(
            f"there is no file {path}",
            hint="a deployment is described in run.toml; another file: -f FILE (docs/deploy.md)",
        ) from fault
    except OSError as fault:
        raise host_error(fault, "read", path) from fault
    if len(data) > _LARGEST:
        raise ConfigError([f"{path} is larger than 1 MiB"], hint="is it the file that was meant?")
    try:
        return data.decode()
    except UnicodeDecodeError as fault:
        raise ConfigError([f"{path} is not text in UTF-8"]) from fault


def _folder(base: Path) -> str:
    """Return what a deployment is called by its folder."""
    text = re.sub(r"[^A-Za-z0-9_.-]+", "-", base.name).strip("-._")
    return text[:LONGEST_NAME] or "app"


def _deployment(table: Table, base: Path, otherwise: str | None, faults: Faults) -> Deployment:
    name = table.text("name", otherwise)
    if name is None:
        table.fault("name", "a deployment needs a name")
        name = "unnamed"
    if not NAME.fullmatch(name):
        table.fault("name", f"{name!r}: use letters, digits, '_', '.' and '-'")
        name = "unnamed"
    services: list[Service] = []
    if (tables := table.table("services")) is not None:
        for each in tables.names():
            if (inner := tables.table(each)) is not None:
                services.append(_service(inner, each, name, base))
        if not services and not faults.found:
            table.fault("services", "there is none")
        table.end()
    else:
        services.append(_service(table, name, name, base))
    found = Deployment(name, tuple(services))
    _check_together(found, faults)
    faults.end()
    return found


def _check_together(found: Deployment, faults: Faults) -> None:
    """Note what is wrong with having all services."""
    one = len(found.services) == 1 and found.services[0].name == found.name
    known = [service.name for service in found.services]
    for service in found.services:
        key: Key = () if one else ("services", service.name)
        if not NAME.fullmatch(service.name):
            faults.add(key, f"{service.name!r}: use letters, digits, '_', '.' and '-'")
        if len(found.base(service.name)) > LONGEST_NAME:
            faults.add(
                key,
                f"{found.base(service.name)!r}: machines' names begin so, and have "
                f"{LONGEST_NAME} characters for it",
            )
        for other in service.after:
            if other not in known:
                faults.add((*key, "after"), f"no service is called {other!r}")
    for text in double_faults([port for service in found.services for port in service.ports]):
        faults.add(("services",), text)
    graph = {service.name: set(service.after) for service in found.services}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as fault:
        faults.add(("services",), f"they wait for each other: {' after '.join(fault.args[1])}")


def _service(table: Table, name: str, deployment: str, base: Path) -> Service:
    image = table.text("image", "")
    if not image and not table.has("image"):
        table.fault("image", "a service needs an image")
    if image:
        image = table.take("image", partial(_image, base=base), "")
    networks = table.items("networks", _network)
    found = Service(
        name,
        image,
        command=table.words("command"),
        entrypoint=table.text("entrypoint", None),
        memory=table.size("memory"),
        cpus=table.count("cpus", None, 1, MOST_CPUS),
        cpu=table.text("cpu", None),
        engine=table.text("engine", None),
        ports=tuple(port for ports in table.items("ports", _ports) for port in ports),
        mounts=table.items("mounts", partial(_mount, base=base, deployment=deployment)),
        disks=table.items("disks", partial(_disk, base=base)),
        networks=networks,
        env=dict(_variables(table.table("env"))),
        secrets=dict(_secrets(table.table("secrets"), base)),
        workdir=table.text("workdir", None),
        user=table.text("user", None),
        replicas=table.count("replicas", 1, 0, MOST_REPLICAS),
        restart=table.take("restart", _restart, Restart()),
        update=_update(table.table("update")),
        drain=table.duration("drain", Service.drain),
        stop=table.duration("stop_timeout", Service.stop),
        after=table.items("after", text_of),
    )
    found = replace(found, check=_check(table.table("check"), found))
    table.end()
    _check_service(table, found)
    return found


def _check_service(table: Table, service: Service) -> None:
    """Note what no machine of the service could be."""
    try:
        config = machine_fields(service)
    except RingzeroError as fault:
        table.faults.take(table.key, fault)
        return
    for device in config.devices:
        for text in device.file_faults():
            if not _is_volume(device):
                table.faults.add((*table.key, _plural(device)), text)
    for name in dict.fromkeys((*service.env, *service.secrets)):
        if not _VARIABLE.fullmatch(name):
            table.faults.add((*table.key, "env", name), "no variable is called so")
        if name in service.env and name in service.secrets:
            table.faults.add((*table.key, "secrets", name), "it is in env, too")
    written = [disk for disk in config.disks if not disk.read_only]
    if written and (service.replicas > 1 or service.update.order != kinds.STOP_FIRST):
        table.fault(
            "disks",
            f"{written[0].path} is written to by one machine at a time: write ',ro' behind it, or "
            "replicas = 1 and update.order = 'stop-first'",
        )
    if any(port.protocol != "tcp" for port in service.ports):
        table.fault("ports", "only TCP ports can be moved from version to version")


def machine_fields(service: Service) -> MachineConfig:
    """Return a machine's description as the service has it, without what its image adds.

    Raises ConfigError, InvalidValueError.
    """
    nets = [NetConfig.parse(text) for text in service.networks] or [NetConfig("user")]
    guest_ports = dict.fromkeys((port.protocol, port.guest_port) for port in service.ports)
    inner = [Forward(0, port, protocol=protocol) for protocol, port in guest_ports]
    given = {"memory": service.memory, "cpus": service.cpus, "cpu": service.cpu}
    given["engine"] = service.engine
    return MachineConfig.create(
        **{name: value for name, value in given.items() if value is not None},
        disks=list(service.disks),
        shares=list(service.mounts),
        nets=publish(nets, inner) if inner else nets,
    )


def _is_volume(device: DeviceConfig) -> bool:
    """Whether it is a folder of the deployment's own, which is made when it is needed."""
    return isinstance(device, ShareConfig) and directory.root() in device.path.parents


def _plural(device: DeviceConfig) -> str:
    return "mounts" if isinstance(device, ShareConfig) else f"{device.kind}s"


# ---- values -----------------------------------------------------------------


def _image(value: Any, *, base: Path) -> str:
    from ringzero.image.oci.reference import Local, parse

    text = text_of(value)
    if not any(c in text for c in ":/@"):
        # One of ringzero's own, perhaps.
        parse(text)
        return text
    found = parse(text)
    if isinstance(found, Local):
        return str(replace(found, path=base / found.path))
    return text


def _ports(value: Any) -> list[Forward]:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("ports are written as '8080:80'")
    return parse_ports(str(value))


def _mount(value: Any, *, base: Path, deployment: str) -> str:
    share = ShareConfig.parse(text_of(value))
    # A path has a slash in it, or begins with a dot.
    source = value.partition(":")[0]
    if _VOLUME.fullmatch(source):
        path = directory.volume(deployment, source)
    else:
        path = _path(str(share.path), base=base)
    return replace(share, path=path).spelled()


def _disk(value: Any, *, base: Path) -> str:
    disk = DiskConfig.parse(text_of(value))
    text = str(_path(str(disk.path), base=base))
    return text + ",ro" * disk.read_only + (f",format={disk.format}" if disk.format else "")


def _path(value: Any, *, base: Path) -> Path:
    """Return a path of the host's, relative to the file. Raises ValueError."""
    try:
        return base / Path(text_of(value)).expanduser()
    except RuntimeError as fault:
        raise ValueError(str(fault)) from fault


def _network(value: Any) -> str:
    text = text_of(value)
    name = NetConfig.parse(text).network
    if name != "user":
        from ringzero.net.contract import NETWORKS

        if name not in NETWORKS:
            from ringzero.net.named.directory import find

            find(name)
    return text


def _variables(table: Table | None) -> Iterator[tuple[str, str]]:
    for name in table.names() if table is not None else ():
        value = table.take(name, _variable, None)  # type: ignore[union-attr]
        if value is not None:
            yield name, value


def _variable(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (int, float)) else text_of(value)


def _secrets(tables: Table | None, base: Path) -> Iterator[tuple[str, Secret]]:
    for name in tables.names() if tables is not None else ():
        table = tables.table(name)  # type: ignore[union-attr]
        if table is None:
            continue
        path, env = table.take("file", partial(_path, base=base), None), table.text("env", None)
        table.end()
        if table.has("file") == table.has("env"):
            table.faults.add(table.key, "a secret is read from a file or from env, one of them")
        if path is not None and not os.path.isfile(path):  # noqa: PTH113 - it never raises
            table.fault("file", f"{path} does not exist, or is no file")
        yield name, Secret(None if path is None else str(path), env)


def _restart(value: Any) -> Restart:
    found = _RESTART.fullmatch(text_of(value))
    if found is None or (found[2] and found[1] != kinds.ON_FAILURE):
        raise ValueError("no, on-failure, on-failure:N or always is wanted")
    return Restart(found[1], int(found[2]) if found[2] else None)


def _update(table: Table | None) -> Update:
    if table is None:
        return Update()
    parallel = table.count("parallel", Update.parallel, 1, MOST_PARALLEL)
    order = table.choice("order", Update.order, kinds.ORDERS)
    table.end()
    return Update(parallel, order)


def _check(table: Table | None, service: Service) -> Check | None:
    if table is None:
        return None
    address, number = table.take("http", _http, None), table.take("tcp", _tcp, None)
    words, nothing = table.words("command"), table.take("none", _yes, None)
    given = {
        kinds.HTTP: address,
        kinds.TCP: number,
        kinds.COMMAND: words,
        kinds.NO_CHECK: nothing,
    }
    chosen = [kind for kind, value in given.items() if value is not None]
    times: dict[str, Any] = {
        name: table.duration(name, getattr(Check, name))
        for name in ("interval", "timeout", "start_period", "start_interval")
    }
    times["retries"] = table.count("retries", Check.retries, 1, MOST_RETRIES)
    if times["timeout"] <= 0:
        table.fault("timeout", "more than nothing is wanted")
    table.end()
    if len(chosen) != 1:
        if not any(table.has(kind) for kind in given) or chosen:
            table.faults.add(table.key, "one of http, tcp, command and none is wanted")
        return None
    kind = chosen[0]
    if kind == kinds.COMMAND:
        return Check(kind, words=words or (), **times)
    if kind == kinds.NO_CHECK:
        return Check(**times)
    port, path = address if address is not None else (number or 0, "/")
    inner = [forward.guest_port for forward in service.ports]
    port = port or next(iter(inner), 0)
    if port not in inner:
        known = ", ".join(map(str, inner)) or "none"
        table.fault(kind, f"a port of the guest that is in `ports` is wanted: {known}")
    return Check(kind, port, path, **times)


def _http(value: Any) -> tuple[int, str]:
    found = _HTTP.fullmatch(text_of(value))
    if found is None or not value:
        raise ValueError("a path or an address is wanted: '/healthz', ':80/healthz'")
    return int(found[1] or 0), found[2] or "/"


def _tcp(value: Any) -> int:
    if type(value) is not int or not 0 < value < 1 << 16:
        raise ValueError("a port of the guest is wanted")
    return value


def _yes(value: Any) -> bool | None:
    if value is not True:
        raise ValueError("true is wanted")
    return True
