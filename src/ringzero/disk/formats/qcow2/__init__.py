"""qcow2, versions 2 and 3 (QEMU, docs/interop/qcow2.txt).

`header` reads and writes the header, `refcounts` counts and allocates host
clusters, `mapping` finds them, `compressed` unpacks them, and `image` ties them
together in the order that survives a crash. On the image stand `compression`,
`snapshots`, `bitmaps` and `check`, which do what their names say. `create` lays
an empty image, and `disk` is what the contract asks for.
"""

from __future__ import annotations

from ringzero.disk.formats.qcow2.disk import Qcow2Disk

__all__ = ["Qcow2Disk"]
