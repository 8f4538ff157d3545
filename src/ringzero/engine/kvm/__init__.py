"""The KVM engine: guests at the speed of the host's own CPU, through /dev/kvm.

`engine` says whether this host can, `vm` and `vcpu` are the two sides of the
contract, `state` translates registers, `probe` measures. Knows no device.
"""

from ringzero.engine.kvm.engine import KvmEngine

__all__ = ["KvmEngine"]
