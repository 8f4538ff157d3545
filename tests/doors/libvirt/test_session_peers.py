"""A session behind a socket, for the real virsh and the real libvirt-python."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from ringzero.doors.libvirt.constants import Feature, Lifecycle
from ringzero.doors.libvirt.faults import Error, ErrorCode, ErrorDomain
from ringzero.doors.libvirt.session import (
    Call,
    Session,
    StreamAbort,
    StreamData,
    StreamEnd,
    StreamHole,
    unsupported,
)
from ringzero.doors.libvirt.values import DomainHandle, DomainStatistics, Parameter, VolumeHandle

WEB, DB = DomainHandle("web", bytes(range(16)), 3), DomainHandle("db", bytes(16), -1)
MACHINES = [WEB, DB]
SYSTEM_PYTHON = Path("/usr/bin/python3")
FEATURES = (
    Feature.TYPED_PARAM_STRING,
    Feature.PROGRAM_KEEPALIVE,
    Feature.REMOTE_EVENT_CALLBACK,
    Feature.REMOTE_CLOSE_CALLBACK,
)
# One of each kind of parameter, and one that no double holds.
PARAMETERS = {"bool": True, "below": -5, "large": (1 << 53) + 1, "half": 0.5, "text": "ä"}
NOTHING = (
    *("CONNECT_OPEN", "CONNECT_CLOSE", "CONNECT_REGISTER_CLOSE_CALLBACK"),
    *("CONNECT_UNREGISTER_CLOSE_CALLBACK", "CONNECT_DOMAIN_EVENT_CALLBACK_DEREGISTER_ANY"),
)
# Bytes of a volume that is sent, and the hole in it.
DATA, HOLE = b"a" * 300_000, 1 << 30
# An upload to this place is refused when its first bytes come.
FULL = 7


class Server:
    """Answers clients on a socket, one after the other; `log` has what they wrote into streams."""

    def __init__(self, path):
        self.log = []
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(path))
        self.socket.listen()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        session, full = Session(), set()
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(1 << 16):
                session.feed(data)
                for item in session.items():
                    if isinstance(item, Call):
                        self.answer(session, item)
                        if item.arguments.get("offset") == FULL:
                            full.add(item.packet.serial)
                    elif isinstance(item, StreamData) and item.serial in full:
                        error = Error(ErrorCode.OPERATION_FAILED, ErrorDomain.STORAGE, "disk full")
                        session.abort(item.serial, error)
                        self.log.append("full")
                    else:
                        self.log.append(item)
                        if isinstance(item, StreamEnd):
                            session.finish(item.serial)
                connection.sendall(session.take())

    def answer(self, session, call):
        results = self.results(session, call.name, **call.arguments)
        if isinstance(results, Error):
            session.fail(call, results)
            return
        session.reply(call, **results)
        serial = call.packet.serial
        if call.name == "DOMAIN_SCREENSHOT":
            session.write(serial, b"P6 1 1 255 abc")
            session.write_end(serial)
        if call.name == "STORAGE_VOL_DOWNLOAD":
            session.write(serial, DATA)
            if call.arguments["flags"]:
                session.write_hole(serial, HOLE)
            session.write(serial, b"end")
            session.write_end(serial)

    def results(self, session, procedure, /, **given):
        answers = {
            "AUTH_LIST": lambda: {"types": [0]},
            "CONNECT_SUPPORTS_FEATURE": lambda: {"supported": int(given["feature"] in FEATURES)},
            "CONNECT_GET_URI": lambda: {"uri": "ringzero:///session"},
            "CONNECT_LIST_ALL_DOMAINS": lambda: {"domains": MACHINES, "ret": len(MACHINES)},
            "DOMAIN_GET_STATE": lambda: {"state": 1 if given["domain"].id >= 0 else 5, "reason": 1},
            "DOMAIN_GET_XML_DESC": lambda: {"xml": "<domain/>\n"},
            "DOMAIN_SCREENSHOT": lambda: {"mime": "image/x-portable-pixmap"},
            "STORAGE_VOL_LOOKUP_BY_PATH": lambda: {"volume": VolumeHandle("p", "v", "/v")},
            "STORAGE_VOL_DOWNLOAD": dict,
            "STORAGE_VOL_UPLOAD": dict,
            **dict.fromkeys(NOTHING, dict),
            "CONNECT_GET_ALL_DOMAIN_STATS": lambda: {
                "ret_stats": [
                    DomainStatistics(WEB, [Parameter.of(*item) for item in PARAMETERS.items()])
                ]
            },
            "CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY": lambda: {
                "callback_id": session.register("domain", given["event_id"], given["domain"])
            },
            "DOMAIN_LOOKUP_BY_NAME": lambda: self.find(given["name"]),
            "DOMAIN_SUSPEND": lambda: self.suspend(session, given["domain"]),
        }
        return answers.get(procedure, lambda: unsupported(procedure))()

    def find(self, name):
        for machine in MACHINES:
            if machine.name == name:
                return {"domain": machine}
        text = f"Domain not found: no domain with matching name {name!r}"
        return Error(ErrorCode.NO_DOMAIN, ErrorDomain.QEMU, text)

    def suspend(self, session, domain):
        for number in session.interested("domain", 0, domain):
            session.event(
                "DOMAIN_EVENT_CALLBACK_LIFECYCLE",
                callback_id=number,
                domain=domain,
                event=Lifecycle.SUSPENDED,
                detail=0,
            )
        return {}


@pytest.fixture
def served(tmp_path):
    """A server, and the address by which libvirt's clients find it."""
    path = tmp_path / "sock"
    server = Server(path)
    yield server, f"ringzero+unix:///session?socket={path}"
    server.socket.close()


