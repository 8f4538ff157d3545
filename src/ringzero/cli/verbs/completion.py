"""`ringzero completion`: shell code that completes verbs, flags, files, machines and snapshots."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from ringzero.cli.verb import VERBS, Verb

_BASH = """\
_ringzero() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} words=
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{verbs} --help --version"
    else
        case ${{COMP_WORDS[1]}} in
{cases}
        esac
    fi
    case ${{COMP_WORDS[1]}} in
        {named}) words+=" $(ringzero ps -aq 2>/dev/null)" ;;
        snapshot)
            if [ "$COMP_CWORD" -gt 2 ]; then
                words="--json"
                case ${{COMP_WORDS[2]}} in
                    save|revert) words+=" $(ringzero ps -aq 2>/dev/null)" ;;
                    import|export) compopt -o default 2>/dev/null ;;
                esac
                case ${{COMP_WORDS[2]}} in
                    save|import|ls|tree) ;;
                    *) words+=" $(ringzero snapshot ls -q 2>/dev/null)" ;;
                esac
            fi ;;
    esac
    case $previous in
        --engine) words="auto soft kvm" ;;
        --kernel|--initrd|--disk|--serial|--vsock) compopt -o default 2>/dev/null; return ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -F _ringzero ringzero
"""


# Flags whose values are files.
_FILES = ("kernel", "initrd", "disk", "serial", "vsock")


@VERBS.register("completion")
class Completion(Verb):
    summary = "print shell code for completion"
    examples = """\
  eval "$(ringzero completion bash)"
  ringzero completion zsh > ~/.zfunc/_ringzero
  ringzero completion fish > ~/.config/fish/completions/ringzero.fish
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the shell's name."""
        parser.add_argument("shell", choices=("bash", "fish", "zsh"))

    def execute(self, arguments: argparse.Namespace) -> int:
        """Print the code."""
        if arguments.shell == "fish":
            print("\n".join(_fish()))
            return 0
        cases, named = [], []
        for name, verb in VERBS:
            parser = argparse.ArgumentParser(prog=name)
            verb().configure(parser)
            words = " ".join(_words(parser))
            cases.append(f'            {name}) words="{words}" ;;')
            if any(action.dest == "machine" for action in parser._actions):
                named.append(name)
        code = _BASH.format(
            verbs=" ".join(VERBS.names()), cases="\n".join(cases), named="|".join(named)
        )
        if arguments.shell == "zsh":
            code = "#compdef ringzero\nautoload -U +X bashcompinit && bashcompinit\n" + code
        print(code, end="")
        return 0


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """Return the flags and the fixed words that `parser` takes."""
    words = []
    for action in parser._actions:
        words += [option for option in action.option_strings if option.startswith("--")]
        if action.choices and not action.option_strings:
            words += [str(choice) for choice in action.choices]
    return words


def _fish() -> Iterator[str]:
    """Yield fish's commands: verbs with what they do, their flags, and machines' names."""
    yield "complete -c ringzero -f"
    for name, kind in VERBS:
        verb, parser = kind(), argparse.ArgumentParser(prog=name)
        verb.configure(parser)
        yield f"complete -c ringzero -n __fish_use_subcommand -a {name} -d {_quoted(verb.summary)}"
        before = f"complete -c ringzero -n '__fish_seen_subcommand_from {name}'"
        for action in parser._actions:
            flags = [_fish_flag(option) for option in action.option_strings]
            if flags:
                takes = "" if action.nargs == 0 else " -r"
                takes += " -F" if action.dest in _FILES and takes else ""
                text = _quoted((action.help or "").partition("(")[0].strip() % {})
                yield f"{before} {' '.join(flags)}{takes} -d {text}"
            elif action.choices:
                yield f"{before} -a {_quoted(' '.join(map(str, action.choices)))}"
            elif action.dest == "machine":
                yield f"{before} -a '(ringzero ps -aq 2>/dev/null)'"


def _fish_flag(option: str) -> str:
    """Return how fish is told of a flag: long, of one letter, or old."""
    if option.startswith("--"):
        return f"-l {option[2:]}"
    return f"-s {option[1:]}" if len(option) == 2 else f"-o {option[1:]}"


def _quoted(text: str) -> str:
    """Return a word of fish's, in which only quote and backslash are special."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
