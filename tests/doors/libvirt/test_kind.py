"""Where libvirt's clients find the door."""

import argparse
import os
import shutil

import pytest

from ringzero.cli.verbs import serve
from ringzero.control.host import client
from ringzero.doors.kinds.libvirt import Libvirt
from tests.control.fake import start
from tests.doors.libvirt.test_virsh import Virsh, virsh

__all__ = ["virsh"]


@pytest.mark.parametrize(
    ("user", "variables", "directory"),
    [
        (0, {}, "/run/libvirt"),
        (1000, {"XDG_RUNTIME_DIR": "/run/user/1000"}, "/run/user/1000/libvirt"),
        (1000, {"XDG_CACHE_HOME": "/home/me/cache"}, "/home/me/cache/libvirt"),
        (1000, {}, "/home/me/.cache/libvirt"),
    ],
)
def test_clients_look_for_it_by_the_scheme(user, variables, directory, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: user)
    for name in ("XDG_RUNTIME_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for scheme in ("ringzero", "qemu"):
        normal, reading = Libvirt.named(scheme)
        assert str(normal.path) == f"{directory}/virt{scheme}d-sock"
        assert (str(reading.path), reading.reads) == (f"{directory}/virt{scheme}d-sock-ro", True)


def test_serve_answers_as_qemu_where_it_is_asked_to(monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr("ringzero.doors.daemon.serve", lambda wanted, *_: opened.append(wanted))
    parser = argparse.ArgumentParser()
    serve.Serve().configure(parser)
    for words in ([], ["--as-qemu"]):
        arguments = parser.parse_args(["--rest", str(tmp_path / "r"), "--libvirt", "none", *words])
        assert arguments.act(arguments) == 0
    plain, more = opened
    assert [wanted.door for wanted in plain] == ["rest"]
    names = [wanted.address.path.name for wanted in more if wanted.door == "libvirt"]
    assert names == ["virtqemud-sock", "virtqemud-sock-ro"]
    # Who asks for it is told where it cannot be.
    assert not any(wanted.default for wanted in more)


@pytest.mark.peer
@pytest.mark.skipif(shutil.which("virsh") is None, reason="virsh is Debian's libvirt-clients")
def test_who_says_qemu_is_answered_as_qemu(virsh, tmp_path):
    start("web")
    asking = Virsh(tmp_path / "lv")
    asking.words[-1] = asking.words[-1].replace("ringzero+unix", "qemu+unix")
    assert asking("uri").startswith("qemu")
    assert "QEMU" in asking("version")
    asking("destroy", "web")
    assert client.machine("web").inspect()["status"] == "ended"
