"""Which objects a client lists, by flags in groups."""

from __future__ import annotations

from ringzero.doors.libvirt.constants import ListObjects


def selected(flags: int, *groups: dict[int, bool]) -> bool:
    """Return whether an object is among those that the flags of a list ask for.

    A group has flags that exclude one another, with whether each holds for the object. Of a group
    no flag of which is asked for, nothing is asked.
    """
    for group in groups:
        asked = [holds for flag, holds in group.items() if flags & flag]
        if asked and not any(asked):
            return False
    return True


def object_selected(flags: int, *, active: bool, autostart: bool) -> bool:
    """Return whether a network or a pool is listed; all of them are persistent."""
    return selected(
        flags,
        {ListObjects.ACTIVE: active, ListObjects.INACTIVE: not active},
        {ListObjects.PERSISTENT: True, ListObjects.TRANSIENT: False},
        {ListObjects.AUTOSTART: autostart, ListObjects.NO_AUTOSTART: not autostart},
    )
