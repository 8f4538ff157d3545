"""Has a process forked by one that has all modules loaded: what would take 0.4 s takes 0.03.

Run by its path, without site and without a module of the tree's; `tests.deployment.fake` has the
other side. It ends as the child does, which leaves a grandchild behind.
"""

import json
import os
import socket
import sys


def main():
    place, *words = sys.argv[1:]
    # Lock and report of a machine.
    passed = [int(word) for word in words[2:]]
    request = {"words": words, "environment": dict(os.environ), "directory": os.getcwd()}  # noqa: PTH109 - pathlib takes long
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.connect(place)
    socket.send_fds(link, [json.dumps(request).encode()], [1, *passed])
    return int(link.recv(16) or b"70")


if __name__ == "__main__":
    sys.exit(main())
