"""Handlers take what their procedures take."""

import inspect

import pytest

from ringzero.doors.libvirt.context import HANDLERS
from ringzero.doors.libvirt.handlers import load
from ringzero.doors.libvirt.procedures import qemu, remote

load()


@pytest.mark.parametrize("name", HANDLERS)
def test_a_handler_takes_its_procedures_arguments(name):
    procedure = remote().by_name.get(name) or qemu().by_name[name]
    context, *rest = inspect.signature(HANDLERS[name]).parameters.values()
    assert context.name == "context"
    if any(p.kind is p.VAR_KEYWORD for p in rest):
        return
    wanted = list(procedure.arguments.types)
    if procedure.stream is not None:
        wanted.insert(0, "call")
    assert [p.name for p in rest] == wanted
