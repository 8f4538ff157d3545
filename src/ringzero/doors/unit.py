"""A systemd unit that runs `ringzero serve` (systemd.unit(5), systemd.service(5))."""

from __future__ import annotations

import os
from pathlib import Path

from ringzero.errors import HostError
from ringzero.host.files import host_error

_NAME = "ringzero.service"
_SYSTEM = Path("/etc/systemd/system")
# Machines are processes of their own, in the unit's control group, and outlive the service.
_TEXT = """\
[Unit]
Description=ringzero: virtual machines behind familiar doors
After=network.target

[Service]
Type=notify
ExecStart={program} serve --quiet
KillMode=process
Restart=on-failure

[Install]
WantedBy={target}
"""


def text(program: str, *, system: bool) -> str:
    """Return the unit; `program` is the command that runs now."""
    path = Path(program).absolute()
    # "%" and "$" mean something there; blanks part words.
    quoted = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    quoted = quoted.replace("$", "$$")
    target = "multi-user.target" if system else "default.target"
    return _TEXT.format(program=f'"{quoted}"' if " " in quoted else quoted, target=target)


def write(content: str, *, system: bool) -> Path:
    """Write the unit to where systemd looks for it; return its path. Raises HostError."""
    if system and os.geteuid() != 0:
        raise HostError("only root can install a unit for the whole host", hint="without --system")
    base = os.environ.get("XDG_CONFIG_HOME", "")
    own = Path(base) if base.startswith("/") else Path.home() / ".config"
    path = (_SYSTEM if system else own / "systemd/user") / _NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    except OSError as fault:
        raise host_error(fault, "write", path) from fault
    return path
