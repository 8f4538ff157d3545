"""Disks for other programs, by the Network Block Device protocol.

`wire` holds the numbers and layouts, `handshake` the negotiation, `transmission` what is
done for requests, none of them with I/O; `server` has the sockets. See docs/nbd.md.
"""
