"""What serves the shares of one machine, whichever protocol the guest speaks."""

from __future__ import annotations

import errno
import threading
from abc import ABC, abstractmethod

from ringzero.share.contract import Tree
from ringzero.share.roots import Roots


class ShareServer(ABC):
    """Serves what is in `roots`. `faults` counts our own errors, `fault` is the last.

    `lock` guards all trees, and what the guest holds; data moves without it.
    """

    def __init__(self) -> None:
        self.roots = Roots()
        self.lock = threading.RLock()
        self.faults = 0
        self.fault: BaseException | None = None

    def add(self, number: int, tree: Tree, target: str) -> None:
        """Have a share, which is the server's from now on."""
        with self.lock:
            self.roots.add(number, tree, target)

    def remove(self, number: int) -> None:
        """End a share: what the guest still has open of it fails with ESTALE, or EBADF."""
        with self.lock:
            tree = self.roots.remove(number)
            if tree is not None:
                self.drop(tree)
                tree.close()

    def close(self) -> None:
        """Close everything."""
        with self.lock:
            self.reset()
            self.roots.close()

    @abstractmethod
    def reset(self) -> None:
        """Forget the guest: its driver begins anew."""

    @abstractmethod
    def drop(self, tree: Tree) -> None:
        """Let go of everything that the guest has of a share; the lock is held."""

    def error_of(self, fault: Exception) -> int:
        """Return Linux's number for what went wrong with a request; our own errors are noted."""
        if isinstance(fault, OSError):
            return fault.errno or errno.EIO
        if isinstance(fault, (ValueError, OverflowError)):
            return errno.EINVAL
        self.faults += 1
        self.fault = fault
        return errno.EIO
