"""The choice of an engine, and the memory of what was measured."""

import json
import time

import pytest

from ringzero.engine import info, select
from ringzero.engine.contract import ENGINES, Availability, Usability
from ringzero.errors import EngineUnavailableError, NotFoundError

SLOW = Availability(Usability.SLOW, "it crawls")
GOOD = Availability(Usability.USABLE, "it flies")
NONE = Availability(Usability.UNUSABLE, "there is none")


class Fake:
    """Stands for either engine; counts how often it is measured."""

    def __init__(self, name, verdict, rank=0, device=None):
        self.name = name
        self.rank = rank
        self.device = device
        self.verdict = verdict
        self.measured = 0

    def availability(self):
        self.measured += 1
        return self.verdict


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host whose boot and device are files of ours; returns what sets KVM's verdict."""
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(tmp_path / "cache"))
    boot = tmp_path / "boot_id"
    boot.write_text("first-boot\n")
    monkeypatch.setattr(select, "BOOT_ID", boot)
    device = tmp_path / "kvm"
    device.touch()
    engines = {"soft": Fake("soft", GOOD)}

    class Registry:
        def get(self, name):
            if name not in engines:
                raise NotFoundError(f"no engine called {name!r}")
            return lambda: engines[name]

        def names(self):
            return sorted(engines)

    monkeypatch.setattr(select, "ENGINES", Registry())

    def with_kvm(verdict):
        engines["kvm"] = Fake("kvm", verdict, 10, device)
        return engines["kvm"]

    with_kvm.engines = engines
    with_kvm.boot = boot
    with_kvm.cache = tmp_path / "cache"
    return with_kvm


def test_auto_takes_kvm_where_it_is_good(host):
    host(GOOD)
    engine, reason = select.choose_auto()
    assert engine.name == "kvm"
    assert reason == "engine kvm: it flies"


@pytest.mark.parametrize("verdict", [SLOW, NONE])
def test_auto_takes_soft_elsewhere_and_says_why(host, verdict):
    host(verdict)
    engine, reason = select.choose_auto()
    assert engine.name == "soft"
    assert reason == f"engine soft, because {verdict.reason}"
    assert select.choose("auto").name == "soft"


def test_a_measurement_is_made_once_per_boot(host):
    kvm = host(SLOW)
    told = []
    for _ in range(3):
        assert select.choose_auto(lambda *line: told.append(line))[0].name == "soft"
    assert kvm.measured == 1
    line = "engine soft, because it crawls"
    assert told == [(line, True), (line, False), (line, False)]
    host.boot.write_text("second-boot\n")
    select.choose_auto(lambda *line: told.append(line))
    assert kvm.measured == 2
    assert told[3:] == [(line, True)]


def test_what_is_not_measured_is_not_remembered(host):
    kvm = host(NONE)
    select.choose_auto()
    select.choose_auto()
    assert kvm.measured == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"for": 1}', b"\xff\xfe"])
def test_a_damaged_memory_is_measured_anew(host, content):
    kvm = host(GOOD)
    select.choose_auto()
    (host.cache / "engine-kvm.json").write_bytes(content)
    assert select.choose_auto()[0].name == "kvm"
    assert kvm.measured == 2
    assert json.loads((host.cache / "engine-kvm.json").read_text())["usability"] == "usable"


def test_a_slow_engine_is_given_to_those_who_insist(host):
    host(SLOW)
    with pytest.raises(EngineUnavailableError, match="too slow here: it crawls") as caught:
        select.choose("kvm")
    assert caught.value.hint == "--engine auto takes a quicker one; --engine kvm! insists"
    assert select.choose("kvm!").name == "kvm"
    assert select.warning("kvm!") == "engine kvm, as you insist: it crawls"


def test_who_insists_on_a_good_engine_hears_nothing(host):
    host(GOOD)
    assert select.choose("kvm!").name == select.choose("kvm").name == "kvm"
    assert select.warning("kvm!") is None
    assert select.warning("kvm") is None


def test_nobody_insists_on_what_cannot_run_or_on_a_choice(host):
    host(NONE)
    with pytest.raises(EngineUnavailableError, match="there is none"):
        select.choose("kvm!")
    with pytest.raises(EngineUnavailableError, match="not an engine"):
        select.choose("auto!")
    with pytest.raises(NotFoundError):
        select.choose("warp!")


def test_an_engine_that_cannot_run_is_an_error_with_a_way_out(host):
    host(NONE)
    with pytest.raises(EngineUnavailableError, match="there is none") as caught:
        select.choose("kvm")
    assert caught.value.hint == "--engine soft may"


def test_an_unknown_engine(host):
    with pytest.raises(NotFoundError):
        select.choose("warp")


def test_kvm_by_name_without_a_device_fails_within_a_second(monkeypatch, tmp_path):
    from ringzero.engine.kvm import engine as module

    def missing(path):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(module.KvmEngine, "device", tmp_path / "none")
    monkeypatch.setattr(module.kvmfd, "KvmSystem", missing)
    start = time.monotonic()
    with pytest.raises(EngineUnavailableError, match="no KVM in this kernel"):
        select.choose("kvm")
    assert time.monotonic() - start < 1


def test_info_describes_every_engine():
    found = info.engines()
    assert set(found) == set(ENGINES.names())
    for described in found.values():
        assert described["usability"] in {u.value for u in Usability}
        assert described["reason"]
    json.dumps(found)
    assert info.chosen().startswith("engine ")


@pytest.mark.parametrize(
    ("entry", "mips", "usable"),
    [(20e-6, 3000, True), (0.5e-3, 300, True), (4e-3, 300, True), (20e-6, 1.3, False),
     (4e-3, 1.3, False), (20e-6, 20, False)],
)  # fmt: skip
def test_a_loaded_host_does_not_mislead_the_probe(monkeypatch, entry, mips, usable):
    """Entering the guest may take longer than what is measured."""
    from ringzero.engine.kvm import probe

    class Memory:
        def write(self, *_): ...
        def write_int(self, *_): ...
        def close(self): ...

    class Vm:
        def __init__(self, *_): ...
        def create_vcpu(self, *_): ...
        def close(self): ...

    monkeypatch.setattr(probe, "GuestMemory", lambda *_: Memory())
    monkeypatch.setattr(probe, "KvmVm", Vm)
    monkeypatch.setattr(probe, "_time_loop", lambda _, rounds: entry + 2 * rounds / (mips * 1e6))
    found = probe.measure_mips(None)
    assert (found >= probe.USEFUL_MIPS) == usable


def test_a_third_engine_is_taken_where_it_ranks_highest(host):
    host(GOOD)
    host.engines["best"] = Fake("best", GOOD, rank=20)
    assert select.choose_auto() == (host.engines["best"], "engine best: it flies")
    host.engines["best"].verdict = SLOW
    assert select.choose_auto()[1] == "engine kvm, because it crawls"


def test_no_engine_at_all(host):
    host(NONE)
    host.engines["soft"].verdict = NONE
    with pytest.raises(EngineUnavailableError, match="there is none; there is none"):
        select.choose_auto()
