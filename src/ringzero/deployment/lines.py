"""Where the keys of a TOML or YAML file stand; the parsers of both keep no lines with values."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from ringzero.deployment.reading import Key, with_text_keys
from ringzero.errors import ConfigError

_PART = r"(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')"
_DOTTED = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER = re.compile(rf"\s*\[\[?\s*({_DOTTED})\s*\]\]?")
_ASSIGNMENT = re.compile(rf"\s*({_DOTTED})\s*=")
_AT = re.compile(r"(.*) \(at line (\d+), column (\d+)\)", re.DOTALL)
# Nodes of a YAML file, its aliases followed: what has more is no file that a person wrote.
_MOST_NODES = 20_000
_HINT = "docs/deploy.md has an example"


def parse_toml(text: str, name: str) -> tuple[dict[str, Any], dict[Key, int]]:
    """Return what a TOML file says, and the line of each key. Raises ConfigError."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        found = _AT.fullmatch(str(fault))
        if found is None:
            raise ConfigError([f"{name}: {fault}"], hint=_HINT) from fault
        from ringzero.build.vmfile.faults import Fault

        place = Fault(int(found[2]), int(found[3]), 1, found[1])
        raise ConfigError([place.show(name, text.splitlines())], hint=_HINT) from fault
    except RecursionError as fault:
        raise ConfigError([f"{name}: nested too deep"], hint=_HINT) from fault
    return values, _toml_lines(text)


def _toml_lines(text: str) -> dict[Key, int]:
    found: dict[Key, int] = {}
    table: Key = ()
    ends = ""
    for number, line in enumerate(text.splitlines(), 1):
        if ends:
            # Inside a text of several lines.
            ends = "" if ends in line else ends
            continue
        if header := _HEADER.match(line):
            table = _parts(header[1])
            found.setdefault(table, number)
        elif assignment := _ASSIGNMENT.match(line):
            key = (*table, *_parts(assignment[1]))
            for length in range(len(table) + 1, len(key) + 1):
                found.setdefault(key[:length], number)
        ends = next((q for q in ('"""', "'''") if line.count(q) % 2), "")
    return found


def _parts(dotted: str) -> Key:
    return tuple(part.strip("\"'") for part in re.findall(_PART, dotted))


def parse_yaml(text: str, name: str) -> tuple[dict[str, Any], dict[Key, int]]:
    """Return what a YAML file says, and the line of each key. Raises ConfigError."""
    import yaml

    lines: dict[Key, int] = {}
    faults: list[str] = []
    budget = _MOST_NODES

    def walk(node: Any, key: Key) -> None:
        nonlocal budget
        budget -= 1
        if budget < 0:
            raise RecursionError
        if isinstance(node, yaml.MappingNode):
            for left, right in node.value:
                inner = (*key, str(left.value))
                line = left.start_mark.line + 1
                if inner in lines:
                    faults.append(f"{name}:{line}: {left.value} stands twice")
                lines[inner] = line
                walk(right, inner)
        elif isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                lines[(*key, number)] = item.start_mark.line + 1
                walk(item, (*key, number))

    try:
        walk(yaml.compose(text, Loader=yaml.SafeLoader), ())
        values = yaml.safe_load(text) or {}
    except RecursionError as fault:
        raise ConfigError([f"{name}: too large, or nested too deep"], hint=_HINT) from fault
    except (yaml.YAMLError, ValueError) as fault:
        mark = getattr(fault, "problem_mark", None)
        place = name if mark is None else f"{name}:{mark.line + 1}:{mark.column + 1}"
        told = getattr(fault, "problem", None) or str(fault)
        raise ConfigError([f"{place}: {told}"], hint=_HINT) from fault
    values = with_text_keys(values)
    if not isinstance(values, dict):
        faults.append(f"{name}: tables are wanted")
    if faults:
        raise ConfigError(faults, hint=_HINT)
    return values, lines
