"""Descriptions as plain data and back: in machines' directories, in snapshots, over sockets.

What a kind of description looks like comes from the types of its fields
(`ringzero.plain`); nothing is written by hand for one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ringzero.config.machine import MachineConfig
from ringzero.errors import ConfigError
from ringzero.plain import MisfitError, from_plain, to_plain


def config_to_tree(config: MachineConfig) -> dict[str, Any]:
    """Return a description as JSON-ready data, its paths absolute."""
    tree: dict[str, Any] = to_plain(config.absolute())
    return tree


def config_from_tree(tree: Mapping[str, Any]) -> MachineConfig:
    """Return the description that `config_to_tree`, or that of an older version, took apart.

    Raises ConfigError for anything else, and for what does not fit the board.
    """
    try:
        config: MachineConfig = from_plain(MachineConfig, dict(tree))
    except MisfitError as fault:
        raise ConfigError([f"machine{fault.place}: {fault.reason}"]) from fault
    return config
