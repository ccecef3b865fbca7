"""When is the next checkpoint due?

By steps, by minutes, or as often as a share of the time allows. Pure but for the clock.

All ranks of a distributed training must answer alike at the same step, or some would save without the others. Steps are
the same everywhere, clocks are not: with several ranks only steps are taken.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from milepost.core.errors import InvalidInputError

__all__ = ["Cadence"]

_WARM_UP = 60.0
_REMEMBERED = 5


class Cadence:
    """Answers ``should_save``.

    Args:
        every_steps: Due this many steps after the last save or resume.
        every_minutes: Due this many minutes after the last save as well; None: never for that reason.
        max_overhead: Percentage of the time that saving may cost; stands in for ``every_steps``. What a save costs is
            the mean of the last five; the first, whose cost nobody knows, is due after a minute. None: no such rule.
        world_size: How many ranks must answer alike.
        clock: Seconds, monotonic.

    Attributes:
        signalled: A signal asked for a save: due once, at the next question.

    Raises:
        InvalidInputError: Several ranks are to agree by their clocks.
    """

    def __init__(
        self,
        *,
        every_steps: int,
        every_minutes: float | None = None,
        max_overhead: float | None = None,
        world_size: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value in (("save_every_minutes", every_minutes), ("max_overhead", max_overhead)):
            if value is not None and world_size > 1:
                raise InvalidInputError(
                    f"{name} is {value:g} with {world_size} ranks, whose clocks would not agree on a step",
                    cure="use save_frequency, which is the same step on all ranks",
                    kind="invalid-setting",
                )
        self.signalled = False
        self._every_steps = every_steps
        self._every_seconds = None if every_minutes is None else 60.0 * every_minutes
        self._share = None if max_overhead is None else max_overhead / 100.0
        self._clock = clock
        self._last_step: int | None = None
        self._since: float | None = None
        self._costs: deque[float] = deque(maxlen=_REMEMBERED)

    def due(self, step: int) -> bool:
        """Whether a save is due at ``step``; never at step 0, where nothing has been learnt yet."""
        if self.signalled:
            self.signalled = False
            return True
        now = self._clock()
        if self._since is None:
            self._since = now
        elapsed = now - self._since
        if step <= 0:
            return False
        if self._every_seconds is not None and elapsed >= self._every_seconds:
            return True
        if self._share is not None:
            return elapsed >= self._affordable_after(self._share)
        return step - (self._last_step or 0) >= self._every_steps

    def _affordable_after(self, share: float) -> float:
        """Seconds of training, after a save, by which the next one is no more than its share of the time."""
        if not self._costs:
            return _WARM_UP
        cost = sum(self._costs) / len(self._costs)
        return cost / share - cost

    def saved(self, step: int, seconds: float) -> None:
        """A save of ``step`` held the training for ``seconds``."""
        self._last_step = step
        self._since = self._clock()
        self._costs.append(seconds)
        self.signalled = False

    def resumed_at(self, step: int) -> None:
        """Count from ``step``, the last step that the restored checkpoint had done."""
        self._last_step = step
        self._since = self._clock()
