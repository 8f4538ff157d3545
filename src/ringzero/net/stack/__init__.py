"""A TCP/IP stack on the guest's side of a network: bytes in, bytes out, no I/O, no clock."""
