"""The largest lengths that libvirt's clients send and take, by name; all are the protocol's own.

They keep whoever decodes a packet from making more of it than it can be meant to hold. A name is
used by the notation of the procedures (`ringzero.doors.libvirt.procedures.notation`).
"""

from __future__ import annotations

# Of a packet, its length included: what a connection begins with, and what it may have later.
# Nothing that comes before a connection is opened is longer than a name.
FIRST_PACKET = 64 << 10
PACKET = (32 << 20) + 4
# Data in one packet of a stream that goes out: what clients before 1.2 took. Those that come in are
# bounded as all packets are: go-libvirt's are of 4 MiB.
STREAM_DATA = 262_120
# A descriptor table entry each: more are never passed with one packet.
DESCRIPTORS = 32

LIMITS = {
    # Text of any kind, XML above all.
    "STRING": 4 << 20,
    # Domains, networks, pools, volumes, snapshots, secrets, and so on, and their names.
    "OBJECTS": 16384,
    # Devices of the host and what they can do.
    "NODE_DEVICES": 65536,
    # Addresses that a network has given out.
    "LEASES": 65536,
    # Parameters that tune one thing; counts of a processor; keys pressed at once.
    "TUNABLES": 16,
    "BLOCK_TUNABLES": 32,
    # Parameters of migration, saving, jobs, performance counters.
    "PARAMETERS": 64,
    # What a guest tells of itself: interfaces, addresses, users; counts of all its processors.
    "FACTS": 2048,
    # Counts of one domain among those of all.
    "STATISTICS": 262144,
    "MEMORY_STATISTICS": 1024,
    # Ways to say who one is: kinds of login, identities of a viewer.
    "IDENTITIES": 20,
    # Nodes of memory (NUMA cells).
    "CELLS": 1024,
    # Mounted file systems, the disks of each, and disks with errors.
    "FILE_SYSTEMS": 256,
    # Processors of which one that all can be is computed, and names of models.
    "BASELINES": 256,
    "CPU_MODELS": 8192,
    # A bit for each processor of the host, and such maps for each of a domain's.
    "CPUMAP": 2048,
    "CPUMAPS": 8 << 20,
    # What the two sides of a migration tell one another; a look into memory or a disk.
    "BUFFER": 4 << 20,
    "SECRET": 65536,
    "SASL": 65536,
    # Security labels (VIR_SECURITY_LABEL_BUFLEN and its kin), with the NUL behind them.
    "LABELS": 64,
    "LABEL": 4097,
    "MODEL": 257,
}
STRING = LIMITS["STRING"]
