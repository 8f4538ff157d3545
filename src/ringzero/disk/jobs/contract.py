"""What a block job is: its states, its progress, its speed, its end.

The states and their names are QEMU's (qapi/job.json, JobStatus):

    created -> running <-> paused
               running -> ready <-> standby          mirror, active commit
    running or ready -> waiting -> pending -> concluded -> null
    any of them -> aborting -> concluded -> null      cancelled, or failed

A job works on a thread of its own. Between two pieces of work it comes to a
checkpoint, where it is paused, slowed down and cancelled; it holds no lock there.
What goes wrong, on either side, ends the job and leaves the guest's disk as it is.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import Any, ClassVar, Protocol

from ringzero.core.buckets import Bucket, Tokens
from ringzero.disk.instant import LiveDisk
from ringzero.errors import ConflictError, InvalidValueError, RingzeroError
from ringzero.records import record
from ringzero.units import MIB

# How much is copied between two checkpoints, in bytes: some milliseconds of work.
PIECE = MIB
# How often a job that waits for a lock of its owner's looks whether it is to end, in seconds.
_LOOK = 0.1


class State(Enum):
    """Where a job is in its life."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    READY = "ready"
    STANDBY = "standby"
    WAITING = "waiting"
    PENDING = "pending"
    ABORTING = "aborting"
    CONCLUDED = "concluded"
    NULL = "null"


# States in which a job has its thread at work.
ACTIVE = (State.CREATED, State.RUNNING, State.PAUSED, State.READY, State.STANDBY)


@record
class JobInfo:
    """A job as it was at a moment.

    `offset` of `length` bytes are done; `length` grows while the guest writes. `speed` is in
    bytes a second, 0 for any. `error` is what it failed of.
    """

    id: str
    kind: str
    state: str
    offset: int
    length: int
    speed: int
    target: str = ""
    cancelled: bool = False
    error: str = ""

    @property
    def ready(self) -> bool:
        """Whether it may be completed."""
        return self.state in (State.READY.value, State.STANDBY.value)


@record
class JobOptions:
    """How a job is to go: `speed` in bytes a second, 0 for any.

    Without `auto_finalize` the last step waits for `Job.finalize`; with `auto_dismiss` a job that
    is over is forgotten. `on_change` hears of every change of its state, on any thread.
    """

    speed: int = 0
    auto_finalize: bool = True
    auto_dismiss: bool = False
    on_change: Callable[[Any], None] = lambda job: None


DEFAULTS = JobOptions()


