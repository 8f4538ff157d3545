"""VHD: fixed, dynamic, differencing (Microsoft, "Virtual Hard Disk Image Format" 1.0).

`structures` reads and writes footer, dynamic header and parent locators,
`create` lays empty images, and `disk` ties them together.
"""

from __future__ import annotations

from ringzero.disk.formats.vhd.disk import VhdDisk

__all__ = ["VhdDisk"]
