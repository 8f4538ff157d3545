"""Code of a test's own, run in a child process: what confines that confines nobody else."""

import json
import os
import traceback


def in_child(do):
    """Return what `do` returns in a forked process, as plain data; what it raises, fails here."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = {"result": do()}
        except BaseException:
            answer = {"fault": traceback.format_exc()}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    answer = json.loads(text) if text else {"fault": f"it ended with {status}"}
    assert "fault" not in answer, answer["fault"]
    return answer["result"]


def outcome(do):
    """Return "done", or the name of the error number with which the host refused."""
    import errno

    try:
        do()
    except OSError as fault:
        return errno.errorcode.get(fault.errno, str(fault.errno))
    return "done"
