"""The machines of a service: what they boot and run, made from its description and its image."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ringzero.api.command import Invocation, command_options
from ringzero.api.values import HealthCheck
from ringzero.config.machine import MachineConfig
from ringzero.control.host import claims, secrets
from ringzero.control.host.directory import Claim, MachineDirectory
from ringzero.control.host.records import MachineRecord
from ringzero.deployment.description import COMMAND, Deployment, Service
from ringzero.deployment.file import machine_fields
from ringzero.errors import InvalidValueError, NotFoundError
from ringzero.host.progress import QUIET, Progress
from ringzero.image import names
from ringzero.image.names import BootFiles
from ringzero.plain import MisfitError, from_plain, to_plain
from ringzero.records import record, replace
from ringzero.settings import CACHE_DIR

# What a machine has where neither the file nor its image say more.
_MEMORY, _CPUS = "512M", 1


@record
class Label:
    """What a machine is part of; it stands in the machine's own record."""

    deployment: str
    service: str
    version: int
    replica: int
    # Of the description that it was made by (`Service.spec`).
    spec: str

    def machine_name(self, deployment: Deployment) -> str:
        """Return what the machine is called."""
        return f"{deployment.base(self.service)}-{self.version}-{self.replica}"


def label_of(where: MachineDirectory) -> Label | None:
    """Return what a machine is part of, or None."""
    from ringzero.control.host.directory import MACHINE
    from ringzero.control.host.records import load

    found = load(MachineRecord, where.path / MACHINE)
    if found is None or not isinstance(found.deployment, dict):
        return None
    try:
        label: Label = from_plain(Label, found.deployment)
    except MisfitError:
        return None
    return label


def pin(service: Service, *, progress: Progress = QUIET) -> Service:
    """Return the service with the digest of its image, which is pulled where it is missing.

    Raises NotFoundError, HostError, GuestImageError, InvalidValueError for one that has nothing
    to run, or can have no secrets.
    """
    files = names.find(service.image)(progress=progress)
    if files.disks:
        raise InvalidValueError(
            f"{service.name}: {service.image} is an imported machine, and a deployment runs images "
            "of containers",
            hint=f"ringzero run -d --name {service.name} {service.image}",
        )
    found = replace(service, digest=_digest(files))
    _command(found, files)
    return found


def is_here(service: Service) -> bool:
    """Whether no registry is asked for the image."""
    return names.is_here(service.image)


def claim(deployment: Deployment, service: Service, label: Label) -> Claim:
    """Make a machine's directory. Raises what is wrong with the image, ConflictError, HostError."""
    files = _files(service)
    command, health = _command(service, files)
    return claims.create(
        label.machine_name(deployment),
        _config(service, files).with_room_for_shares(),
        image=files.name,
        command=command,
        health=health,
        secrets={name: _source(to_plain(secret)) for name, secret in service.secrets.items()},
        deployment=to_plain(label),
    )


def _source(tree: Mapping[str, str | None]) -> dict[str, str]:
    return {kind: value for kind, value in tree.items() if value is not None}


def _digest(files: BootFiles) -> str:
    image = getattr(files, "image", None)
    return files.digest if image is None else str(image.digest)


def _files(service: Service) -> BootFiles:
    """Return what boots, of the very image that was pinned."""
    if ":" not in service.digest:
        # One of ringzero's own: what it is today, or one that was made before.
        files = names.find(service.image)()
        if files.digest == service.digest:
            return files
        from ringzero.image import micro

        for image in micro.list_images():
            if image.digest == service.digest:
                return image
        raise _gone(service)
    from ringzero.image.oci import boot
    from ringzero.image.oci.reference import Reference, parse
    from ringzero.image.oci.store import Store

    name = parse(service.image)
    stored = Store(CACHE_DIR.get()).load(service.digest)
    if stored is not None:
        return boot.files(boot.machine_name(name), stored)
    if isinstance(name, Reference):
        # Somebody has removed it: a registry may have it still.
        try:
            return boot.find(str(replace(name, tag=None, digest=service.digest)))
        except NotFoundError as fault:
            raise _gone(service) from fault
    raise _gone(service)


def _gone(service: Service) -> NotFoundError:
    return NotFoundError(
        f"the image {service.image} that {service.name} was deployed with is gone: "
        f"{service.digest[:19]}",
        hint="deploy with another one, or pull it again",
    )


def _config(service: Service, files: BootFiles) -> MachineConfig:
    from ringzero.vm.boot import with_root, with_services

    asked = machine_fields(service)
    spec = files.machine
    config = MachineConfig.create(
        name=files.name,
        memory=service.memory or (spec.memory if spec else None) or _MEMORY,
        cpus=service.cpus or (spec.cpus if spec else None) or _CPUS,
        engine=asked.engine,
        cpu=asked.cpu,
        devices=list(asked.devices),
        kernel=files.kernel,
        initrd=files.initrd,
        command_line=files.command_line,
        agent=True,
    )
    return with_services(with_root(config, files), files)


def _command(service: Service, files: BootFiles) -> tuple[tuple[str, ...], HealthCheck | None]:
    """Return what a machine runs, and by which command its own process asks whether it is well."""
    check = service.check
    asked = files.health if check is None else None
    if check is not None and check.kind == COMMAND:
        asked = HealthCheck(
            check.words,
            check.interval,
            check.timeout,
            check.start_period,
            check.start_interval,
            check.retries,
        )
    words = files.words(service.command or (), service.entrypoint)
    if files.root is None:
        return _placed_by_shell(service, words), asked
    options = command_options(service.env.items(), service.workdir, service.user)
    if asked is not None:
        # As the image's program runs.
        asked = replace(asked, words=(*options, *asked.words))
    if words:
        return (*secrets.words(service.secrets, "--env="), *options, *words), asked
    if service.secrets or len(options) > 1:
        raise InvalidValueError(
            f"{service.name}: env, secrets, workdir and user are for a command, and "
            f"{service.image} runs its services",
            hint="give a command",
        )
    return (), asked


def _placed_by_shell(service: Service, words: list[str]) -> tuple[str, ...]:
    """Return the command of one of ringzero's own guests, placed by its own programs."""
    if not words:
        raise InvalidValueError(
            f"{service.name}: the image {service.image} runs nothing by itself",
            hint="give a command",
        )
    command = [*(["env", *secrets.words(service.secrets)] if service.secrets else []), *words]
    placed: Any = Invocation(command, env=service.env, cwd=service.workdir, user=service.user)
    return tuple(map(os.fsdecode, placed.words()))
