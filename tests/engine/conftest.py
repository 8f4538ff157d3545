"""Every engine of the registry, and guests on it."""

import pytest

from ringzero.engine import select
from ringzero.engine.contract import ENGINES, Usability
from ringzero.errors import EngineUnavailableError
from tests.engine import guest as toolkit


@pytest.fixture(scope="session")
def engines():
    """Engines by name, made once: the software engine takes time to load."""
    return {}


@pytest.fixture(
    params=[
        pytest.param("kvm", marks=pytest.mark.kvm),
        pytest.param("soft", marks=pytest.mark.engine),
    ]
)
def engine(request, engines):
    name = request.param
    if name not in engines:
        if name not in ENGINES.names():
            pytest.skip(f"there is no engine {name}")
        engines[name] = ENGINES.get(name)()
    if name == "kvm":
        found = select.judge(engines[name])
        if found.usability is Usability.UNUSABLE:
            pytest.skip(found.reason)
        if found.usability is Usability.SLOW and request.node.get_closest_marker("hardware"):
            pytest.skip(f"needs KVM as hardware does it; here {found.reason}")
    return engines[name]


@pytest.fixture
def guest(engine):
    built = toolkit.build(engine)
    toolkit.write_long_tables(built.memory)
    yield built
    built.vm.close()
    built.memory.close()


@pytest.fixture
def kvm_engine():
    engine = ENGINES.get("kvm")()
    try:
        engine.system  # noqa: B018
    except EngineUnavailableError as fault:
        pytest.skip(fault.message)
    return engine
