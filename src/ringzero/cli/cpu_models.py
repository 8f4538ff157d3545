"""The models of processors that `--cpu` takes: how `--cpu help` shows them, what they compile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ringzero.errors import InvalidValueError

if TYPE_CHECKING:
    from ringzero.isa.contract import Architecture

# In place of a model's name.
SHOW_MODELS = "help"


def _architecture() -> Architecture[Any]:
    """Return the architecture of machines that ask for no board."""
    from ringzero.board.contract import BOARDS
    from ringzero.config.machine import MachineConfig

    return BOARDS.get(MachineConfig.board).architecture


def show_models() -> None:
    """Print a line for each model: whether the software engine has it here, and what it is."""
    from ringzero.cli.machines import table

    rows = []
    for model in _architecture().models():
        found = "yes" if model.translated else "KVM only"
        if model.lacks:
            found = f"{'without' if model.partial else 'lacks'} {' '.join(model.lacks)}"
        rows.append((model.name, found, " ".join(model.asks) or "-", model.summary))
    table(("MODEL", "THIS HOST", "ASKS FOR", "WHAT IT IS"), rows)


def guest_of(model: str) -> str:
    """Return the guest of compiled engines that has a model; raises InvalidValueError."""
    architecture = _architecture()
    names = [known.name for known in architecture.models() if known.translated]
    if model not in names:
        raise InvalidValueError(f"no CPU model {model!r}", hint=f"known: {', '.join(names)}")
    return architecture.compiled_guest(model)


def guests_of_models() -> set[str]:
    """Return the guests of compiled engines for all models."""
    return {guest_of(model.name) for model in _architecture().models() if model.translated}
