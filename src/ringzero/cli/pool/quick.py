"""`run` in a machine that is ready, by a process that loads next to nothing.

What a pool has been found for once, the next such command line is sent to as it is: the machine's
process, in which everything is loaded, reads it, and its answer is the exit code. Whatever is not
that plain is left to `ringzero.cli.verbs.run`.
"""

import os

from ringzero import basedirs

_OTHERS = 0o077


def run(words: list[str]) -> int | None:
    """Run the command line `words`, of `run`, and return its exit code.

    None where there is no machine for it at hand: nothing has happened then.
    """
    if "--" not in words[:-1]:
        return None
    found = _pools(words[1 : words.index("--")])
    if not found:
        return None
    from ringzero.cli.pool import passing

    return passing.run(found, words)


def _pools(own: list[str]) -> list[str]:
    """Return the directories of pools that were found for such words."""
    root = os.environ.get("RINGZERO_POOL_DIR") or basedirs.pools()
    try:
        status = os.lstat(root)
        # Whoever could change it could put a machine of theirs into it.
        if status.st_uid != os.geteuid() or status.st_mode & _OTHERS:
            return []
        found = [f"{root}/{name}" for name in os.listdir(root)]  # noqa: PTH208 - no pathlib here
    except OSError:
        return []
    if not found:
        return []
    from ringzero.cli.pool.protocol import asked_for

    note = asked_for(own)
    return [path for path in found if os.access(f"{path}/{note}", os.F_OK)]
