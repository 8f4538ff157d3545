"""qcow2, versions 2 and 3 (QEMU, docs/interop/qcow2.txt).

`header` reads and writes the header, `refcounts` counts and allocates host
clusters, `mapping` finds them, `compressed` packs them, `snapshots`, `bitmaps`
and `check` do what their names say, `create` lays an empty image, and `disk`
ties them together in the order that survives a crash.
"""

from __future__ import annotations

from ringzero.disk.formats.qcow2.disk import Qcow2Disk

__all__ = ["Qcow2Disk"]
