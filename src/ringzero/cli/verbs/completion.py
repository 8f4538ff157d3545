"""`ringzero completion`: shell code that completes commands, flags, their values, files, names.

All of it is made from the verbs' own parsers, so that a new flag is completed too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from ringzero.cli.verb import HERE, VERBS, Away, Verb
from ringzero.records import record

# How the names of what there is are found, by what a positional word or a flag calls it.
_MACHINES, _SNAPSHOTS = "ringzero ps -aq", "ringzero snapshot ls -q"
_NETWORKS = "ringzero network ls | sed 1d | cut -d ' ' -f 1"
_DEPLOYMENTS = "ringzero deploy ls -q"
_ASKED = {
    "machine": _MACHINES,
    "snapshot": _SNAPSHOTS,
    "other": _SNAPSHOTS,
    "network": _NETWORKS,
    "networks": _NETWORKS,
    "net": _NETWORKS,
    "deployment": _DEPLOYMENTS,
    "hosts": "ringzero --host local host ls -q",
}
# Positional words that are files, and flags' values that are: what they stand for says so.
_FILE_WORDS = ("filename", "first", "second", "source", "target", "file", "operands")
_FILE_VALUES = ("FILE", "PATH", "DIR")
# What may stand before a command.
_HOST_FLAGS = ("--host", "--token-file", "--cacert")
# Of a guest, not of the host.
_GUESTS_OWN = "workdir"

_BASH = """\
_ringzero() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
    local words= files= names= word flag value cut host=$RINGZERO_HOST at=$COMP_CWORD
    local -a line=("${{COMP_WORDS[@]}}")
    COMPREPLY=()
    # Flags before the command; bash parts a URL at its colons.
    while [ "$at" -gt 1 ]; do
        flag=${{line[1]}}
        case $flag in --host|-H|--token-file|--cacert) ;; *) break ;; esac
        [ "${{line[2]}}" = = ] && line=("${{line[@]:0:2}}" "${{line[@]:3}}") && at=$((at - 1))
        value=${{line[2]}} cut=3
        while [ "${{line[cut]}}" = : ]; do value+=:${{line[cut+1]}} cut=$((cut + 2)); done
        if [ "$at" -lt "$cut" ]; then
            case $flag in
            --host|-H) COMPREPLY=($(compgen -W "$(ringzero host ls -q 2>/dev/null)" -- "$value")) ;;
            *) compopt -o default 2>/dev/null ;;
            esac
            return
        fi
        case $flag in --host|-H) host=$value ;; esac
        line=("${{line[0]}}" "${{line[@]:cut}}") at=$((at - cut + 1))
    done
    for word in "${{line[@]:1:at-1}}"; do
        # A guest's command.
        [ "$word" = -- ] && compopt -o default 2>/dev/null && return
    done
    case "$at ${{line[1]}} ${{line[2]}}" in
{cases}
    esac
    case $current in -*) names= files= ;; esac
    [ -n "$files" ] && compopt -o default 2>/dev/null
    # compgen expands words as the shell does: of what another host calls names, only names count.
    [ -n "$names" ] && words+=" $(
        [ -n "$host" ] && export RINGZERO_HOST="$host"
        eval "$names" 2>/dev/null | sed -n '/^[[:alnum:]_.-]*$/p'
    )"
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -F _ringzero ringzero
"""

_FISH = """\
function __ringzero_words
    set -l words (commandline -opc)[2..]
    while contains -- "$words[1]" --host -H --token-file --cacert
        set words $words[3..]
    end
    printf '%s\n' $words
end
function __ringzero_at
    set -l words (__ringzero_words)
    contains -- -- $words; and return 1
    test "$words" = "$argv"; or string match -q -- "$argv *" "$words"
end
function __ringzero_begins
    set -l words (__ringzero_words)
    test "$words" = "$argv"
