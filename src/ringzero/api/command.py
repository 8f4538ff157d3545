"""Running one command to its end: what is asked for, and what comes of it.

Shared by `Machine.run`, its asynchronous twin, and the client of a machine's process.
Plain data: nothing here speaks with a guest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, AnyStr, Generic

from ringzero.errors import CommandError, InvalidValueError
from ringzero.records import record

# What a command and its output are, in text.
_ENCODING = "utf-8"
# Exit status of a command whose directory is none, as that of one that cannot be run.
_CHANGE_DIRECTORY = 'cd -- "$0" || exit 126; exec "$@"'
_BECOME = 'exec "$@"'
# In a kernel's command line: what ringzero's init makes the root, a disk or the share. It runs
# commands as the image has it, and takes options before one (`command_options`).
ROOT_PARAMETER = "ringzero.root"


@record
class CommandResult(Generic[AnyStr]):
    """What a command in the guest printed, and its exit status; str where text was asked for."""

    stdout: AnyStr
    stderr: AnyStr
    exit_code: int

    @property
    def returncode(self) -> int:
        """The exit status, as `subprocess` calls it."""
        return self.exit_code

    def check(self) -> None:
        """Raise CommandError, with what the command printed, unless its status is 0."""
        if self.exit_code:
            said = self.stderr if isinstance(self.stderr, str) else decoded(self.stderr)
            tail = said.strip().rpartition("\n")[2]
            raise CommandError(
                f"the command ended with status {self.exit_code}" + (f": {tail}" if tail else ""),
                exit_code=self.exit_code,
                stdout=self.stdout,
                stderr=self.stderr,
            )


def decoded(data: bytes) -> str:
    """Return output as text; bytes that are no UTF-8 become U+FFFD."""
    return data.decode(_ENCODING, "replace")


def input_bytes(data: bytes | str | None) -> bytes:
    """Return what a command reads on its standard input. Raises InvalidValueError."""
    if data is None:
        return b""
    if isinstance(data, str):
        return data.encode(_ENCODING, "surrogateescape")
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise InvalidValueError(
        f"a command's input is bytes or str, not {type(data).__name__}",
        hint="give input=b'...' or input='...'",
    )


def takes_options(command_line: object) -> bool:
    """Whether the guest of a kernel's command line takes options before a command."""
    return f" {ROOT_PARAMETER}=" in f" {command_line}"


def command_options(
    env: Iterable[tuple[str, str]] = (), cwd: str | None = None, user: str | None = None
) -> list[str]:
    """Return what goes before a command in a guest that takes options (`takes_options`).

    The last of it is the end of the options: a program whose name begins with a dash is none.
    """
    # Who comes first brings a HOME along, and variables are the last word.
    words = [f"--user={user}"] if user else []
    words += [f"--env={name}={value}" for name, value in env]
    return [*words, *([f"--workdir={cwd}"] if cwd else ()), "--"]


# As root and from the top, whatever an image says of its own programs.
AS_ROOT = tuple(command_options(cwd="/", user="0"))


# Options of `subprocess.run` that are others here, or not needed.
_SUBPROCESS = {
    "shell": "a string is for the guest's shell, a list are the words",
    "capture_output": "output is always captured",
    "stdin": "give the bytes or the text: input=",
    "stdout": "output is captured; `Machine.agent` passes it on as it comes",
    "stderr": "output is captured; `Machine.agent` passes it on as it comes",
    "universal_newlines": "it is called text=",
    "encoding": "text=True is UTF-8; bytes come without it",
    "errors": "text=True replaces what is no UTF-8; bytes come without it",
}


def invocation(command: Any, *, text: bool, options: Mapping[str, Any]) -> Invocation:
    """Return the command as `Machine.run` was asked for it. Raises TypeError, InvalidValueError."""
    if options:
        from ringzero.api.options import RunOptions
    for name in options:
        if name not in RunOptions.__annotations__:
            known = ", ".join([*RunOptions.__annotations__, "text"])
            told = _SUBPROCESS.get(name, f"there are {known}")
            raise TypeError(f"run() has no option {name!r}: {told}")
    words = [command] if isinstance(command, (str, bytes)) else command
    if isinstance(command, bytes) or not (
        isinstance(words, Sequence) and all(isinstance(word, (str, bytes)) for word in words)
    ):
        raise InvalidValueError(
            f"a command is a string, or a sequence of words, not {command!r:.100}",
            hint="run('ls -l') goes through the guest's shell, run(['ls', '-l']) does not",
        )
    return Invocation(command, text=text, **options)


@record
class Invocation:
    """A command, and how it is run: words, or a string for the guest's shell.

    `input` is what it reads; text goes as UTF-8. It ends after `timeout` seconds. `env` is
    added to its environment, `cwd` is its directory, `user` a name that the guest knows. With
    `check` another status than 0 is an error; with `text` its output is str.
    """

    command: str | Sequence[str | bytes]
    input: bytes | str | None = None
    timeout: float | None = None
    env: Mapping[str, str] | None = None
    cwd: str | os.PathLike[str] | None = None
    user: str | None = None
    check: bool = False
    text: bool = False

    def words(self, *, takes_options: bool = False) -> str | Sequence[str | bytes]:
        """Return the command with environment, directory and user made part of it.

        By options where the guest takes them, else by its own env(1), sh(1) and su(1). Raises
        InvalidValueError.
        """
        if not (self.env or self.cwd or self.user):
            return self.command
        command = self.command
        words: list[str | bytes] = ["sh", "-c", command] if isinstance(command, str) else [*command]
        if not words:
            raise InvalidValueError("an empty command")
        if self.env:
            for name in self.env:
                if not name or "=" in name:
                    raise InvalidValueError(f"an environment variable cannot be called {name!r}")
        if self.user and self.user.startswith("-"):
            raise InvalidValueError(f"a user cannot be called {self.user!r}")
        if takes_options:
            cwd = os.fspath(self.cwd) if self.cwd else None
            return [*command_options((self.env or {}).items(), cwd, self.user), *words]
        if self.env:
            words = ["env", *(f"{name}={value}" for name, value in self.env.items()), *words]
        if self.cwd:
            words = ["sh", "-c", _CHANGE_DIRECTORY, os.fspath(self.cwd), *words]
        if self.user:
            words = ["su", "-s", "/bin/sh", "-c", _BECOME, "--", self.user, "sh", *words]
        return words

    def data(self) -> bytes:
        """Return what the command reads on its standard input. Raises InvalidValueError."""
        return input_bytes(self.input)

    def result(
        self, status: int, stdout: bytes, stderr: bytes
    ) -> CommandResult[bytes] | CommandResult[str]:
        """Return what came of it. Raises CommandError."""
        result: CommandResult[bytes] | CommandResult[str]
        if self.text:
            result = CommandResult(decoded(stdout), decoded(stderr), status)
        else:
            result = CommandResult(stdout, stderr, status)
        if self.check:
            result.check()
        return result
