"""An assembler for seccomp's filters: rules by the names of system calls, classic BPF out.

A filter is a search tree over the numbers of the calls, so that each costs about eight steps
however many rules there are. What no rule allows gets `otherwise`; another instruction set's calls
(`int 0x80`, x32), whose numbers mean others, end the process or get it too (seccomp(2)).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from ringzero.errors import InvalidValueError
from ringzero.records import record

# <linux/bpf_common.h>: load a word, jumps, return.
_LOAD, _JUMP, _JUMP_EQUAL, _JUMP_AT_LEAST, _AND, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x54, 0x06
# struct seccomp_data: nr, arch, instruction_pointer, args[6].
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
# AUDIT_ARCH_X86_64.
ARCH_X86_64 = 0xC000003E
# <linux/seccomp.h>: SECCOMP_RET_*, and the errno in the lower 16 bits of SECCOMP_RET_ERRNO.
ALLOW, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_INSTRUCTION = struct.Struct("=HBBI")
# BPF_MAXINSNS.
_LONGEST = 4096
_HALF = 0xFFFFFFFF


@record
class Where:
    """A condition: of argument `index` (0 to 5), 64 bits, the bits of `mask` are `value`."""

    index: int
    value: int
    mask: int = (1 << 64) - 1


# Several conditions, all of which hold.
Alternative = tuple[Where, ...]
# What is allowed of a call: any of the alternatives; () is one that always holds.
Rule = Sequence[Alternative]
ALWAYS: Rule = ((),)
_Code = list[tuple[int, int, int, int]]


@record
class Refusal:
    """What a call gets instead of `otherwise`."""

    action: int


def assemble(
    rules: Mapping[str, Rule | Refusal], numbers: Mapping[str, int], otherwise: int
) -> bytes:
    """Return the filter of `rules`, by the names in `numbers`. Raises InvalidValueError.

    The result is the array of struct sock_filter that seccomp(2) takes.
    """
    unknown = sorted(rules.keys() - numbers.keys())
    if unknown:
        raise InvalidValueError(f"no system calls are called {', '.join(unknown)}")
    by_number = {numbers[name]: _leaf(rule, otherwise) for name, rule in rules.items()}
    nothing: _Code = [(_RETURN, 0, 0, otherwise)]
    segments: list[tuple[int, _Code]] = [(0, nothing)]
    for number, leaf in sorted(by_number.items()):
        if segments[-1][0] == number:
            segments.pop()
        # Neighbours that are treated alike are one segment.
        if not segments or segments[-1][1] != leaf:
            segments.append((number, leaf))
        if number + 1 not in by_number:
            segments.append((number + 1, nothing))
    code: _Code = [
        (_LOAD, 0, 0, _ARCH),
        (_JUMP_EQUAL, 1, 0, ARCH_X86_64),
        (_RETURN, 0, 0, KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
        *_tree(segments),
    ]
    if len(code) > _LONGEST:
        raise InvalidValueError(f"a filter of {len(code)} steps is longer than {_LONGEST}")
    return b"".join(_INSTRUCTION.pack(*step) for step in code)


def _tree(segments: Sequence[tuple[int, _Code]]) -> _Code:
    """Return the search for the last segment that begins at or below the number."""
    if len(segments) == 1:
        return segments[0][1]
    middle = len(segments) // 2
    low, high = _tree(segments[:middle]), _tree(segments[middle:])
    # Conditional jumps have eight bits for their distance, unconditional ones 32.
    return [(_JUMP_AT_LEAST, 0, 1, segments[middle][0]), (_JUMP, 0, 0, len(low)), *low, *high]


def _leaf(rule: Rule | Refusal, otherwise: int) -> _Code:
    if isinstance(rule, Refusal):
        return [(_RETURN, 0, 0, rule.action)]
    code: _Code = []
    for alternative in rule:
        tests: _Code = []
        halves = [half for where in alternative for half in _halves(where)]
        # From behind: each test leaves for what comes after this alternative.
        tests = [(_RETURN, 0, 0, ALLOW)]
        for offset, mask, value in reversed(halves):
            tests = [(_JUMP_EQUAL, 0, len(tests), value), *tests]
            if mask != _HALF:
                tests = [(_AND, 0, 0, mask), *tests]
            tests = [(_LOAD, 0, 0, offset), *tests]
        code += tests
        if not halves:
            return code
    return [*code, (_RETURN, 0, 0, otherwise)]


def _halves(where: Where) -> list[tuple[int, int, int]]:
    """Return the tests of a condition: the word's offset, its mask, its value."""
    offset = _ARGUMENTS + 8 * where.index
    found = []
    for part in (0, 1):
        mask, value = (where.mask >> 32 * part) & _HALF, (where.value >> 32 * part) & _HALF
        if mask:
            found.append((offset + 4 * part, mask, value))
    return found
