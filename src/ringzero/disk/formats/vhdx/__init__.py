"""VHDX: dynamic, fixed, differencing ([MS-VHDX], "Virtual Hard Disk v2 (VHDX) File Format").

`structures` reads and writes headers, region tables and metadata, `log` keeps
and replays the log, `create` lays an empty image, and `disk` ties them together.
"""

from __future__ import annotations

from ringzero.disk.formats.vhdx.disk import VhdxDisk

__all__ = ["VhdxDisk"]
