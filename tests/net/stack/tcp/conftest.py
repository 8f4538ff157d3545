"""The router that segments are sent to."""

import pytest

from tests.net.stack.world import Router


@pytest.fixture
def router():
    return Router()
