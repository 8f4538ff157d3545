"""The arguments that type checkers know are those that there are."""

from ringzero.config.device import DEVICE_CONFIGS
from ringzero.config.fields import MachineFields
from ringzero.config.machine import MachineConfig
from ringzero.records import field_names


def test_every_field_is_there_and_what_is_there_exists():
    typed = set(MachineFields.__annotations__)
    # `engine` is an argument of Machine's own, which takes an Engine, too; `root` is no field.
    fields = {*field_names(MachineConfig)} - {"engine"} | {"root"}
    kinds = DEVICE_CONFIGS.names()
    assert fields <= typed <= {*fields, *kinds, *(f"{kind}s" for kind in kinds)}
