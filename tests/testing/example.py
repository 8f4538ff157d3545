"""Where the example of a test suite lies."""

from pathlib import Path

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "test_guest.py"
