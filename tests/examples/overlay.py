"""A pytest plugin: packages go on in the directories below RINGZERO_OVERLAY, as if merged.

So files can be added to the tree, or seem to be, without a change to it.
"""

import importlib
import os
from pathlib import Path


def pytest_configure():
    overlay = Path(os.environ["RINGZERO_OVERLAY"])
    for top in (overlay / "src", overlay):
        for path in sorted(top.rglob("*.py")):
            parts = path.parent.relative_to(top).parts
            if parts[:1] in (("ringzero",), ("tests",)):
                package = importlib.import_module(".".join(parts))
                if str(path.parent) not in package.__path__:
                    package.__path__.append(str(path.parent))
