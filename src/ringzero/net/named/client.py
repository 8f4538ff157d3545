"""A machine's end of a network by name: it joins, and joins again when the process is another."""

from __future__ import annotations

import contextlib
import itertools
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from ringzero.config.devices.net import NetConfig
from ringzero.config.ports import Forward
from ringzero.core.frames import Frame
from ringzero.errors import ConfigError, HostError, RingzeroError, from_dict
from ringzero.net.contract import Network
from ringzero.net.named.description import NamedNetwork, NetworkNotes
from ringzero.net.named.directory import NetworkDirectory, find
from ringzero.net.named.wire import Decoder, WireError, frame_message, object_message
from ringzero.net.proxy.loop import GONE, READ, WRITE, EventLoop
from ringzero.net.stack import orphans
from ringzero.net.stack.subnet import Subnet
from ringzero.plain import from_plain, to_plain

_READ = 256 * 1024
_BATCH = 64
# Bytes for a network that does not read before frames are dropped.
_OUTBOX = 4 << 20
# How long an answer may take, in seconds; and between two tries to join again, and to have a
# port again that somebody else took meanwhile.
_PATIENCE, _RETRY, _PORT_RETRY = 10.0, 0.1, 1.0
# How long a process that was asked to end may take, in seconds.
_END = 3.0
# How long a copy's guest is answered that goes on with its original's connections, in seconds.
_OBJECTIONS = 60.0
# Whose frame a reset is: nobody's.
_PEER = bytes.fromhex("020000000000")
# Frames for the guest that wait before nothing more is read.
_INBOX = 256


