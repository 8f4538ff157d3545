"""The software engine: guest code translated to host code, on any host, without privileges.

`engine` is what the registry knows, `contract` the two sides of the engine's contract for every
architecture, `code` and `translations` where translated code lies and how it outlives a run.
What is one architecture's lies in a room of its name (`x86/`), and `guests/` has a plug-in for
each. Knows no device.
"""

from ringzero.engine.soft.engine import SoftEngine

__all__ = ["SoftEngine"]