class Lock(Protocol):
    """A lock of the owner's."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...

    def release(self) -> None: ...


class Owner:
    """Who has the disk, and writes down which file it is.

    `lock` is taken before the disk stands still for that, so that the owner may take it in
    `moved`, and wait for requests while it has it.
    """

    lock: Lock

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def moved(self, path: str, format: str) -> None:
        """Write down, durably, that the disk is the image `path` from now on.

        What it is and what it was read the same at that moment. An exception lets it stay
        what it was.
        """


class Cancelled(Exception):  # noqa: N818 - nothing went wrong
    """Ends the work of a job that was cancelled."""


class Job(ABC):
    """One job on `live`, which ends when that is closed."""

    kind: ClassVar[str]

    def __init__(self, live: LiveDisk, id: str, options: JobOptions) -> None:
        self.live = live
        self.id = id
        self.options = options
        self.target = ""
        self.cancelled = False
        self.error: RingzeroError | None = None
        self.offset = 0
        self._state = State.CREATED
        self._speed = 0
        self._tokens: Tokens | None = None
        self._paused = self._finalize = False
        self._completing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self.set_speed(options.speed)

    # ---- what a kind of job implements -------------------------------------

    @property
    @abstractmethod
    def length(self) -> int:
        """How many bytes there are to do in all, as far as that is known."""

    def attach(self) -> None:
        """Begin, before the thread does; what the disk holds now is what counts."""
        return

    @abstractmethod
    def work(self) -> None:
        """Do the work, with a checkpoint after each piece; on the job's thread."""

    def prepare(self) -> None:
        """Make the result durable; on the job's thread, before `settle`."""
        return

    def settle(self) -> None:
        """Take the last step, after which the job has succeeded."""
        return

    def detach(self) -> None:
        """Let go of everything, however it ended. Must not raise."""
        return

    # ---- what is asked of a job --------------------------------------------

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self._state

    def info(self) -> JobInfo:
        """Return how it stands."""
        offset, error = self.offset, self.error
        return JobInfo(
            self.id,
            self.kind,
            self._state.value,
            offset,
            max(offset, self.length),
            self._speed,
            self.target,
            self.cancelled,
            "" if error is None else error.message,
        )

    def start(self) -> None:
        """Begin. Raises what `attach` raises, and then has let go of everything."""
        try:
            self.attach()
        except BaseException:
            self.detach()
            raise
        self._set(State.RUNNING)
        self.live.on_close.append(self.end)
        self._thread = threading.Thread(target=self._run, name=f"job-{self.kind}", daemon=True)
        self._thread.start()

    def set_speed(self, speed: int) -> None:
        """Do at most `speed` bytes a second from now on; 0 is any number."""
        if speed < 0:
            raise InvalidValueError(f"a speed of {speed} bytes a second makes no sense")
        with self._changed:
            self._speed = speed
            # What comes back in a tenth of a second may pass at once.
            rate = Bucket(max(1, speed // 10), max(1, speed // 10) / speed) if speed else None
            self._tokens = None if rate is None else Tokens(rate, time.monotonic())
            self._changed.notify_all()

    def pause(self) -> None:
        """Stop at the next checkpoint, until `resume`. Raises ConflictError."""
        with self._changed:
            self._require("paused", *ACTIVE)
            self._paused = True
            self._changed.notify_all()

    def resume(self) -> None:
        """Go on. Raises ConflictError."""
        with self._changed:
            self._require("resumed", *ACTIVE)
            self._paused = False
            self._changed.notify_all()

    def cancel(self, *, force: bool = False) -> None:
        """Have the job end without its last step; does not wait. Raises ConflictError.

        A mirror that is ready leaves a copy of the disk as it is now, unless `force`.
        """
        with self._changed:
            self._require("cancelled", *ACTIVE, State.WAITING, State.PENDING)
            self._cancel(force)
            self._changed.notify_all()

    def complete(self) -> None:
        """Have a job that is ready take its last step; does not wait. Raises ConflictError."""
        with self._changed:
            self._require("completed", State.READY, State.STANDBY)
            if self._paused:
                raise ConflictError(f"job {self.id!r} is paused", hint="resume it first")
            self._completing = True
            self._changed.notify_all()

    def finalize(self) -> None:
        """Let a job that is pending take its last step. Raises ConflictError."""
        with self._changed:
            self._require("finalized", State.PENDING)
            self._finalize = True
            self._changed.notify_all()

    def dismiss(self) -> None:
        """Forget a job that is over. Raises ConflictError."""
        with self._changed:
            self._require("dismissed", State.CONCLUDED)
        self._set(State.NULL)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is over; False when `timeout` seconds are over before."""
        over = (State.CONCLUDED, State.NULL)
        with self._changed:
            return self._changed.wait_for(lambda: self._state in over, timeout)

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until it may be completed, or is over; whether it may be completed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._state not in (State.CREATED, State.RUNNING, State.PAUSED), timeout
            )
            return self._state in (State.READY, State.STANDBY)

    def end(self) -> None:
        """Cancel it, whatever it does, and wait for its thread."""
        with self._changed:
            if self._state not in (State.CONCLUDED, State.NULL):
                self._cancel(force=True)
                self._changed.notify_all()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # ---- what a kind of job uses -------------------------------------------

    def checkpoint(self, size: int = 0) -> None:
        """Pay for `size` bytes that were done, and stop as long as somebody wants that.

        Raises Cancelled.
        """
        with self._changed:
            if self._tokens is not None:
                self._tokens.take(size)
            while True:
                if self.cancelled:
                    raise Cancelled
                if self._paused:
                    self._rest()
                    continue
                pause = self._tokens.wait(time.monotonic()) if self._tokens is not None else 0.0
                if not pause:
                    return
                self._changed.wait(pause)

    def _rest(self) -> None:
        """Be paused until that is over; `_changed` is held."""
        before = self._state
        self._set(State.STANDBY if before is State.READY else State.PAUSED)
        while self._paused and not self.cancelled:
            self._changed.wait()
        self._set(before)

    def become_ready(self) -> None:
        """Say that the job may be completed from now on."""
        if self._state is not State.READY:
            self._set(State.READY)

    def wait_completing(self, timeout: float) -> bool:
        """Wait a while for somebody to complete the job; whether somebody has."""
        with self._changed:
            if not (self._completing or self.cancelled or self._paused):
                self._changed.wait(timeout)
            return self._completing

    def holding(self, owner: Owner) -> _Holding:
        """Return the owner's lock as a context; raises Cancelled while waiting for it."""
        return _Holding(self, owner.lock)

    def _cancel(self, force: bool) -> None:
        """Note that the job is to end; `_changed` is held."""
        self.cancelled = True

    # ---- its thread --------------------------------------------------------

    def _run(self) -> None:
        try:
            self.work()
            self._set(State.WAITING)
            self.prepare()
            self._set(State.PENDING)
            self._await_finalize()
            self.settle()
        except Cancelled:
            self._set(State.ABORTING)
        except RingzeroError as fault:
            self._fail(fault)
        except Exception as fault:
            self._fail(RingzeroError(f"{type(fault).__name__}: {fault}"))
        finally:
            try:
                self.detach()
            finally:
                self.live.on_close.remove(self.end)
                self._set(State.CONCLUDED)
                if self.options.auto_dismiss:
                    self._set(State.NULL)

    def _fail(self, fault: RingzeroError) -> None:
        self.error = fault
        self._set(State.ABORTING)

    def _await_finalize(self) -> None:
        with self._changed:
            while not (self.options.auto_finalize or self._finalize):
                if self.cancelled:
                    raise Cancelled
                self._changed.wait()

    def _set(self, state: State) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()
        self.options.on_change(self)

    def _require(self, what: str, *states: State) -> None:
        if self._state not in states:
            raise ConflictError(
                f"job {self.id!r} is {self._state.value}, and cannot be {what}",
                hint="wait until it is ready" if what == "completed" else None,
            )


class _Holding:
    """A lock that is waited for only as long as the job is wanted."""

    def __init__(self, job: Job, lock: Lock) -> None:
        self._job = job
        self._lock = lock

    def __enter__(self) -> None:
        while not self._lock.acquire(timeout=_LOOK):
            self._job.checkpoint()

    def __exit__(self, *about: object) -> None:
        self._lock.release()