class NamedEnd(Network):
    """One machine's end of the network called `config.network`.

    Raises NotFoundError where there is no such network, ConflictError where a port or the
    MAC address is taken, HostError.
    """

    def __init__(self, config: NetConfig) -> None:
        super().__init__(config)
        if config.listen or config.target:
            raise ConfigError([f"the network {config.network!r} takes no argument"])
        if config.allow is not None or not config.host:
            raise ConfigError(
                [f"where machines on {config.network!r} may go is the network's own"],
                hint="`ringzero network create --allow` and --no-host say it for all of them",
            )
        self._place: NetworkDirectory = find(config.network)
        self._loop = EventLoop("net", self._begin_round, self._round)
        self._numbers = itertools.count(1)
        # What was asked and not answered yet.
        self._asked: dict[int, _Question] = {}
        self._ports: list[Forward] = list(config.ports)
        # Those that somebody else took while there was no network; by the number by which one
        # was asked for, if it was.
        self._missing: dict[int, Forward] = {}
        self._searching = False
        self._link: socket.socket | None = None
        self._decoder = Decoder()
        self._outbox = bytearray()
        self._inbox: deque[Frame] = deque()
        self._passing = orphans.Passing()
        # Connections of the machine's original, which its guest may go on with.
        self._orphans = frozenset[bytes]()
        self._interest = 0
        self._woken = self._closed = self._begun = False
        self.dropped = 0
        self.address = ""
        try:
            self._link = self._join()
        except BaseException:
            self._loop.leave()
            raise

    # ---- Network ----------------------------------------------------------

    def wake(self) -> None:
        self._woken = True
        self._loop.wake()

    def start(self) -> None:
        self._begun = True
        self._loop.call(self._attach)
        self._loop.start()

    def close(self) -> None:
        self._closed = True
        self._loop.close()
        if self._link is not None:
            self._link.close()

    def leave(self) -> None:
        self._loop.leave()
        if self._link is not None:
            self._link.close()

    def forward(self, forward: Forward) -> Forward:
        answer = self._ask({"forward": to_plain(forward)})
        made: Forward = from_plain(Forward, answer["port"])
        self._ports.append(made)
        return made

    def unforward(self, forward: Forward) -> None:
        self._ask({"unforward": to_plain(forward)})
        self._ports.remove(forward)

    def forwards(self) -> list[Forward]:
        return list(self._ports)

    def inherit(self, connections: tuple[bytes, ...], mac: bytes) -> None:
        macs = [mac, bytes.fromhex((self.config.mac or "").replace(":", ""))]
        self._loop.call(lambda: self._reset_all(connections, [m for m in macs if m]))

    def connections(self) -> tuple[bytes, ...]:
        return self._passing.packed()

    def _reset_all(self, connections: tuple[bytes, ...], macs: list[bytes]) -> None:
        """Reset another machine's connections in the guest, as whoever they were with would."""
        self._orphans = orphans.keys(connections)
        self._send_resets(connections, macs)
        self._loop.at(self._loop.now + _OBJECTIONS, self._forget_orphans)

    def _send_resets(self, connections: Sequence[bytes], macs: list[bytes]) -> None:
        def reset() -> None:
            self._inbox.extend(orphans.resets(connections, _PEER, macs))
            self._deliver()

        for delay in orphans.RESETS:
            self._loop.at(self._loop.now + delay, reset)

    def _forget_orphans(self) -> None:
        self._orphans = frozenset()

    def counters(self) -> dict[str, int]:
        return {"dropped": self.dropped}

    # ---- joining ----------------------------------------------------------

    def _join(self) -> socket.socket:
        """Connect and say who we are. Raises what the network says.

        A process that ends while it is asked is followed by another, which is asked then.
        """
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return self._join_once()
            except ConnectionError as fault:
                if time.monotonic() > deadline:
                    raise self._silence() from fault
            time.sleep(_RETRY)

    def _join_once(self, *, again: bool = False) -> socket.socket:
        """Connect and say who we are. Raises what the network says, and ConnectionError.

        With `again` a port that is taken is no reason not to.
        """
        link = self._place.connect()
        try:
            link.settimeout(_PATIENCE)
            self._decoder = Decoder()
            who = {
                "name": self.config.hostname or "machine",
                "mac": self.config.mac,
                "ports": [to_plain(forward) for forward in self._ports],
                "again": again,
            }
            link.sendall(object_message({"id": 0, "join": who}))
            answer = self._first_answer(link)
        except ConnectionError:
            link.close()
            raise
        except (OSError, WireError) as fault:
            link.close()
            raise self._silence() from fault
        except BaseException:
            link.close()
            raise
        wanted, self._ports = self._ports, [from_plain(Forward, port) for port in answer["ports"]]
        if again:
            self._miss([forward for forward in wanted if forward not in self._ports])
        self.address = str(answer["address"])
        link.setblocking(False)
        return link

    def _first_answer(self, link: socket.socket) -> dict[str, Any]:
        while True:
            data = link.recv(_READ)
            if not data:
                raise ConnectionError("the network's process ended")
            found: dict[str, Any] | None = None
            for message in self._decoder.feed(data):
                if isinstance(message, Frame):
                    self._inbox.append(message)
                elif found is None:
                    found = message
            if found is not None:
                return _result(found)

    def _attach(self) -> None:
        """Serve the link, on the loop's thread."""
        if self._link is not None:
            self._interest = READ
            self._loop.watch(self._link, READ, self._happened)
            self.port.set_link(True)
            self.wake()

    def _lose(self) -> None:
        """The network's process has gone."""
        link, self._link = self._link, None
        if link is None:
            return
        self._loop.forget(link)
        link.close()
        self._outbox.clear()
        self._ports += self._missing.values()
        self._missing.clear()
        self.port.set_link(False)
        self._loop.at(self._loop.now + _RETRY, self._again)

    def _again(self) -> None:
        if self._closed or self._link is not None:
            return
        try:
            self._link = self._join_once(again=True)
        except (ConnectionError, RingzeroError):
            self._loop.at(self._loop.now + 10 * _RETRY, self._again)
            return
        self._attach()
        for question in list(self._asked.values()):
            self._push(question.message)
        self._reset_lost()

    def _reset_lost(self) -> None:
        """Reset what ended with the old process; who only receives would wait for ever.

        What goes between machines goes on.
        """
        with contextlib.suppress(RingzeroError):
            subnet = self._place.network().addresses()
            known = self._passing.packed()
            lost = [c for c in known if not _is_machine(orphans.peer_of(c), subnet)]
            self._send_resets(lost, [bytes.fromhex((self.config.mac or "").replace(":", ""))])

    # ---- ports that others took -------------------------------------------

    def _miss(self, ports: list[Forward]) -> None:
        """Say in the machine's log which ports do not lead to it any more, and ask again."""
        for forward in ports:
            print(
                f"ringzero: {forward} is taken; it is forwarded again once it is free",
                file=sys.stderr,
            )
            self._missing[next(self._numbers)] = forward
        if ports and not self._searching:
            self._searching = True
            self._loop.at(self._loop.now + _PORT_RETRY, self._ask_for_missing)

    def _ask_for_missing(self) -> None:
        self._searching = bool(self._missing)
        for number, forward in list(self._missing.items()):
            self._push(object_message({"id": number, "forward": to_plain(forward)}))
        if self._searching:
            self._loop.at(self._loop.now + _PORT_RETRY, self._ask_for_missing)

    def _found(self, forward: Forward, result: object) -> None:
        """Hear whether a port that was missing is there again."""
        if isinstance(result, dict) and "port" in result:
            self._ports.append(from_plain(Forward, result["port"]))
            print(f"ringzero: {forward} is forwarded again", file=sys.stderr)
        else:
            self._missing[next(self._numbers)] = forward

    # ---- asking -----------------------------------------------------------

    def _ask(self, content: dict[str, Any]) -> dict[str, Any]:
        """Ask the network's process; from any thread but the loop's. Raises what it raises."""
        if not self._begun:
            return self._ask_early(content)
        number = next(self._numbers)
        question = _Question(object_message({"id": number, **content}))

        def put() -> None:
            self._asked[number] = question
            self._push(question.message)

        try:
            self._loop.call(put)
            if not question.answered.wait(_PATIENCE):
                raise self._silence()
        finally:
            self._asked.pop(number, None)
        return _result(question.answer)

    def _silence(self) -> HostError:
        return HostError(
            f"the network {self.config.network!r} does not answer",
            hint="where its process has ended another is started within a second",
        )

    def _ask_early(self, content: dict[str, Any]) -> dict[str, Any]:
        """Ask before the machine has begun, when there is no thread yet."""
        link = self._link
        assert link is not None, "it has joined"
        while True:
            try:
                link.settimeout(_PATIENCE)
                link.sendall(object_message({"id": 0, **content}))
                return self._first_answer(link)
            except ConnectionError:
                link.close()
                link = self._link = self._join()
            except (OSError, WireError) as fault:
                raise self._silence() from fault
            finally:
                link.setblocking(False)

    # ---- moving frames; on the loop's thread ------------------------------

    def _begin_round(self, now: float) -> None:
        """Time is nothing to a cable."""

    def _round(self) -> float | None:
        more = False
        if self._woken:
            self._woken = False
            more = self.port.fetch(self._send, _BATCH)
            self._woken |= more
            self._deliver()
        self._flush()
        self._watch()
        return self._loop.now if more else None

    def _send(self, frame: Frame) -> None:
        if self._orphans:
            own = socket.inet_aton(self.address)
            answer = orphans.objection(frame, self._orphans, own)
            if answer is not None:
                self._inbox.append(answer)
                return
        self._passing.sent(frame)
        if self._link is None or len(self._outbox) + frame.size > _OUTBOX:
            self.dropped += 1
            return
        for piece in frame_message(frame):
            self._outbox += piece

    def _push(self, data: bytes) -> None:
        if self._link is not None:
            self._outbox += data
            self._flush()

    def _flush(self) -> None:
        if self._link is None or not self._outbox:
            return
        try:
            del self._outbox[: self._link.send(self._outbox)]
        except BlockingIOError:
            pass
        except OSError:
            self._lose()

    def _happened(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if self._link is None or not events & (READ | GONE):
            return
        try:
            data = self._link.recv(_READ)
            messages = self._decoder.feed(data) if data else None
        except BlockingIOError:
            return
        except (OSError, WireError):
            messages = None
        if messages is None:
            self._lose()
            return
        for message in messages:
            if isinstance(message, Frame):
                self._passing.received(message)
                self._inbox.append(message)
            else:
                self._answered(message)
        self._deliver()

    def _answered(self, message: dict[str, Any]) -> None:
        asked = self._asked.get(message.get("id", 0))
        if asked is not None:
            asked.answer = message
            asked.answered.set()
            return
        result = message.get("result")
        missing = self._missing.pop(message.get("id", 0), None)
        if missing is not None:
            self._found(missing, result)
        elif isinstance(result, dict) and "port" in result:
            # Whoever asked for it has been told that it is not to be had.
            self._push(object_message({"id": 0, "unforward": result["port"]}))

    def _deliver(self) -> None:
        if self._inbox:
            for _ in range(self.port.deliver(self._inbox)):
                self._inbox.popleft()

    def _watch(self) -> None:
        """Read while the machine takes frames, and hear of room while bytes wait."""
        if self._link is None:
            return
        interest = (READ if len(self._inbox) < _INBOX else 0) | (WRITE if self._outbox else 0)
        if interest != self._interest:
            self._interest = interest
            self._loop.change(self._link, interest)


class _Question:
    """What a process of the network is asked; one that ends is followed by another, asked again."""

    def __init__(self, message: bytes) -> None:
        self.message = message
        self.answer: dict[str, Any] = {}
        self.answered = threading.Event()


def _is_machine(address: bytes, subnet: Subnet) -> bool:
    """Return whether an address may be another machine's."""
    return subnet.has(address) and address not in (*subnet.gateways, *subnet.resolvers)


def _result(message: dict[str, Any]) -> dict[str, Any]:
    """Return what an answer says. Raises the error that it is."""
    error, result = message.get("error"), message.get("result")
    if isinstance(error, dict):
        raise from_dict(error)
    return result if isinstance(result, dict) else {}


def inspect(place: NetworkDirectory) -> dict[str, Any]:
    """Return what a network's process knows of its machines; nothing where it does not run."""
    return {"machines": [], **_ask_once(place, {"inspect": True})}


def change(place: NetworkDirectory, network: NamedNetwork) -> None:
    """Describe a network anew; machines that are on it keep their addresses.

    Raises ConfigError, ConflictError, HostError.
    """
    place.write_network(network)
    _ask_once(place, {"change": True})


def remove(place: NetworkDirectory) -> None:
    """Remove a network that no machine is on; its process, if it is there still, ends first.

    Raises ConflictError, NotFoundError, HostError.
    """
    _end(place)
    place.remove()


def redefine(place: NetworkDirectory, network: NamedNetwork, notes: NetworkNotes) -> list[str]:
    """Make a network another that no machine is on, as `NetworkDirectory.redefine` does."""
    _end(place)
    return place.redefine(network, notes)


def _end(place: NetworkDirectory) -> None:
    """End the process of a network that no machine is on."""
    _ask_once(place, {"end": True})
    deadline = time.monotonic() + _END
    while place.alive and not inspect(place)["machines"] and time.monotonic() < deadline:
        time.sleep(0.01)


def _ask_once(place: NetworkDirectory, content: dict[str, Any]) -> dict[str, Any]:
    """Ask a network's process that may not run; return its answer, or nothing."""
    link = place.try_connect() if place.alive else None
    if link is None:
        return {}
    decoder = Decoder()
    with contextlib.closing(link):
        link.settimeout(_PATIENCE)
        try:
            link.sendall(object_message({"id": 1, **content}))
            while True:
                for message in decoder.feed(data := link.recv(_READ)):
                    if isinstance(message, dict):
                        return _result(message)
                if not data:
                    return {}
        except (OSError, WireError):
            return {}
