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


def pools() -> str:
    """Return where sockets of running processes belong, where there is such a place."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    place = f"{runtime}/ringzero" if runtime.startswith("/") else ours(*STATE)
    return place and f"{place}/pools"


CACHE = "XDG_CACHE_HOME", ".cache"
CONFIG = "XDG_CONFIG_HOME", ".config"
STATE = "XDG_STATE_HOME", ".local/state"
