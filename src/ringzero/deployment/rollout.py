"""How a host comes from one version to the next, and back where the next one is not well.

    start-first   new machines beside the old ones; when all are well the ports lead to them, the
                  old ones' connections end, and the old ones do
    stop-first    the old machines end before new ones start, and are started again on the way back

Until the version is written down as the live one, whatever happens leads back to the one before.
"""

from __future__ import annotations

import contextlib
import graphlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from ringzero.control.host.records import HEALTHY, UNHEALTHY
from ringzero.deployment.balancer import Balancer
from ringzero.deployment.description import STOP_FIRST, Deployment, Service
from ringzero.deployment.directory import (
    LIVE,
    REPLACED,
    DeploymentDirectory,
    State,
    Version,
)
from ringzero.deployment.machine import Label
from ringzero.deployment.replica import ENDED, Replica
from ringzero.errors import DeployError, HostError, RingzeroError
from ringzero.records import replace

# The machines of each service.
Sets = dict[str, list[Replica]]


class Host(Protocol):
    """What a rollout needs of the deployment's process."""

    place: DeploymentDirectory
    balancer: Balancer
    # Told whenever a machine's state has changed.
    changed: threading.Condition

    def replica(self, deployment: Deployment, service: Service, label: Label) -> Replica:
        """Return a machine that is yet to be started."""
        ...

    def lead(self, deployment: Deployment | None, sets: Sets) -> None:
        """Have the ports of a version lead to these machines, as far as they are well."""
        ...

    def listen(self, deployment: Deployment) -> None:
        """Listen at the version's ports, beside those that there are. Raises ConflictError."""
        ...

    def shut(self, deployment: Deployment | None) -> None:
        """Listen at no other ports than the version's."""
        ...


