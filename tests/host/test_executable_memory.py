"""Memory for translated code: below 2 GiB, and never where nothing must lie."""

import subprocess
import sys

from tests.boot.process import ENVIRONMENT


def test_address_0_stays_free():
    """Also where this user may map it: what leads nowhere must be felt."""
    code = (
        "from ringzero.host.memory import ExecutableMemory\n"
        "found = [ExecutableMemory(4 << 20) for _ in range(3)]\n"
        "print(*(memory.address for memory in found))\n"
        "print(open('/proc/self/maps').readline().split('-')[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    addresses, first = done.stdout.splitlines()
    assert all(0 < int(address) < 1 << 31 for address in addresses.split())
    assert int(first, 16) > 0
