"""When is the next checkpoint due?

By steps, by minutes, or as often as a share of the time allows. Pure but for the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Cadence"]


class Cadence:
    """Answers ``should_save``.

    Args:
        every_steps: Due this many steps after the last save or resume.
        every_minutes: Due this many minutes after the last save as well; None: never for that reason.
        max_overhead: Percentage of the time that saving may cost; stands in for ``every_steps``. None: no such rule.
        clock: Seconds, monotonic.

    Attributes:
        signalled: A signal asked for a save: due once, at the next question.
    """

    def __init__(
        self,
        *,
        every_steps: int,
        every_minutes: float | None = None,
        max_overhead: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.signalled = False
        self._every_steps = every_steps
        self._last_step: int | None = None

    def due(self, step: int) -> bool:
        """Whether a save is due at ``step``; never at step 0, where nothing has been learnt yet."""
        if self.signalled:
            self.signalled = False
            return True
        return step > 0 and step - (self._last_step or 0) >= self._every_steps

    def saved(self, step: int, seconds: float) -> None:
        """A save of ``step`` held the training for ``seconds``."""
        self._last_step = step
        self.signalled = False

    def resumed_at(self, step: int) -> None:
        """Count from ``step``, the last step that the restored checkpoint had done."""
        self._last_step = step
