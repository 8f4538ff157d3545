"""Asks a machine, by a port of the host that leads to it, whether its service is well."""

from __future__ import annotations

import socket
import time

from ringzero.api.values import Probed
from ringzero.deployment.description import HTTP, Check

# Of an answer, in bytes: its first line is what is judged, and so much of it is kept.
_LONGEST_LINE, _KEPT = 4096, 512
_GOOD = range(200, 400)


def ask(check: Check, port: int) -> Probed:
    """Ask by HTTP or TCP at a port of 127.0.0.1; the answer's `exit_code` is 0 for a good one."""
    start, deadline = time.time(), time.monotonic() + check.timeout
    try:
        with socket.create_connection(("127.0.0.1", port), check.timeout) as link:
            code, output = (_http if check.kind == HTTP else _tcp)(link, check, deadline)
    except TimeoutError:
        code, output = 1, f"no answer within {check.timeout:g} s"
    except OSError as fault:
        code, output = 1, fault.strerror or str(fault)
    return Probed(start=start, end=time.time(), exit_code=code, output=output)


def _tcp(link: socket.socket, check: Check, deadline: float) -> tuple[int, str]:
    """Say nothing, and hear whether anybody is there.

    The host's end takes each connection; one that the guest refuses is reset then. One that the
    guest takes is answered, or ended as we end our side.
    """
    link.shutdown(socket.SHUT_WR)
    _receive(link, deadline, 1)
    return 0, f"port {check.port} answers"


def _http(link: socket.socket, check: Check, deadline: float) -> tuple[int, str]:
    request = (
        f"GET {check.path} HTTP/1.1\r\nHost: localhost:{check.port}\r\n"
        "User-Agent: ringzero-deploy\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    )
    link.sendall(request.encode())
    data = b""
    while b"\n" not in data and len(data) < _LONGEST_LINE:
        more = _receive(link, deadline, _LONGEST_LINE)
        if not more:
            break
        data += more
    line = data.partition(b"\n")[0].decode("latin-1").strip()
    words = line.split(" ", 2)
    status = words[1] if len(words) > 1 and words[0].startswith("HTTP/1.") else ""
    if not status.isdecimal():
        return 1, f"no answer of HTTP: {line[:_KEPT]!r}" if line else "it hung up"
    return int(int(status) not in _GOOD), f"GET {check.path}: {line[:_KEPT]}"


def _receive(link: socket.socket, deadline: float, size: int) -> bytes:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    link.settimeout(left)
    return link.recv(size)
