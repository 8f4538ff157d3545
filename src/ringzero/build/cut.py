"""Cutting a build short: one stage has failed, or the user wants no more of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from ringzero.errors import BuildError, RingzeroError


class Cut:
    """Whether a build is to end; stages in other threads hear of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made = False
        self._actions: list[Callable[[], object]] = []

    def add(self, action: Callable[[], object]) -> None:
        """Have `action` done when the build is cut short; at once where it was."""
        with self._lock:
            if not self._made:
                self._actions.append(action)
                return
        action()

    def check(self) -> None:
        """Raise BuildError where the build is cut short."""
        if self._made:
            raise BuildError("the build was cut short by another stage")

    def make(self) -> None:
        """Cut the build short: all machines end."""
        with self._lock:
            self._made, actions = True, self._actions
            self._actions = []
        for action in actions:
            with contextlib.suppress(RingzeroError):
                action()
