"""A whole Vmfile, with everything that is wrong in it told at once."""

from __future__ import annotations

from typing import NoReturn

from ringzero.build.vmfile import instructions as kinds
from ringzero.build.vmfile.faults import Fault, FaultError, meant
from ringzero.build.vmfile.grammar import READERS, Arguments
from ringzero.build.vmfile.instructions import Instruction, Stage, Vmfile
from ringzero.build.vmfile.lines import Line, read_lines
from ringzero.build.vmfile.words import Word, variables
from ringzero.errors import ConfigError
from ringzero.units import MIB

# A file that people write has some kilobytes.
MAX_BYTES = MIB
# Told of one file; a file of another kind would fill the screen.
_MOST_FAULTS = 20
# Those that the language has, with what to do instead.
_REFUSED = {
    "ONBUILD": "ONBUILD is not carried out; write the instruction where it shall run",
    "MAINTAINER": "MAINTAINER is no more; write LABEL org.opencontainers.image.authors=...",
}


def parse(text: str, name: str = "Vmfile") -> Vmfile:
    """Return what a Vmfile's `text` says. `name` is what messages call it.

    Raises ConfigError with all faults, each with its line and a caret.
    """
    physical = text.removeprefix("\ufeff").splitlines()
    if len(text) > MAX_BYTES or "\0" in text:
        raise ConfigError(
            [f"{name} is no Vmfile: more than {MAX_BYTES} characters, or bytes of zero"]
        )
    reader = _Reader(physical)
    return reader.read(name)


class _Reader:
    def __init__(self, physical: list[str]) -> None:
        self._physical = physical
        found = read_lines(physical)
        self._lines = found.lines
        self._escape = found.escape
        self._faults = list(found.faults)
        self._arguments: list[kinds.Arg] = []
        self._stages: list[tuple[kinds.From, list[Instruction]]] = []

    def read(self, name: str) -> Vmfile:
        for line in self._lines:
            try:
                instruction = self._instruction(line)
                self._check_variables(instruction)
                self._enter(instruction)
            except FaultError as fault:
                self._fault(line, fault)
        if not self._stages and not self._faults:
            self._faults.append(Fault(1, 1, 1, "no FROM: what shall the image stand on?"))
        if self._faults:
            self._raise(name)
        stages = tuple(Stage(begin, tuple(steps)) for begin, steps in self._stages)
        return Vmfile(name, stages, tuple(self._arguments), self._escape, tuple(self._physical))

    def _instruction(self, line: Line) -> Instruction:
        keyword = line.text.split(maxsplit=1)[0]
        reader = READERS.get(keyword.upper())
        if keyword.upper() in _REFUSED:
            raise FaultError(0, len(keyword), _REFUSED[keyword.upper()])
        if reader is None:
            close = meant(keyword.upper(), list(READERS))
            raise FaultError(0, len(keyword), f"no instruction is called {keyword!r}{close}")
        return reader(line, Arguments(line, len(keyword), self._escape))

    def _check_variables(self, instruction: Instruction) -> None:
        """Have words with variables that are written wrongly told now, not when they run."""
        for name in type(instruction).__match_args__:
            for word in _words(getattr(instruction, name)):
                variables(word, self._escape)

    def _enter(self, instruction: Instruction) -> None:
        if isinstance(instruction, kinds.From):
            self._check_stage_name(instruction)
            self._stages.append((instruction, []))
        elif self._stages:
            if isinstance(instruction, kinds.Copy) and instruction.stage is not None:
                self._check_reference(instruction.stage)
            self._stages[-1][1].append(instruction)
        elif isinstance(instruction, kinds.Arg):
            self._arguments.append(instruction)
        else:
            raise FaultError(
                0,
                len(type(instruction).keyword),
                f"{type(instruction).keyword} stands before the first FROM; only ARG may",
            )

    def _check_stage_name(self, begin: kinds.From) -> None:
        if begin.name and any(begin.name == other.name for other, _ in self._stages):
            at = begin.line.text.lower().rindex(begin.name)
            raise FaultError(at, len(begin.name), f"a second stage is called {begin.name!r}")

    def _check_reference(self, word: Word) -> None:
        """Refuse a stage by number that is not there yet, and the stage's own name."""
        if word.text.isascii() and word.text.isdigit():
            if int(word.text[:9]) >= len(self._stages) - 1:
                raise FaultError(
                    word.at, len(word.text), f"no stage {word.text} stands before this one"
                )
        elif word.text.lower() == self._stages[-1][0].name:
            raise FaultError(word.at, len(word.text), "a stage cannot copy from itself")

    def _fault(self, line: Line, fault: FaultError) -> None:
        place = line.place(min(fault.at, max(0, len(line.text) - 1)))
        self._faults.append(Fault(*place, fault.width, fault.message))

    def _raise(self, name: str) -> NoReturn:
        faults = sorted(self._faults, key=lambda fault: (fault.line, fault.column))
        shown = [fault.show(name, self._physical) for fault in faults[:_MOST_FAULTS]]
        if len(faults) > _MOST_FAULTS:
            shown.append(f"{len(faults) - _MOST_FAULTS} more")
        raise ConfigError(shown, hint="docs/vmfile.md has all instructions")


def _words(value: object) -> list[Word]:
    """Return the words in a field, however deep."""
    if isinstance(value, Word):
        return [value]
    if isinstance(value, tuple):
        return [word for item in value for word in _words(item)]
    return []