@pytest.fixture
def virsh(served, tmp_path):
    """Run the real virsh."""
    if shutil.which("virsh") is None:
        pytest.skip("no virsh (package libvirt-clients)")

    def run(*words):
        return subprocess.run(
            ["virsh", "-c", served[1], *words],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"LC_ALL": "C", "HOME": str(tmp_path)},
            check=False,
        )

    return run


@pytest.mark.peer
def test_virsh_understands_a_session(virsh, tmp_path):
    done = virsh("list", "--all")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[2:] if line.strip()]
    assert rows == [["3", "web", "running"], ["-", "db", "shut", "off"]]
    assert virsh("domstate", "db").stdout.strip() == "shut off"
    assert virsh("domuuid", "web").stdout.strip() == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert virsh("dumpxml", "web").stdout.strip() == "<domain/>"
    assert virsh("suspend", "web").returncode == 0
    shot = tmp_path / "shot.ppm"
    done = virsh("screenshot", "web", str(shot))
    assert done.returncode == 0, done.stderr
    assert shot.read_bytes() == b"P6 1 1 255 abc"


@pytest.mark.peer
def test_virsh_understands_errors(virsh):
    done = virsh("dominfo", "nobody")
    assert done.returncode == 1
    assert "failed to get domain 'nobody'" in done.stderr
    done = virsh("reset", "web")
    assert done.returncode == 1
    assert "not supported by the connection driver: DOMAIN_RESET" in done.stderr


CLIENT = """
import json, sys
import libvirt

libvirt.virEventRegisterDefaultImpl()
libvirt.registerErrorHandler(lambda context, error: None, None)
connection = libvirt.open(sys.argv[1])
events, received = [], []
connection.domainEventRegisterAny(
    None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
    lambda c, domain, event, detail, o: events.append([domain.name(), event, detail]), None,
)
connection.lookupByName("web").suspend()
while not events:
    libvirt.virEventRunDefaultImpl()
volume = connection.storageVolLookupByPath("/v")
download = connection.newStream()
volume.download(download, 0, 0, libvirt.VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM)
download.sparseRecvAll(
    lambda s, data, o: received.append(len(data)), lambda s, length, o: received.append(-length),
    None,
)
download.finish()
upload = connection.newStream()
volume.upload(upload, 0, 0, libvirt.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM)
upload.send(b"x" * 100000)
upload.sendHole(1 << 20)
upload.send(b"end")
upload.finish()
refused = ""
full = connection.newStream()
volume.upload(full, 7, 0, 0)
try:
    for _ in range(50):
        full.send(b"y" * 200000)
    full.finish()
except libvirt.libvirtError as fault:
    refused = fault.get_error_message()
aborted = connection.newStream()
volume.download(aborted, 0, 0, 0)
aborted.recv(10)
aborted.abort()
print(json.dumps({
    "events": events, "received": received, "refused": refused,
    "statistics": connection.getAllDomainStats(0, 0)[0][1], "alive": connection.isAlive(),
}))
connection.close()
"""


@pytest.mark.peer
def test_libvirt_python_understands_events_and_streams(served):
    """Events, streams with holes both ways, streams that either side aborts, typed parameters."""
    if not SYSTEM_PYTHON.exists():
        pytest.skip("no Python of the system's")
    there = subprocess.run([SYSTEM_PYTHON, "-c", "import libvirt"], capture_output=True, env={})
    if there.returncode:
        pytest.skip("no libvirt for the system's Python (package python3-libvirt)")
    server, uri = served
    done = subprocess.run(
        [SYSTEM_PYTHON, "-c", CLIENT, uri], capture_output=True, text=True, timeout=120, env={}
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["events"] == [["web", Lifecycle.SUSPENDED, 0]]
    assert sum(n for n in told["received"] if n > 0) == len(DATA) + 3
    assert [n for n in told["received"] if n < 0] == [-HOLE]
    assert told["refused"] == "disk full"
    assert told["statistics"] == PARAMETERS
    assert told["alive"] == 1
    written = [item for item in server.log if isinstance(item, StreamData | StreamHole)]
    assert [len(i.data) if isinstance(i, StreamData) else -i.length for i in written] == [
        100_000,
        -(1 << 20),
        3,
    ]
    assert "full" in server.log
    assert sum(isinstance(item, StreamEnd) for item in server.log) == 2
    assert sum(isinstance(item, StreamAbort) for item in server.log) == 1
