"""The process that is a microVM: its socket, its console, its signals, its exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.doors.firecracker import confinement, table
from ringzero.doors.firecracker.bodies import BodyError, parse
from ringzero.doors.firecracker.configuration import TAP, Configuration
from ringzero.doors.firecracker.console import SerialOutput, typing
from ringzero.doors.firecracker.exitcodes import BAD_CONFIGURATION, GENERIC, OK
from ringzero.doors.firecracker.faults import ApiFault
from ringzero.doors.firecracker.instance import Instance
from ringzero.doors.firecracker.logs import Log
from ringzero.doors.firecracker.metadata import Metadata
from ringzero.doors.firecracker.metrics import PERIOD, Metrics
from ringzero.doors.firecracker.service import Service
from ringzero.errors import ConflictError, RingzeroError
from ringzero.host import process
from ringzero.host.unixsocket import Listener
from ringzero.records import record
from ringzero.vm.exit import Exit, ExitReason

if TYPE_CHECKING:
    from ringzero.vm.machine import Machine

# The name that the process shows: clients look for it.
PROCESS_NAME = "firecracker"
# A microVM's name: letters, digits and hyphens.
IDENTIFIER = re.compile(r"[A-Za-z0-9-]{1,64}")
# The largest body, and document of metadata, where nothing is said, in bytes.
MAXIMUM_PAYLOAD = 51_200
_BACKLOG = 64
# How long connections may take to end, in seconds: a client has two for all of the process.
_END = 0.5
# Sections of a configuration file in the order in which they are taken, with what takes them.
_SECTIONS = (
    ("logger", "PUT", "/logger"),
    ("metrics", "PUT", "/metrics"),
    ("machine-config", "PUT", "/machine-config"),
    ("cpu-config", "PUT", "/cpu-config"),
    ("boot-source", "PUT", "/boot-source"),
    ("drives", "PUT", "/drives/{id}"),
    ("network-interfaces", "PUT", "/network-interfaces/{id}"),
    ("vsock", "PUT", "/vsock"),
    ("balloon", "PUT", "/balloon"),
    ("mmds-config", "PUT", "/mmds/config"),
    ("entropy", "PUT", "/entropy"),
    ("pmem", "PUT", "/pmem/{id}"),
    ("memory-hotplug", "PUT", "/hotplug/memory"),
)


@record
class Options:
    """What the command line says. `socket` None is no API; `network` as `Configuration` has it.

    With `jail` it gives up what it does not need (`confinement`).
    """

    socket: Path | None
    identifier: str = "anonymous-instance"
    config_file: Path | None = None
    metadata: Path | None = None
    logger: dict[str, Any] | None = None
    metrics: Path | None = None
    payload: int = MAXIMUM_PAYLOAD
    metadata_limit: int | None = None
    network: str = TAP
    started: int | None = None
    boot_timer: bool = False
    jail: bool = False


def run(options: Options) -> int:
    """Be the microVM until it ends; return the exit code. Raises RingzeroError."""
    process.set_title(PROCESS_NAME)
    if options.jail:
        confinement.begin(options.network)
    return asyncio.run(_Process(options).run())


class _Process:
    def __init__(self, options: Options) -> None:
        self._options = options
        self._log = Log(options.identifier)
        self._metrics = Metrics(options.identifier)
        limit = options.payload if options.metadata_limit is None else options.metadata_limit
        self._output = SerialOutput(self._metrics)
        self._instance = Instance(
            options.identifier,
            Configuration(options.network, boot_timer=options.boot_timer),
            self._log,
            self._metrics,
            Metadata(limit, lambda name: self._metrics.count("mmds", name)),
            console=self._output,
            ended=self._ended,
            confine=self._confine,
        )
        self._end: Exit | None = None
        self._signal = 0
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event

    async def run(self) -> int:
        options = self._options
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        if options.logger:
            self._log.configure(options.logger)
        if options.metrics is not None:
            self._metrics.configure({"metrics_path": str(options.metrics)})
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._loop.add_signal_handler(number, self._signalled, number)
        self._log.info(f"Running Firecracker v{table.API_VERSION}")
        service = Service(self._instance, self._log, self._metrics, options.payload)
        code: int | None = None
        try:
            with contextlib.ExitStack() as stack:
                listener = self._listen(stack)
                self._instance.make_ready()
                self._read_metadata()
                if options.config_file is not None:
                    await service.work(self._start_from_file)
                stack.enter_context(typing(self._instance))
                code = await self._serve(service, listener)
        finally:
            self._instance.close()
            service.close()
            self._metrics.close()
            self._log.info(f"Firecracker exiting. exit_code={1 if code is None else code}")
            self._log.close()
            self._output.close()
        return code

    def _listen(self, stack: contextlib.ExitStack) -> Listener | None:
        path = self._options.socket
        if path is None:
            return None
        if os.path.lexists(path):
            raise ConflictError(
                f"Failed to open the API socket at: {path}. Check that it is not already used.",
                hint="remove what an earlier process has left there, or give another --api-sock",
                path=path,
            )
        listener = Listener(path, _BACKLOG)
        stack.callback(listener.close)
        return listener

    async def _serve(self, service: Service, listener: Listener | None) -> int:
        tasks: set[asyncio.Task[None]] = set()

        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await service.converse(reader, writer)
            except (ConnectionError, TimeoutError, asyncio.CancelledError):
                # The client's affair, or the end of all.
                pass
            finally:
                writer.close()
                tasks.discard(task)

        server = None
        if listener is not None:
            server = await asyncio.start_unix_server(converse, sock=listener.socket)
            self._log.info("API server started.")
            self._note_start()
            await service.rehearse()
        flushing = asyncio.ensure_future(self._flush_metrics())
        try:
            await self._stop.wait()
            # Who has asked for the start of a guest that is gone by now hears that it began.
            await service.work(lambda: None)
            await asyncio.sleep(0)
        finally:
            flushing.cancel()
            if server is not None:
                server.close()
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=_END)
        return self._code()

    def _code(self) -> int:
        """Return the exit code: a guest that ends by itself, however it does, is no failure."""
        if self._signal:
            return 128 + self._signal
        if self._end is None:
            return GENERIC
        if self._end.reason in (ExitReason.PANIC, ExitReason.TRIPLE_FAULT):
            self._log.warn(f"the guest ended: {self._end.reason.value}")
        return OK

    def _signalled(self, number: int) -> None:
        self._signal = self._signal or number
        self._stop.set()

    def _confine(self, machine: Machine) -> None:
        if self._options.jail:
            confinement.complete(machine.config, str(machine.stats().get("engine", "")), self._log)

    def _ended(self, end: Exit | None) -> None:
        self._end = end
        self._log.info("Vmm is stopping.")
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)

    async def _flush_metrics(self) -> None:
        while True:
            await asyncio.sleep(PERIOD)
            self._metrics.flush()

    def _note_start(self) -> None:
        if self._options.started is not None:
            took = max(0, time.time_ns() // 1000 - self._options.started)
            self._metrics.store("api_server", "process_startup_time_us", took)
        used = time.process_time_ns() // 1000
        self._metrics.store("api_server", "process_startup_time_cpu_us", used)

    # ---- the configuration file -------------------------------------------

    def _read_metadata(self) -> None:
        if self._options.metadata is not None:
            value = _read_json(self._options.metadata)
            try:
                self._instance.metadata.put(value)
            except ApiFault as fault:
                raise BadConfigurationError(fault.message) from fault

    def _start_from_file(self) -> None:
        """Take the configuration file as if a client had said it, and start the machine."""
        assert self._options.config_file is not None
        path = self._options.config_file
        whole = _read_json(path)
        if not isinstance(whole, dict):
            raise BadConfigurationError(f"{path} holds no JSON object")
        if "boot-source" not in whole:
            raise BadConfigurationError(f"{path}: missing field `boot-source`")
        operations = {(o.method, o.path): o for o in table.OPERATIONS}
        try:
            for section, method, place in _SECTIONS:
                operation = operations[method, place]
                value = whole.get(section)
                several = value if table.ID in place and isinstance(value, list) else [value]
                for item in several:
                    if item is None:
                        continue
                    assert operation.body is not None
                    fields = operation.body(item)
                    self._instance.handle(
                        operation, str(fields.get(operation.identifier, "")), fields
                    )
            self._instance.start()
        except (ApiFault, BodyError) as fault:
            raise BadConfigurationError(f"{path}: {fault.message}") from fault


class BadConfigurationError(RingzeroError):
    """A configuration file that makes no machine."""

    kind = "configuration"
    exit_code = BAD_CONFIGURATION


def _read_json(path: Path) -> Any:
    try:
        return parse(path.read_bytes())
    except OSError as fault:
        raise BadConfigurationError(f"cannot read {path}: {fault.strerror}") from fault
    except BodyError as fault:
        raise BadConfigurationError(f"{path} is no JSON: {fault.message}") from fault