end
complete -c ringzero -f
complete -c ringzero -n __ringzero_begins -s H -l host -x -a '(ringzero host ls -q 2>/dev/null)'
complete -c ringzero -n __ringzero_begins -l token-file -l cacert -r -F
complete -c ringzero -n 'contains -- -- (commandline -opc)' -F
"""


@record
class _Offer:
    """What can stand in a place: fixed words, files, and names that a command tells."""

    words: tuple[str, ...] = ()
    files: bool = False
    names: str = ""


@record
class _Command:
    """A command, or a group with the commands in it (by name, each with what it does)."""

    path: tuple[str, ...]
    parser: argparse.ArgumentParser
    commands: dict[str, str]

    @property
    def flags(self) -> list[argparse.Action]:
        return [action for action in self.parser._actions if action.option_strings]

    @property
    def long(self) -> list[str]:
        """Its flags of more than a letter."""
        return [o for flag in self.flags for o in flag.option_strings if o.startswith("--")]

    @property
    def positional(self) -> _Offer:
        """What its words can be, wherever they stand."""
        offers = [_offer(a, self.path) for a in self.parser._actions if not a.option_strings]
        return _Offer(
            tuple(word for offer in offers for word in offer.words),
            any(offer.files for offer in offers),
            "; ".join(dict.fromkeys(offer.names for offer in offers if offer.names)),
        )


@VERBS.register("completion")
class Completion(Verb):
    summary = "print shell code for completion"
    away = Away(HERE)
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
            print(_FISH + "\n".join(_fish()))
            return 0
        if arguments.shell == "zsh":
            print("#compdef ringzero\nautoload -U +X bashcompinit && bashcompinit")
        print(_BASH.format(cases="\n".join(_bash())), end="")
        return 0


def _all_commands() -> Iterator[_Command]:
    """Yield every verb, and behind a group the commands in it."""
    for name, verb in VERBS:
        parser = argparse.ArgumentParser(prog=name)
        verb().configure(parser)
        group = next((a for a in parser._actions if isinstance(a, _SubParsers)), None)
        if group is None:
            yield _Command((name,), parser, {})
            continue
        helps = {choice.dest: choice.help or "" for choice in group._choices_actions}
        yield _Command((name,), parser, {n: helps.get(n, "") for n in group.choices})
        for command, sub in group.choices.items():
            yield _Command((name, command), sub, {})


_SubParsers = argparse._SubParsersAction


def _offer(action: argparse.Action, path: tuple[str, ...]) -> _Offer:
    """Return what a positional word or a flag's value can be."""
    what, metavar = action.dest, str(action.metavar or "")
    if isinstance(action, _SubParsers):
        return _Offer()
    if action.choices:
        return _Offer(tuple(map(str, action.choices)))
    if what in _ASKED:
        return _Offer(names=_ASKED[what])
    if what == "words":
        return _Offer(tuple(VERBS.names()))
    if what == "engine":
        return _Offer(("auto", "soft", "kvm"))
    if what == "image" or path[0] == "image":
        from ringzero.image.names import IMAGES

        return _Offer(tuple(IMAGES.names()))
    if metavar == "FMT":
        from ringzero.disk.registry import FORMATS

        return _Offer(tuple(FORMATS.names()))
    files = what in _FILE_WORDS or any(name in metavar for name in _FILE_VALUES)
    return _Offer(files=files and what != _GUESTS_OWN)


def _bash() -> Iterator[str]:
    """Yield the branches that set `words`, `files` and `names`, the narrow ones first."""
    verbs = " ".join((*VERBS.names(), "--help", "--version", *_HOST_FLAGS))
    yield f'    "1 "*) words="{verbs}" ;;'
    late = []
    for command in _all_commands():
        if command.commands:
            flags = [flag for flag in command.long if flag != "--help"]
            words = " ".join((*command.commands, *flags, "--help"))
            yield f'    "2 {command.path[0]} "*) words="{words}" ;;'
            if flags:
                # A group that does something by itself: its commands are narrower.
                late.append(command)
            continue
        yield from _bash_case(command, '"' if len(command.path) > 1 else ' "*')
    for command in late:
        yield from _bash_case(command, ' "*')


def _bash_case(command: _Command, end: str) -> Iterator[str]:
    """Yield the branch of one command, whose pattern has this end."""
    yield f'    *[0-9]" {" ".join(command.path)}{end})'
    yield "        case $previous in"
    for flag in command.flags:
        if flag.nargs != 0:
            offer = _offer(flag, command.path)
            yield f"        {'|'.join(flag.option_strings)}) {_set(offer)} ;;"
    offer = command.positional
    words = (*command.long, *offer.words)
    yield f"        *) {_set(_Offer(words, offer.files, offer.names))} ;;"
    yield "        esac ;;"


def _set(offer: _Offer) -> str:
    names = offer.names.replace('"', '\\"')
    return f'words="{" ".join(offer.words)}" files={"1" if offer.files else ""} names="{names}"'


def _fish() -> Iterator[str]:
    """Yield fish's commands: what there is and what it does, flags, their values, names."""
    for name, verb in VERBS:
        yield f"complete -c ringzero -n __ringzero_begins -a {name} -d {_quoted(verb.summary)}"
    for command in _all_commands():
        path = " ".join(command.path)
        for name, text in command.commands.items():
            yield f"complete -c ringzero -n '__ringzero_begins {path}' -a {name} -d {_quoted(text)}"
        if len(command.flags) == 1 and command.commands:
            # Help alone.
            continue
        before = f"complete -c ringzero -n '__ringzero_at {path}'"
        for flag in command.flags:
            options = " ".join(_fish_flag(option) for option in flag.option_strings)
            offer = _offer(flag, command.path)
            takes = "" if flag.nargs == 0 else f" -r{_fish_offer(offer)}"
            text = _quoted((flag.help or "").partition("(")[0].strip() % _Anything())
            yield f"{before} {options}{takes} -d {text}"
        offered = _fish_offer(command.positional)
        if offered:
            yield f"{before}{offered}"


class _Anything(dict[str, Any]):
    """For the places in a flag's help where argparse puts defaults."""

    def __missing__(self, key: str) -> str:
        return ""


def _fish_offer(offer: _Offer) -> str:
    words = list(offer.words)
    if offer.names:
        words.append(f"(begin; {offer.names}; end 2>/dev/null)")
    return (f" -a {_quoted(' '.join(words))}" if words else "") + (" -F" if offer.files else "")


def _fish_flag(option: str) -> str:
    """Return how fish is told of a flag: long, of one letter, or old."""
    if option.startswith("--"):
        return f"-l {option[2:]}"
    return f"-s {option[1:]}" if len(option) == 2 else f"-o {option[1:]}"


def _quoted(text: str) -> str:
    """Return a word of fish's, in which only quote and backslash are special."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
