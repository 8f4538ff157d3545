"""Firecracker's API over the machine of this process: HTTP on a Unix socket, one microVM.

`table` says what the API is, `bodies` reads what clients send, `configuration` keeps it until the
machine begins, `instance` is the machine's life, `service` the wire, `process` the program. Paths,
fields, codes and sentences are those of Firecracker's public API (1.12 to 1.16).
"""
