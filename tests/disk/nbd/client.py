"""A client of the NBD protocol that does what it is told, right or wrong."""

import socket
import struct

OPTION = struct.Struct(">8sII")
REPLY = struct.Struct(">QIII")
ACK = 1
ERROR = 1 << 31


class Client:
    def __init__(self, address, flags=3, timeout=30):
        kind = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.link = socket.socket(kind, socket.SOCK_STREAM)
        self.link.settimeout(timeout)
        self.link.connect(address)
        assert self.take(16) == b"NBDMAGICIHAVEOPT"
        assert struct.unpack(">H", self.take(2)) == (3,)
        if flags is not None:
            self.link.sendall(struct.pack(">I", flags))

    def __enter__(self):
        return self

    def __exit__(self, *about):
        self.link.close()

    def take(self, count):
        data = b""
        while len(data) < count:
            piece = self.link.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def ended(self):
        try:
            return self.link.recv(1) == b""
        except ConnectionError:
            return True

    # ---- the handshake

    def ask(self, option, body=b""):
        self.link.sendall(OPTION.pack(b"IHAVEOPT", option, len(body)) + body)

    def replies(self, option):
        """Return the answers to an option, up to an acknowledgement or an error."""
        found = []
        while True:
            magic, about, kind, length = REPLY.unpack(self.take(REPLY.size))
            assert magic == 0x3E889045565A9
            assert about == option
            found.append((kind, self.take(length)))
            if kind == ACK or kind & ERROR:
                return found

    def option(self, option, body=b""):
        self.ask(option, body)
        return self.replies(option)

    def go(self, name="", *, structured=False, allocation=False):
        """Choose an export; return (size, flags)."""
        text = name.encode()
        if structured:
            assert self.option(8) == [(ACK, b"")]
        if allocation:
            query = b"base:allocation"
            body = struct.pack(">I", len(text)) + text + struct.pack(">II", 1, len(query)) + query
            assert [kind for kind, _ in self.option(10, body)] == [4, ACK]
        body = struct.pack(">I", len(text)) + text + struct.pack(">H", 0)
        found = dict(self.option(7, body))
        assert ACK in found, found
        return struct.unpack(">QH", found[3][2:])

    # ---- transmission

    def request(self, kind, offset=0, length=0, *, flags=0, cookie=7, payload=b""):
        head = struct.pack(">IHHQQI", 0x25609513, flags, kind, cookie, offset, length)
        self.link.sendall(head + payload)

    def simple(self, length=0, cookie=7):
        """Return (error, data) of a simple reply."""
        magic, error, about = struct.unpack(">IIQ", self.take(16))
        assert magic == 0x67446698
        assert about == cookie
        return error, b"" if error else self.take(length)

    def chunks(self, cookie=7):
        """Return [(type, payload)] of a structured reply."""
        found = []
        while True:
            magic, flags, kind, about, length = struct.unpack(">IHHQI", self.take(20))
            assert magic == 0x668E33EF
            assert about == cookie
            found.append((kind, self.take(length)))
            if flags & 1:
                return found

    def read(self, offset, length):
        self.request(0, offset, length)
        error, data = self.simple(length)
        assert not error
        return data
