"""A typed subset of Python that jit compiles to native code. Names types only; never sees LLVM. May import: the ground."""
