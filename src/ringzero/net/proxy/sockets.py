"""Sockets that are made because a guest wants them: the machine's own needs come first.

Whoever runs the machine opens files too, for a command or a console. A guest that connects
without end would leave none, and nobody could stop it.
"""

from __future__ import annotations

import errno
import os
import resource
import socket

# Descriptors that guests do not get, but for at most this part of all.
RESERVE, _PART = 32, 4


def open_socket(family: int, kind: int, protocol: int = 0) -> socket.socket:
    """Return a socket that does not block; raises OSError, EMFILE where too few would be left."""
    return spare(socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol))


def spare(link: socket.socket) -> socket.socket:
    """Return a socket that was made for a guest, or close it where too few would be left.

    The kernel gives the lowest descriptor that is free. Raises OSError, EMFILE.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and link.fileno() >= limit - min(RESERVE, limit // _PART):
        link.close()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return link
