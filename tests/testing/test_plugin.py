"""The pytest plugin, in test runs of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from ringzero.settings import CACHE_DIR
from tests.boot.process import ENVIRONMENT

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "test_guest.py"

pytest_plugins = ["pytester"]
# Asked for here: `pytester` gives its runs a home of their own.
CACHE = CACHE_DIR.get()

FAKE = """
import pytest

class Serial:
    on_output = None

class Fake:
    def __init__(self):
        self.serial, self.started, self.stopped = Serial(), False, False
    def fork(self):
        return [Fake()]
    def start(self):
        self.started = True
        self.serial.on_output(b"\\x1b[6nforked\\r\\n")
    def stop(self):
        self.stopped = True

@pytest.fixture(scope="session")
def ringzero_booted():
    yield Fake(), bytearray(b"booted\\n")
"""


def test_every_test_has_a_copy_of_its_own_and_failures_have_its_log(pytester):
    pytester.makeconftest(FAKE)
    pytester.makepyfile(
        """
        seen = []

        def test_first(ringzero_machine):
            assert ringzero_machine.started
            seen.append(ringzero_machine)

        def test_second(ringzero_machine):
            assert ringzero_machine is not seen[0]
            assert seen[0].stopped
            ringzero_machine.serial.on_output(b"Kernel panic")
            raise AssertionError

        def test_third():
            raise AssertionError
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:randomly")
    result.assert_outcomes(passed=1, failed=2)
    text = result.stdout.str()
    assert text.count("guest's log (call)") == 1
    result.stdout.fnmatch_lines(["*guest's log*", "booted", "[[]6nforked", "Kernel panic"])
    assert "\x1b[6n" not in text


def test_plugin_is_light(pytester):
    """pytest loads it in every run, with ringzero's users and without."""
    pytester.makepyfile(
        """
        import sys

        def test_loaded():
            assert "ringzero.testing.plugin" in sys.modules
            heavy = {"ringzero.vm", "ringzero.disk", "ringzero.engine", "llvmlite", "asyncio"}
            assert not heavy & set(sys.modules)
        """
    )
    pytester.runpytest_subprocess("-p", "no:asyncio", "-p", "no:anyio").assert_outcomes(passed=1)


def test_package_needs_no_pytest():
    code = "import sys; sys.modules['pytest'] = None; import ringzero.testing"
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=True)


@pytest.mark.boot
@pytest.mark.engine
def test_example(pytester, monkeypatch):
    """A guest boots once; its copies do not see one another."""
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(CACHE))
    pytester.makepyfile(EXAMPLE.read_text())
    pytester.runpytest_subprocess("-q").assert_outcomes(passed=3)
