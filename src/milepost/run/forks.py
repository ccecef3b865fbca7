"""Which live runs must be told that they are in a forked child now?"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["survive_forks"]


class Forked(Protocol):
    """What a live run must be able to do."""

    def in_forked_child(self) -> None:
        """Let go of what belongs to the parent."""


_live: weakref.WeakSet[Forked] = weakref.WeakSet()


def survive_forks(run: Forked) -> None:
    """Tell ``run`` in every child that is forked from now on."""
    _live.add(run)


def _after_fork() -> None:
    for run in list(_live):
        run.in_forked_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
