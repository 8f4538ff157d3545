"""What the translator makes of chosen guest code, kept as text that a change shows in its diff.

`python -m tests.jit.golden --update` writes the listings and the counts anew. They hold the
host's instructions for the reader; the tests compare what does not depend on LLVM's version:
which stencils stand in which order and what the translator fills in, and sizes within a
tolerance.
"""
