"""BLAKE2b as `hashlib` has it, without loading OpenSSL, which takes no part in it.

That costs a start 4 ms. Modules that a machine's start loads take it from here.
"""

try:
    # What `hashlib.blake2b` is, in every CPython since 3.6.
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

__all__ = ["blake2b"]
