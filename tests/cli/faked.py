"""`python -m tests.cli.faked WORDS ...`: the command line, with fake machines and images."""

import sys
import tempfile
from pathlib import Path

from ringzero.cli.entry import main
from ringzero.control.host import launch
from tests.cli.signalled import fakes
from tests.control import fake

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        fakes(Path(place))
        launch.PROGRAM = fake.PROGRAM
        code = main()
    sys.exit(code)