class Rollout:
    """One step from the machines `live` of version `old` to the version `new`."""

    def __init__(
        self,
        host: Host,
        old: Version | None,
        live: Sets,
        new: Version,
        *,
        force: bool = False,
        timeout: float = 300.0,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._host = host
        self._old = old
        self._live = live
        self._new = new
        self._tell = tell
        self._deadline = time.monotonic() + timeout
        self._timeout = timeout
        self.cancelled = threading.Event()
        # By service: machines that stay, that come, and that go.
        self._kept: Sets = {}
        self._coming: Sets = {}
        self._going: Sets = {name: list(found) for name, found in live.items()}
        for service in new.deployment.services:
            found = [] if force else self._same(service, live.get(service.name, []))
            self._kept[service.name] = found
            self._going[service.name] = [
                each for each in self._going.get(service.name, []) if each not in found
            ]
            self._coming[service.name] = list(self._make(service, len(found)))
        # Those that had to end for the new ones.
        self._paused: list[Replica] = []

    @staticmethod
    def _same(service: Service, found: Sequence[Replica]) -> list[Replica]:
        """Return machines that need not be others, the well ones first."""
        spec = service.spec()
        same = [each for each in found if each.label.spec == spec and each.state != ENDED]
        return sorted(same, key=lambda each: each.state != HEALTHY)[: service.replicas]

    def _make(self, service: Service, kept: int) -> Iterator[Replica]:
        deployment, number, spec = self._new.deployment, self._new.number, service.spec()
        for replica in range(1, service.replicas - kept + 1):
            label = Label(deployment.name, service.name, number, replica, spec)
            yield self._host.replica(deployment, service, label)

    @property
    def number(self) -> int:
        """The version's number."""
        return self._new.number

    # ---- forth ------------------------------------------------------------------

    def run(self) -> Sets:
        """Do it, and return the live machines. Raises DeployError once all is as before."""
        try:
            self._host.listen(self._new.deployment)
            for name in self._order():
                self._come(self._new.deployment.service(name))
            self._commit()
        except (RingzeroError, OSError) as fault:
            self._tell("going back")
            self._back()
            reason = fault.message if isinstance(fault, RingzeroError) else str(fault)
            raise DeployError(
                reason, hint=self._hint(), version=self._new.number, live=self._old_number
            ) from fault
        return self._switch()

    @property
    def _old_number(self) -> int:
        return self._old.number if self._old is not None else 0

    def _hint(self) -> str:
        if self._old is None:
            return "nothing of it runs"
        return f"version {self._old_number} serves as before"

    def _order(self) -> list[str]:
        """Return the services, those first that others wait for."""
        graph = {each.name: set(each.after) for each in self._new.deployment.services}
        return list(graphlib.TopologicalSorter(graph).static_order())

    def _come(self, service: Service | None) -> None:
        """Start the new machines of a service, some at once, until they are well."""
        assert service is not None
        for kept in self._kept[service.name]:
            kept.service = service
        coming, going = self._coming[service.name], self._going[service.name]
        if coming and going and service.update.order == STOP_FIRST:
            self._pause(service, going)
        for at in range(0, len(coming), service.update.parallel):
            wave = coming[at : at + service.update.parallel]
            self._tell(f"{service.name}: starting {', '.join(each.name for each in wave)}")
            for each in wave:
                each.start()
            self._await(wave)
        if coming:
            self._tell(f"{service.name}: {len(coming)} of {len(coming)} are well")

    def _pause(self, service: Service, going: list[Replica]) -> None:
        self._tell(f"{service.name}: stopping {', '.join(each.name for each in going)}")
        state = self._host.place.state()
        names = tuple(each.name for each in going)
        self._host.place.write_state(replace(state, paused=(*state.paused, *names)))
        self._paused += going
        rest = {name: [r for r in found if r not in going] for name, found in self._live.items()}
        if self._old is not None:
            self._host.lead(self._old.deployment, rest)
        self._retire(service, going, remove=False)

    def _await(self, wave: Sequence[Replica]) -> None:
        """Wait until machines are well. Raises DeployError."""
        with self._host.changed:
            while True:
                for each in wave:
                    if each.failure or each.state == UNHEALTHY:
                        raise DeployError(self._why(each))
                if all(each.state in (HEALTHY, ENDED) for each in wave):
                    return
                left = self._deadline - time.monotonic()
                if self.cancelled.is_set():
                    raise DeployError("it was taken back")
                if left <= 0:
                    late = next(each for each in wave if each.state not in (HEALTHY, ENDED))
                    raise DeployError(f"{self._why(late)} within {self._timeout:g} s")
                self._host.changed.wait(min(left, 1.0))

    def _why(self, each: Replica) -> str:
        answer = str(each.facts()["answer"]).strip()
        what = each.failure or each.reason or (f"not well: {answer}" if answer else "not well")
        said = each.last_lines()
        told = f"{each.label.service}: machine {each.name}: {what}"
        return told if not said or said in told else f"{told}\nit said last:\n{said}"

    def cancel(self) -> None:
        """Take it back, as long as the new version does not serve."""
        self.cancelled.set()
        with self._host.changed:
            self._host.changed.notify_all()

    def _commit(self) -> None:
        """Write down that the new version is the live one; from here on there is no way back."""
        place = self._host.place
        place.write_state(State(self._new.number, place.state().ports, ()))
        # Whoever starts the next time finds out, where this cannot be written.
        with contextlib.suppress(HostError):
            place.write_version(replace(self._new, outcome=LIVE))
            if self._old is not None:
                place.write_version(replace(self._old, outcome=REPLACED))

    def _switch(self) -> Sets:
        """Lead the ports to the new machines, and end the old ones."""
        new = self._new
        sets = {name: self._kept[name] + self._coming[name] for name in self._kept}
        self._host.lead(new.deployment, sets)
        self._tell(f"version {new.number} serves")
        self._host.shut(new.deployment)
        for name, going in self._going.items():
            service = new.deployment.service(name)
            if service is None and self._old is not None:
                service = self._old.deployment.service(name)
            if going and service is not None:
                self._tell(f"{name}: ending {', '.join(each.name for each in going)}")
                self._retire(service, going, remove=True)
        return sets

    # ---- back -------------------------------------------------------------------

    def _back(self) -> None:
        _all(lambda each: each.end(remove=True), self._coming_ones())
        if self._old is None:
            self._host.shut(None)
            return
        self._host.shut(self._old.deployment)
        for old in self._paused:
            service = self._old.deployment.service(old.label.service)
            assert service is not None
            again = self._host.replica(self._old.deployment, service, old.label)
            again.insist = True
            found = self._live[old.label.service]
            found[found.index(old)] = again
            again.start()
        for service in self._old.deployment.services:
            for each in self._live.get(service.name, ()):
                each.service = service
        self._host.lead(self._old.deployment, self._live)
        with contextlib.suppress(HostError):
            self._host.place.write_state(replace(self._host.place.state(), paused=()))

    def _coming_ones(self) -> list[Replica]:
        return [each for found in self._coming.values() for each in found]

    def _retire(self, service: Service, going: Sequence[Replica], *, remove: bool) -> None:
        """Have connections end, then machines."""
        targets = [target for each in going for target in each.targets.values()]
        if targets:
            self._host.balancer.drain(targets, service.drain)
        _all(lambda each: each.end(remove=remove), going)


def _all(act: Callable[[Replica], None], found: Iterable[Replica]) -> None:
    """Do something with several machines at once."""
    threads = [threading.Thread(target=act, args=(each,), daemon=True) for each in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
