"""Deployments without guests: machines' processes that serve HTTP themselves.

`python -m tests.deployment.fake SOCKET` has all modules loaded and forks: `starter.py SOCKET
machine DIRECTORY LOCK REPORT` is then a machine's process, `starter.py SOCKET deployment
DIRECTORY` a deployment's whose machines are such. The image is called "fake"; what it can run:

    serve TEXT      answers every request with TEXT; /env with its variables as JSON, /held when
                    somebody has asked for /release, /crash by its end with status 3, /sick by not
                    being well from then on
    sick TEXT       the same, and /healthz is 500 from the beginning
    deaf TEXT       listens and answers nobody
    stop STATUS     ends at once
"""

import json
import os
import signal
import socket
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ringzero.config.ports import Forward
from ringzero.control.host import launch as launching
from ringzero.control.machine import vmm
from ringzero.deployment import supervisor
from ringzero.image.micro import BootFiles
from ringzero.image.names import IMAGES
from tests.control.fake import Fake

_STARTER = Path(__file__).with_name("starter.py")


@IMAGES.register("fake")
def image(**_):
    null = Path("/dev/null")
    return BootFiles("fake", "0" * 24, null, null, "quiet", (), 0)


class Service(Fake):
    """A guest whose command is one of those above; its ports are sockets of this process."""

    def __init__(self, config, *, boot=False):
        super().__init__(config)
        self.sockets = {}
        for forward in (f for net in config.nets for f in net.ports):
            link = socket.create_server(("127.0.0.1", 0))
            self.sockets[forward.guest_port] = link
            self.nets.forwards.append(Forward(link.getsockname()[1], forward.guest_port))

    def _run(self, number, takes_input, token, words):
        env = {}
        while words[0] == "env" or "=" in words[0]:
            name, equals, value = words.pop(0).partition("=")
            env |= {name: value} if equals else {}
        verb, text, *_ = [*words, ""]
        if verb == "stop":
            self.console.say(f"the end of it: {text}\r\n".encode())
            self.over(number, int(text), token)
        elif verb in ("serve", "sick"):
            self.well = verb == "serve"
            self.crash = lambda: self.over(number, 3, token)
            for link in self.sockets.values():
                self.serve(link, text, env)
        elif verb != "deaf":
            super()._run(number, takes_input, token, words)

    def over(self, number, status, token):
        from ringzero.vm.guest.protocol import CONTROL, STDERR, STDOUT

        self.agent.receive(CONTROL, f"exit {number} {status}\n".encode())
        self.agent.receive(STDERR, token)
        self.agent.receive(STDOUT, token)

    def serve(self, link, text, env):
        machine, released = self, threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                status, body = 200, text
                if self.path == "/env":
                    body = json.dumps(env)
                elif self.path == "/held":
                    released.wait()
                elif self.path == "/release":
                    released.set()
                elif self.path == "/sick":
                    machine.well = False
                elif self.path == "/healthz" and not machine.well:
                    status, body = 500, "not well"
                elif self.path == "/crash":
                    machine.crash()
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        server = Server(link.getsockname(), Handler, bind_and_activate=False)
        server.socket.close()
        server.socket = link
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()


def build(config, reporter, *, boot=False):
    return Service(config)


def program(place, kind):
    """Return the command that starts a process of a kind by the process that forks."""
    return (sys.executable, "-S", "-E", str(_STARTER), str(place), kind)


def run(request, place):
    """In a new process: be a machine's or a deployment's."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    kind, *words = request["words"]
    if kind == "machine":
        return vmm.main(words, build)
    launching.PROGRAM = program(place, "machine")
    return supervisor.main(words)


def serve(place):
    """Fork a process for each that asks; tell it how the child, which leaves at once, ended."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(place)
    listener.listen(64)
    while True:
        link, _ = listener.accept()
        data, received, _, _ = socket.recv_fds(link, 1 << 20, 8)
        if not data:
            link.close()
            continue
        child = os.fork()
        if child == 0:
            _become(json.loads(data), received, place)
        for descriptor in received:
            os.close(descriptor)
        _, status = os.waitpid(child, 0)
        link.send(b"%d" % os.waitstatus_to_exitcode(status))
        link.close()


def _become(request, received, place):
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log, *rest = received
        for number in (1, 2):
            os.dup2(log, number)
        if rest:
            request["words"][2:] = map(str, rest)
        code = run(request, place)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
