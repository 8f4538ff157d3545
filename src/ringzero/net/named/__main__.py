"""`python -m ringzero.net.named DIRECTORY`: the process of one network."""

import sys

from ringzero.net.named.process import main

sys.exit(main(sys.argv[1:]))
