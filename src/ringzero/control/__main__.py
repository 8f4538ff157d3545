"""`python -m ringzero.control DIRECTORY LOCK REPORT`: the process of one machine."""

import sys

from ringzero.control.vmm import main

sys.exit(main(sys.argv[1:]))
