"""`python -m ringzero.control DIRECTORY LOCK REPORT`: the process of one machine."""

import sys

from ringzero.control.machine.vmm import main

sys.exit(main(sys.argv[1:]))
