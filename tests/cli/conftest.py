import pytest

from ringzero.cli import session
from ringzero.image import micro
from ringzero.vm.exit import Exit, ExitReason
from tests.cli.fake import FakeMachine


@pytest.fixture
def machines(monkeypatch, tmp_path):
    """Machines are fake ones, and the default image is two empty files."""
    FakeMachine.machines.clear()
    for name, value in {
        "boots": True,
        "ending": Exit(ExitReason.POWEROFF),
        "serial_output": b"",
    }.items():
        monkeypatch.setattr(FakeMachine, name, value)
    monkeypatch.setitem(session.run.__kwdefaults__, "build", FakeMachine)
    for name in ("vmlinuz", "initrd"):
        (tmp_path / name).write_bytes(b"")
    image = micro.BootFiles(
        "micro", "0" * 24, tmp_path / "vmlinuz", tmp_path / "initrd", "quiet", ("busybox=1",), 5
    )
    monkeypatch.setattr(micro, "ensure", lambda *_, **__: image)
    return FakeMachine.machines
