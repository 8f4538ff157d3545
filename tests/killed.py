"""What a process leaves that is killed just before it renames or removes a file."""

import os
import pathlib


def killed_at(step, action):
    """Do `action` in a child that is killed before its rename or removal number `step`, from 0.

    Return whether it was; else it has come to its end.
    """
    child = os.fork()
    if not child:
        left = step
        code = 1
        try:
            names = ("replace", "rename", "unlink")
            for name in names:
                whole = getattr(pathlib.Path, name)

                def dying(path, *words, whole=whole, **more):
                    nonlocal left
                    if left == 0:
                        os._exit(9)
                    left -= 1
                    return whole(path, *words, **more)

                setattr(pathlib.Path, name, dying)
            action()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    found = os.waitstatus_to_exitcode(status)
    assert found in (0, 9), "the action failed"
    return found == 9
