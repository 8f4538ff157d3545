"""`python -m ringzero.deployment DIRECTORY`: the process of one deployment."""

import sys

from ringzero.deployment.supervisor import main

sys.exit(main(sys.argv[1:]))
