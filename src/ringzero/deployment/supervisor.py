"""The process of one deployment: it keeps its machines running, and holds its ports.

`python -m ringzero.deployment DIRECTORY` is started by whoever deploys or looks, becomes nobody's
child, and goes on until the deployment is removed. Killed, it takes nothing with it but the ports:
the next one finds the machines by what stands in their own records, watches them as before, starts
those that are missing, and ends what a rollout has left behind that was under way.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from ringzero.config.ports import Forward
from ringzero.control.host import directory as machines
from ringzero.control.host.claims import make_root
from ringzero.control.host.records import HEALTHY
from ringzero.deployment import machine, plan
from ringzero.deployment.balancer import Balancer
from ringzero.deployment.description import Deployment, Service
from ringzero.deployment.directory import (
    FAILED,
    LIVE,
    LOCK,
    PENDING,
    REPLACED,
    SOCKET,
    DeploymentDirectory,
    State,
    Version,
)
from ringzero.deployment.machine import Label, label_of
from ringzero.deployment.replica import ENDED, Replica, end_machine
from ringzero.deployment.rollout import Rollout, Sets
from ringzero.deployment.wire import Link
from ringzero.errors import (
    ConflictError,
    ControlError,
    InvalidValueError,
    NotFoundError,
    RingzeroError,
)
from ringzero.host import ofdlock
from ringzero.host.process import stand_alone
from ringzero.host.unixsocket import Listener
from ringzero.plain import MisfitError, from_plain
from ringzero.records import replace

# How long a client may take to say what it wants, in seconds.
_PATIENCE = 10.0


class Supervisor:
    """A deployment's machines and ports. `start` finds what there is."""

    def __init__(self, place: DeploymentDirectory) -> None:
        self.place = place
        self.balancer = Balancer()
        self.changed = threading.Condition()
        self.ended = threading.Event()
        self._live: Sets = {}
        self._version: Version | None = None
        self._rollout: Rollout | None = None
        # Held by whoever changes what there is; and by who leads ports.
        self._busy = threading.Lock()
        self._leading = threading.Lock()
        # How many are being answered.
        self._counting, self._asking = threading.Lock(), 0
        self._leads: tuple[Deployment | None, Sets] = (None, {})

    # ---- beginning and end ------------------------------------------------------

    def start(self) -> None:
        """Go on from what is written down, and from the machines that there are."""
        state = self.place.state()
        for version in self.place.versions():
            if version.outcome == PENDING:
                # Whoever rolled it out was killed; the last thing it does is to write it down.
                outcome = LIVE if version.number == state.live else FAILED
                reason = "" if outcome == LIVE else "the deployment's process was killed"
                self.place.write_version(replace(version, outcome=outcome, reason=reason))
            elif version.outcome == LIVE and version.number != state.live:
                self.place.write_version(replace(version, outcome=REPLACED))
        self._version = self.place.live()
        self.balancer.start()
        if self._version is not None:
            self._listen_again(self._version.deployment)
        self._find(self._version, state)

    def _find(self, version: Version | None, state: State) -> None:
        """Take the machines that are the live version's, and end all others of the deployment."""
        make_root(machines.root())
        found = {each.name: label for each in machines.machines() if (label := label_of(each))}
        ours = {name: label for name, label in found.items() if label.deployment == self.place.name}
        for service in version.deployment.services if version is not None else ():
            assert version is not None
            self._live[service.name] = self._find_of(service, version, ours, state)
        wanted = {each.name for sets in self._live.values() for each in sets}
        left = [name for name in ours if name not in wanted]
        if version is not None:
            self.lead(version.deployment, self._live)
        for sets in self._live.values():
            for each in sets:
                each.start()
        if state.paused:
            self.place.write_state(replace(self.place.state(), paused=()))
        for name in left:
            # Of a rollout that did not come to its end.
            log(f"ending {name}, which is left over")
            where = machines.MachineDirectory(machines.root() / name)
            threading.Thread(
                target=end_machine, args=(where, 10.0), kwargs={"remove": True}, daemon=True
            ).start()

    def _find_of(
        self, service: Service, version: Version, ours: dict[str, Label], state: State
    ) -> list[Replica]:
        spec = service.spec()
        fits = [
            (label.version > version.number, label.version, label.replica, name)
            for name, label in ours.items()
            if label.service == service.name and label.spec == spec
        ]
        made = []
        for *_, name in sorted(fits)[: service.replicas]:
            replica = self.replica(version.deployment, service, ours[name])
            replica.insist = name in state.paused
            made.append(replica)
        taken = {each.label.replica for each in made if each.label.version == version.number}
        free = (n for n in range(1, 2 * service.replicas + 1) if n not in taken)
        for number in free:
            if len(made) >= service.replicas:
                break
            label = Label(version.deployment.name, service.name, version.number, number, spec)
            made.append(self.replica(version.deployment, service, label))
        return made

    def close(self) -> None:
        """Leave the machines as they are."""
        for sets in list(self._live.values()):
            for each in sets:
                each.leave()
        self.balancer.close()

    # ---- Host of a rollout ------------------------------------------------------

    def replica(self, deployment: Deployment, service: Service, label: Label) -> Replica:
        return Replica(
            label,
            label.machine_name(deployment),
            service,
            lambda: machine.claim(deployment, service, label),
            self._heard,
        )

    def _heard(self, replica: Replica) -> None:
        """Hear of a machine's new state, on its thread."""
        reason = replica.reason.partition("\n")[0]
        log(f"{replica.name}: {replica.state}" + (f": {reason}" if reason else ""))
        self._lead_again()
        with self.changed:
            self.changed.notify_all()

    def lead(self, deployment: Deployment | None, sets: Sets) -> None:
        with self._leading:
            self._leads = (deployment, sets)
        self._lead_again()

    def _lead_again(self) -> None:
        with self._leading:
            deployment, sets = self._leads
            ports = self.balancer.forwards()
            for service in deployment.services if deployment is not None else ():
                for forward in service.ports:
                    key = _key(service, forward)
                    if key in ports:
                        found = sets.get(service.name, ())
                        well = [each.targets for each in found if each.state == HEALTHY]
                        targets = [t[forward.guest_port] for t in well if forward.guest_port in t]
                        self.balancer.lead(key, targets)

    def listen(self, deployment: Deployment) -> None:
        there, made = self.balancer.forwards(), list[str]()
        state = self.place.state()
        try:
            for service in deployment.services:
                for forward in service.ports:
                    key = _key(service, forward)
                    if key not in there:
                        made.append(key)
                        there[key] = self.balancer.listen(key, forward)
        except RingzeroError:
            for key in made:
                if key in self.balancer.forwards():
                    self.balancer.shut(key)
            raise
        self._note_ports(state)

    def _listen_again(self, deployment: Deployment) -> None:
        """Listen at the ports of the live version; one that somebody took meanwhile is told."""
        state = self.place.state()
        for service in deployment.services:
            for forward in service.ports:
                key = _key(service, forward)
                chosen = replace(forward, port=state.ports.get(key, forward.port))
                for each in dict.fromkeys((chosen, forward)):
                    try:
                        self.balancer.listen(key, each)
                    except RingzeroError as fault:
                        log(fault.message)
                    else:
                        break
        self._note_ports(state)

    def _note_ports(self, state: State) -> None:
        ports = {key: made.port for key, made in self.balancer.forwards().items()}
        if ports != state.ports:
            self.place.write_state(replace(state, ports=ports))

    def shut(self, deployment: Deployment | None) -> None:
        services = deployment.services if deployment is not None else ()
        wanted = {_key(service, forward) for service in services for forward in service.ports}
        with self._leading:
            for key in self.balancer.forwards():
                if key not in wanted:
                    self.balancer.shut(key)
        self._note_ports(self.place.state())

    # ---- what is asked ----------------------------------------------------------

    def deploy(
        self, deployment: Deployment, origin: str, force: bool, timeout: float, link: Link
    ) -> dict[str, Any]:
        """Bring the host to a description. Raises ConflictError, DeployError."""
        self._take_turn()
        try:
            old = self._version
            known = plan.changes(old.deployment if old is not None else None, deployment)
            if old is not None and not force and all(c["how"] == plan.SAME for c in known):
                again = self._start_ended(old)
                return {"version": old.number, "changed": False, "started": again}
            number = max(self.place.numbers(), default=0) + 1
            new = Version(number, time.time(), deployment, origin=origin)
            self.place.write_version(new)
            self._rollout = Rollout(
                *(self, old, self._live, new),
                force=force,
                timeout=timeout,
                tell=lambda text: _tell(link, text),
            )
            link.send({"accepted": number})
            log(f"version {number} is rolled out, from {origin}")
            self._live = self._roll(self._rollout, new)
            self._version = replace(new, outcome=LIVE)
            return {"version": number, "changed": True, "started": []}
        finally:
            self._rollout = None
            self._busy.release()

    def _roll(self, rollout: Rollout, new: Version) -> Sets:
        try:
            return rollout.run()
        except BaseException as fault:
            reason = fault.message if isinstance(fault, RingzeroError) else repr(fault)
            log(f"version {new.number} failed: {reason}")
            self.place.write_version(replace(new, outcome=FAILED, reason=reason))
            raise

    def _take_turn(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise ConflictError(
                f"the deployment {self.place.name!r} is being changed already",
                hint=f"`ringzero deploy status {self.place.name}` shows how far it is",
            )

    def _start_ended(self, version: Version) -> list[str]:
        """Start machines of the live version again that have ended for good by a fault."""
        again = []
        for service in version.deployment.services:
            found = self._live[service.name]
            for at, each in enumerate(found):
                if each.state == ENDED and each.failure:
                    each.leave()
                    found[at] = self.replica(version.deployment, service, each.label)
                    found[at].insist = True
                    found[at].start()
                    again.append(each.name)
        return again

    def rollback(self, number: int | None, timeout: float, link: Link) -> dict[str, Any]:
        """Go back to a version, by default to the last one that served before this one."""
        if number is None:
            live = self._version.number if self._version is not None else 0
            served = [v.number for v in self.place.versions() if v.outcome == REPLACED]
            number = max((n for n in served if n < live), default=0)
            if not number:
                raise NotFoundError(
                    f"{self.place.name} has no version to go back to",
                    hint=f"`ringzero deploy history {self.place.name}` lists what there was",
                )
        version = self.place.version(number)
        return self.deploy(version.deployment, f"version {number}", False, timeout, link)

    def remove(self) -> dict[str, Any]:
        """End all machines, and this process."""
        self._take_turn()
        self.lead(None, {})
        self.shut(None)
        threads = [
            threading.Thread(target=each.end, kwargs={"remove": True}, daemon=True)
            for found in self._live.values()
            for each in found
        ]
        names = [each.name for found in self._live.values() for each in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._live, self._version = {}, None
        self._busy.release()
        return {"machines": names}

    def status(self) -> dict[str, Any]:
        """Return what there is, as plain data."""
        version, ports = self._version, self.balancer.forwards()
        counters, rollout = self.balancer.counters(), self._rollout
        services = []
        for service in version.deployment.services if version is not None else ():
            keys = [_key(service, forward) for forward in service.ports]
            services.append(
                {
                    "service": service.name,
                    "image": service.image,
                    "digest": service.digest,
                    "replicas": service.replicas,
                    "machines": [each.facts() for each in self._live.get(service.name, ())],
                    "ports": [
                        {
                            "address": forward.address,
                            "port": ports[key].port if key in ports else None,
                            "guest_port": forward.guest_port,
                            **counters.get(key, {}),
                        }
                        for key, forward in zip(keys, service.ports, strict=True)
                    ],
                }
            )
        return {
            "name": self.place.name,
            "version": version.number if version is not None else 0,
            "since": version.made if version is not None else None,
            "rolling_out": rollout.number if rollout is not None else None,
            "services": services,
            "pid": os.getpid(),
            "directory": str(self.place.path),
        }

    def cancel(self) -> None:
        """Take back the rollout that is under way."""
        rollout = self._rollout
        if rollout is not None:
            rollout.cancel()

    def answer(self, link: Link) -> None:
        """Serve one connection, on a thread of its own."""
        with self._counting:
            if self.ended.is_set():
                # Another process answers the next time.
                link.close()
                return
            self._asking += 1
        try:
            link.settimeout(_PATIENCE)
            asked = link.receive()
            link.settimeout(None)
            link.send({"result": self._do(asked, link)})
        except RingzeroError as fault:
            link.send({"error": fault.to_dict()})
        except Exception as fault:
            traceback.print_exc()
            error = ControlError(f"internal error: {type(fault).__name__}: {fault}")
            link.send({"error": error.to_dict()})
        finally:
            link.close()
            with self._counting:
                self._asking -= 1
                if self._version is None and not self._asking:
                    # There is nothing to keep.
                    self.ended.set()

    def _do(self, asked: dict[str, Any], link: Link) -> dict[str, Any]:
        for name, value in dict(asked.get("environment") or {}).items():
            # Where secrets are read from; machines' processes inherit it.
            os.environ[str(name)] = str(value)
        timeout = float(asked.get("timeout") or 300.0)
        match asked.get("ask"):
            case "status":
                return self.status()
            case "remove":
                return self.remove()
            case "deploy":
                try:
                    deployment = from_plain(Deployment, asked.get("deployment"))
                except MisfitError as fault:
                    raise InvalidValueError(
                        f"no deployment{fault.place}: {fault.reason}"
                    ) from fault
                self._hear(link)
                origin, force = str(asked.get("origin", "")), asked.get("force") is True
                return self.deploy(deployment, origin, force, timeout, link)
            case "rollback":
                number = asked.get("version")
                self._hear(link)
                return self.rollback(number if isinstance(number, int) else None, timeout, link)
            case other:
                raise InvalidValueError(f"a deployment's process does no {str(other)[:40]!r}")

    def _hear(self, link: Link) -> None:
        """Hear whether the client wants it taken back; one that goes away does not."""

        def listen() -> None:
            with contextlib.suppress(RingzeroError):
                while not link.receive().get("cancel"):
                    pass
                self.cancel()

        threading.Thread(target=listen, daemon=True).start()


def _key(service: Service, forward: Forward) -> str:
    """Return what a port of the host is called: one that was chosen may move among services."""
    if forward.port:
        return f"{forward.address}:{forward.port}"
    return f"{forward.address}:{service.name}/{forward.guest_port}"


def _tell(link: Link, text: str) -> None:
    log(text)
    link.send({"event": text})


def log(text: str) -> None:
    """Write a line into the deployment's log."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}", flush=True)


def main(arguments: list[str]) -> int:
    """Keep the deployment whose directory is named, unless another process does."""
    (path,) = arguments
    place = DeploymentDirectory(Path(path))
    stand_alone(f"rz-dep-{place.name}")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Two descriptors for each connection.
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    lock = os.open(place.path / LOCK, os.O_RDWR | os.O_CLOEXEC)
    if not ofdlock.take(lock):
        return 0
    supervisor = Supervisor(place)
    signal.signal(signal.SIGTERM, lambda *_: supervisor.ended.set())
    try:
        supervisor.start()
        pin = os.open(place.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        listener = Listener(Path("/proc/self/fd") / str(pin) / SOCKET)
    except RingzeroError as fault:
        log(fault.message)
        return fault.exit_code
    listener.socket.setblocking(True)
    threading.Thread(target=_serve, args=(supervisor, listener), daemon=True).start()
    supervisor.ended.wait()
    listener.close()
    supervisor.close()
    sys.stdout.flush()
    # Threads that wait for machines are not waited for.
    os._exit(0)


def _serve(supervisor: Supervisor, listener: Listener) -> None:
    while True:
        try:
            link, _ = listener.socket.accept()
        except OSError:
            if supervisor.ended.wait(0.1):
                return
            continue
        threading.Thread(target=supervisor.answer, args=(Link(link),), daemon=True).start()
