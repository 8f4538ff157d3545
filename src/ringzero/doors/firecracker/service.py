"""The wire: a request's method, path and body in, a status and JSON out."""

from __future__ import annotations

import asyncio
import socket
import sys
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from ringzero.doors.firecracker import faults, table
from ringzero.doors.firecracker.bodies import BodyError, parse
from ringzero.doors.firecracker.faults import ApiFault
from ringzero.doors.firecracker.instance import Instance
from ringzero.doors.firecracker.logs import Log
from ringzero.doors.firecracker.metrics import Metrics
from ringzero.doors.firecracker.table import Operation
from ringzero.doors.http.connection import HttpConnection
from ringzero.doors.http.messages import Request, Response, TooLongError

OK, NO_CONTENT, INTERNAL = 200, 204, 500
# Fields that do what others do now, by what is asked for.
_DEPRECATED: Mapping[str, tuple[str, ...]] = {
    "set_machine": ("cpu_template",),
    "update_machine": ("cpu_template",),
    "set_vsock": ("vsock_id",),
    "load_snapshot": ("mem_file_path", "enable_diff_snapshots"),
}
_REHEARSED = b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
_GROUPS = {"GET": "get_api_requests", "PUT": "put_api_requests", "PATCH": "patch_api_requests"}


class Service:
    """Answers requests about an instance, one at a time. `limit` bounds bodies, in bytes."""

    def __init__(self, instance: Instance, log: Log, metrics: Metrics, limit: int) -> None:
        self._instance, self._log, self._metrics = instance, log, metrics
        self._limit = limit
        # What is asked may take long, and is done in the order in which it came.
        self._worker = ThreadPoolExecutor(1, "fc_vmm")

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection to its end."""
        await HttpConnection(reader, writer, self._respond, _refuse_upgrade).serve()

    async def rehearse(self) -> None:
        """Serve a request of our own that asks for nothing: a client's then takes less."""
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=ours)
            try:
                theirs.sendall(_REHEARSED)
                theirs.shutdown(socket.SHUT_WR)
                await HttpConnection(reader, writer, self._try, _refuse_upgrade).serve()
            finally:
                writer.close()

    async def _try(self, request: Request) -> Response:
        parse(await request.read(self._limit))
        await self.work(lambda: None)
        return Response(NO_CONTENT)

    async def work(self, call: Any) -> Any:
        """Return what `call()` does, on the thread on which requests are served."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, call)

    def close(self) -> None:
        """Serve no request any more; returns when the one in hand is done."""
        self._worker.shutdown(cancel_futures=True)

    async def _respond(self, request: Request) -> Response:
        try:
            data = await request.read(self._limit)
        except TooLongError:
            size = request.headers.get("content-length", f"over {self._limit}")
            text = (
                f"Request payload with size {size} is larger than the limit of {self._limit} "
                "allowed by server."
            )
            self._log.error(text)
            return Response.json({"error": text, "fault_message": text}, faults.TOO_LARGE)
        response: Response = await self.work(
            lambda: self.answer(request.method, request.target, data)
        )
        return response

    def answer(self, method: str, target: str, data: bytes) -> Response:
        """Return the response to a request."""
        try:
            path = urlsplit(target).path
        except ValueError:
            path = target
        shown = f"{method.capitalize()} request on {path!r}"
        self._log.info(f"The API server received a {shown}{_shown_body(path, data)}.")
        try:
            operation, identifier = table.find(method, path, body=bool(data))
            fields = self._read(operation, identifier, data)
            result = self._instance.handle(operation, identifier, fields)
        except ApiFault as fault:
            self._log.error(
                f"Received Error. Status code: {fault.status}. Message: {fault.message}"
            )
            return Response.json({"fault_message": fault.message}, fault.status)
        except Exception:
            # Nothing of the process's inside goes to a client.
            traceback.print_exc(file=sys.stderr)
            return Response.json(
                {"fault_message": "a fault of ringzero; its log has more"}, INTERNAL
            )
        headers = self._deprecations(operation, fields)
        if result is None and method != "GET":
            self._log.info("The request was executed successfully. Status code: 204 No Content.")
            return Response(NO_CONTENT, headers=headers)
        self._log.info("The request was executed successfully. Status code: 200 OK.")
        return Response.json(result, OK)

    def _read(self, operation: Operation, identifier: str, data: bytes) -> Any:
        """Return what a request's body says, counted. Raises ApiFault."""
        group = _GROUPS.get(operation.method, "")
        if operation.counter:
            self._metrics.count(group, f"{operation.counter}_count")
        try:
            if operation.free:
                return parse(data)
            if operation.body is None:
                return None
            fields = operation.body.read(data) if data else operation.body({})
            if operation.identifier and fields[operation.identifier] != identifier:
                raise ApiFault(_other_id(operation, identifier, fields))
        except (ApiFault, BodyError) as fault:
            if operation.counter:
                self._metrics.count(group, f"{operation.counter}_fails")
            if isinstance(fault, BodyError):
                raise faults.not_json(fault.message) from None
            raise
        return fields

    def _deprecations(self, operation: Operation, fields: Any) -> list[tuple[str, str]]:
        old = [name for name in _DEPRECATED.get(operation.name, ()) if name in (fields or {})]
        if operation.name == "set_metadata_config" and fields.get("version", "V1") == "V1":
            old = ["V1"]
        if not old:
            return []
        self._metrics.count("deprecated_api", "deprecated_http_api_calls")
        self._log.warn(f"{operation.method} {operation.path}: {' and '.join(old)}: deprecated.")
        return [("deprecation", "true")]


def _other_id(operation: Operation, identifier: str, fields: Mapping[str, Any]) -> str:
    if operation.path.startswith("/network-interfaces"):
        other = fields[operation.identifier]
        return f"The id from the path [{identifier}] does not match the id from the body [{other}]!"
    return faults.OTHER_ID


def _shown_body(path: str, data: bytes) -> str:
    """Return what the log has of a body; metadata may be secret."""
    if not data or path.startswith("/mmds"):
        return ""
    return f" with body {data[:1024].decode('utf-8', 'replace')!r}"


async def _refuse_upgrade(request: Request, rest: bytes) -> None:
    """No connection becomes anything else; it ends."""
