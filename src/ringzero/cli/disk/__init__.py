"""The actions of `ringzero disk`, one module each, loaded when they are used.

Names and options follow qemu-img where it has them. The work is done in
`ringzero.disk`; here are only arguments and output.
"""

from __future__ import annotations
