"""`python -m ringzero` is the command line."""

import sys

from ringzero.cli.entry import main

sys.exit(main())
