"""The environment of commands."""

from __future__ import annotations

from ringzero.image.guest.runner.memory import (
    EQUALS,
    MAX_VARIABLES,
    SHORT,
    TERM,
    VARIABLES,
    known,
    text,
)
from ringzero.image.guest.runner.text import append
from ringzero.native import load, native, store, u8, u64


@native
def same_name(one: u64, other: u64) -> u64:
    """Return 1 where two variables (NAME=VALUE) have one name, else 0."""
    n = u64(0)
    while load(u8, one, n) == load(u8, other, n):
        if load(u8, one, n) == EQUALS or load(u8, one, n) == 0:
            return 1
        n += 1
    return 0


@native
def find_variable(variable: u64) -> u64:
    """Return the index of the variable of that name (NAME=), or how many there are."""
    state = known()
    n = u64(0)
    while n < state.variables:
        if same_name(load(u64, VARIABLES, 8 * n), variable) != 0:
            return n
        n += 1
    return n


@native
def set_variable(variable: u64) -> None:
    """Set a variable; where there are too many, it is left out."""
    state = known()
    n = find_variable(variable)
    if n < MAX_VARIABLES:
        store(u64, VARIABLES, variable, offset=8 * n)
        if n == state.variables:
            state.variables = n + 1
            store(u64, VARIABLES, u64(0), offset=8 * (n + 1))


@native
def set_kind(kind: u64) -> None:
    """Take the program's own environment, and `kind` as TERM where that has none."""
    append(append(u64(TERM), u64(text("TERM=")), u64(8)), kind, u64(SHORT - 1))
    renew_variables()


@native
def renew_variables() -> None:
    """Take the environment that the program was started with, and a TERM if that has none."""
    state = known()
    n = u64(0)
    while n < MAX_VARIABLES and load(u64, state.environment, 8 * n) != 0:
        store(u64, VARIABLES, load(u64, state.environment, 8 * n), offset=8 * n)
        n += 1
    store(u64, VARIABLES, u64(0), offset=8 * n)
    state.variables = n
    if find_variable(u64(TERM)) == n:
        set_variable(u64(TERM))
