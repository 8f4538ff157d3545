"""A process that supplies a guest's memory from a file, as a user's page fault handler does.

python pager.py SOCKET MEMORY LOG. It tells in LOG how many pages it has supplied. What was
removed is zero from then on.
"""

import ctypes
import fcntl
import json
import mmap
import os
import select
import socket
import struct
import sys
from pathlib import Path

PAGE = mmap.PAGESIZE
# linux/userfaultfd.h: struct uffd_msg, struct uffdio_copy.
MESSAGE, COPY = struct.Struct("<B7xQQQ"), struct.Struct("<QQQQq")
PAGEFAULT, REMOVE = 0x12, 0x15
UFFDIO_COPY = 0xC028AA03


def main(place, memory, log):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen(1)
    link, _ = listener.accept()
    told, (fd,), _, _ = socket.recv_fds(link, 1 << 16, 1)
    (region,) = json.loads(told)
    assert region["page_size"] == PAGE
    with Path(memory).open("rb") as file:
        content = file.read()
    assert len(content) == region["size"]
    base, supplied, gone = region["base_host_virt_addr"], 0, set()
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    poller.register(link, select.POLLIN)
    while True:
        ready = dict(poller.poll())
        if link.fileno() in ready:
            break
        kind, first, second, _ = MESSAGE.unpack(os.read(fd, MESSAGE.size))
        if kind == REMOVE:
            gone.update(range(first - base, second - base, PAGE))
            continue
        assert kind == PAGEFAULT
        offset = (second - base) // PAGE * PAGE
        data = bytes(PAGE) if offset in gone else content[offset : offset + PAGE]
        source = ctypes.create_string_buffer(data, PAGE)
        request = COPY.pack(base + offset, ctypes.addressof(source), PAGE, 0, 0)
        try:
            fcntl.ioctl(fd, UFFDIO_COPY, bytearray(request))
        except (FileExistsError, BlockingIOError, FileNotFoundError):
            continue
        supplied += 1
        Path(log).write_text(str(supplied))


if __name__ == "__main__":
    main(*sys.argv[1:])
