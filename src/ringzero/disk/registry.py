"""The registry of disk formats: one module below `formats` each, found by its name."""

from __future__ import annotations

from ringzero.disk.contract import Disk
from ringzero.registry import Registry

FORMATS: Registry[type[Disk]] = Registry("disk format", "ringzero.disk.formats")
