import os

import pytest

from ringzero.control.host import launch as launching
from tests.control.conftest import root  # noqa: F401 - a fixture
from tests.control.fake import PROGRAM
from tests.doors.serving import Served


@pytest.fixture
def fakes(root, monkeypatch):  # noqa: F811 - the fixture
    """Machines without guests."""
    monkeypatch.setattr(launching, "PROGRAM", PROGRAM)


@pytest.fixture
def served(fakes, root, tmp_path):  # noqa: F811 - the fixture
    """A daemon with the HTTP API, on the loop of a thread of its own."""
    with Served(tmp_path / "serve", rest=[str(tmp_path / "rest.sock")]) as served:
        yield served
    assert not os.path.lexists(tmp_path / "rest.sock")
