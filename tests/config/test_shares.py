"""A machine's description with another shared folder, or without one."""

import pytest

from ringzero.config.devices.share import ShareConfig
from ringzero.config.machine import MachineConfig
from ringzero.config.shares import with_share, without_share
from ringzero.errors import ConflictError, NotFoundError


def test_folders_come_and_go_and_no_number_is_given_twice():
    config = MachineConfig.create(agent=True).with_room_for_shares()
    config, one = with_share(config, ShareConfig.parse("/usr:/one"))
    config, two = with_share(config, ShareConfig.parse("/usr:/two"))
    assert two.number == one.number + 1
    config, gone = without_share(config, "/two/")
    assert gone == two
    config, three = with_share(config, ShareConfig.parse("/usr:/three"))
    assert three.number == two.number + 1
    assert [share.target for share in config.shares if share.target] == ["/one", "/three"]


def test_what_cannot_be():
    config = MachineConfig.create(shares=["/usr:/one:transport=9p"])
    with pytest.raises(ConflictError, match="another folder is at /one"):
        with_share(config, ShareConfig.parse("/bin:/one"))
    with pytest.raises(ConflictError, match="go by 9p"):
        with_share(config, ShareConfig.parse("/bin:/two:transport=virtiofs"))
    with pytest.raises(NotFoundError, match="no shared folder is at /two"):
        without_share(config, "/two")


def test_a_first_folder_is_as_it_was_described():
    share = ShareConfig.parse("/usr:/one")
    config, made = with_share(MachineConfig.create(), share)
    assert made == share
    assert config.shares == (share,)
