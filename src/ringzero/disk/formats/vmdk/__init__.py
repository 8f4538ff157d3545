"""VMDK (VMware, "Virtual Disk Format 5.0" and 1.1): sparse, flat, split and stream-optimized.

A disk is a row of extents that a text names. `descriptor` reads and writes
that text, `extents` are the parts (sparse, flat, zero), `stream` appends
compressed grains, `create` lays empty images, and `disk` ties them together.
"""

from __future__ import annotations

from ringzero.disk.formats.vmdk.disk import VmdkDisk

__all__ = ["VmdkDisk"]
