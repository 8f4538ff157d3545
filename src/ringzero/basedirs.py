"""Where files of ours belong in a user's home, as text; loads nothing.

XDG Base Directory Specification 0.8.
"""

import os


def ours(variable: str, default: str) -> str:
    """Return our part of the base directory that a variable names, `default` below the home.

    "" where there is no home directory.
    """
    base = os.environ.get(variable, "")
    # A relative path there is to be ignored, says the specification.
    if base.startswith("/"):
        return f"{base}/ringzero"
    home = os.path.expanduser("~")  # noqa: PTH111 - pathlib takes longer than all else here
    return "" if home == "~" else f"{home}/{default}/ringzero"


def runtime() -> str:
    """Return where sockets of running processes belong, "" where there is no such place."""
    place = os.environ.get("XDG_RUNTIME_DIR", "")
    return f"{place}/ringzero" if place.startswith("/") else ours(*STATE)


def pools() -> str:
    """Return where pools of machines that are ready belong, "" where there is no such place."""
    place = runtime()
    return place and f"{place}/pools"


CACHE = "XDG_CACHE_HOME", ".cache"
CONFIG = "XDG_CONFIG_HOME", ".config"
STATE = "XDG_STATE_HOME", ".local/state"
