"""gdb's remote serial protocol: a machine's vCPUs as the threads of a program.

packets.py   the wire: frames, checksums, escapes; no I/O
stub.py      what gdb asks, and a machine that answers
monitor.py   gdb's `monitor` commands
listener.py  a port or a socket, for one debugger at a time
"""
