"""The software engine: guest code translated to host code, on any host, without privileges.

`native` loads the compiled engine, `vm` and `vcpu` are the two sides of the
contract, `engine` makes them. Knows no device.
"""

from ringzero.engine.soft.engine import SoftEngine

__all__ = ["SoftEngine"]
