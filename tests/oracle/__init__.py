"""Oracles: other executors of x86-64 code against which ringzero's are compared.

Nothing in this package imports ringzero's instruction description, so that an
error there cannot hide here. The data flow:

    encodings.py   which instructions exist (opcode maps named by Capstone)
    operands.py    corner and random integers, floats, control words
    cases.py       encodings + operands -> `Case`s
    native.py      runs cases on the host CPU           (an `Executor`)
    unicorn_peer.py runs cases and whole systems on Unicorn (an `Executor`)
    undefined.py   what the manuals leave undefined
    compare.py     expected against got, in words
    fuzz.py        the driver: python -m tests.oracle.fuzz --help
    programs/      small assembled programs for lockstep tests
"""
