"""`python -m ringzero` is the command line."""

import sys

from ringzero.cli.main import main

sys.exit(main())
