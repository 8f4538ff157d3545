"""A daemon in this process, and a client of its HTTP API that is not ours."""

import asyncio
import http.client
import json
import socket
import threading

from ringzero.doors.contract import Address
from ringzero.doors.daemon import Daemon, Wanted


class Served:
    """`Served(directory, rest=[PATH])` runs the doors that are named, from `with` on."""

    def __init__(self, where, certificate=None, **doors):
        self.where = where
        wanted = [
            Wanted(name, text if isinstance(text, Address) else Address.parse(text))
            for name, texts in doors.items()
            for text in texts
        ]
        self.told = []
        self.daemon = Daemon(wanted, where, certificate, self.told.append)
        self._count = len(wanted)
        self.fault = None
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._up.wait(10)
        if self.fault is not None:
            raise self.fault
        return self

    def __exit__(self, *_):
        self.end()
        assert not self._thread.is_alive()

    def end(self):
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.stop.set)
        self._thread.join(15)

    def _run(self):
        async def run():
            self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
            tell = self.told.append

            def told(text):
                tell(text)
                if len(self.told) == self._count:
                    self._up.set()

            self.daemon._tell = told
            await self.daemon.run(self.stop)

        try:
            asyncio.run(run())
        except Exception as fault:
            self.fault = fault
        self._up.set()

    @property
    def path(self):
        """The path of the first door."""
        return self.told[0].partition(": ")[2]

    def connect(self):
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(20)
        link.connect(self.path)
        return link

    def ask(self, method, path, body=None, **headers):
        """Return (status, what the JSON says) of one request."""
        client = Client(self.path)
        try:
            return client.ask(method, path, body, **headers)[:2]
        finally:
            client.close()


class Client(http.client.HTTPConnection):
    """The standard library's client over a Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(self._path)

    def ask(self, method, path, body=None, **headers):
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.request(method, path, data, named)
        answer = self.getresponse()
        content = answer.read()
        is_json = answer.headers["content-type"] == "application/json"
        return answer.status, json.loads(content) if is_json and content else content, answer
