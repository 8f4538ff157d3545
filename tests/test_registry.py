"""Plug-ins are found by the names of their modules, in every place where the package lies."""

import sys

import pytest

from ringzero.errors import NotFoundError
from ringzero.registry import Registry


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a plug-in module, a plug-in package, and others that are none."""
    place = tmp_path / "plugs_of_a_test"
    (place / "big").mkdir(parents=True)
    (place / "_own").mkdir()
    for name in ("__init__", "small", "helper", "_hidden", "big/__init__"):
        text = "" if name == "__init__" else "from tests.test_registry import enter\n"
        if name in ("small", "big/__init__"):
            text += f"enter('{name.partition('/')[0]}')\n"
        (place / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield place
    for name in [n for n in sys.modules if n.startswith("plugs_of_a_test")]:
        del sys.modules[name]


current = None


def enter(name):
    current.register(name)(name.upper())


@pytest.mark.parametrize(
    ("nested", "names"), [(False, ["big", "helper", "small"]), (True, ["big"])]
)
def test_names_are_those_of_modules(package, nested, names):
    global current
    current = Registry("plug", "plugs_of_a_test", nested=nested)
    assert current.names() == names
    assert current.get("big") == "BIG" and "small" in current
    assert "helper" not in current and "_hidden" not in current and "../x" not in current
    with pytest.raises(NotFoundError, match="no plug called 'large'") as caught:
        current.get("large")
    assert "big, " in caught.value.hint or nested
    with pytest.raises(ValueError, match="twice"):
        current.register("big")(1)


def test_a_package_may_lie_in_several_places(package, tmp_path):
    global current
    current = Registry("plug", "plugs_of_a_test")
    more = tmp_path / "elsewhere"
    more.mkdir()
    (more / "further.py").write_text("from tests.test_registry import enter\nenter('further')\n")
    current.names()
    sys.modules["plugs_of_a_test"].__path__.append(str(more))
    assert "further" in current.names() and current.get("further") == "FURTHER"
