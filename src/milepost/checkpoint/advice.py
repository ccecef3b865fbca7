"""What should a person know about how their saves go, and do about it?

Said once each, with the cure: that training waits for the disk, and that most of what is written did not change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from milepost.checkpoint.job import SaveJob
from milepost.core.events import Noticed

if TYPE_CHECKING:
    from milepost.checkpoint.habits import Habits

__all__ = ["Advisor", "back_pressure", "unchanged"]

_LONG_MS = 1000.0
_TIMES_THE_COPY = 5.0
_SHORTEST_MS = 250.0  # a tiny model saved in every step waits many times its copy, and nobody minds
_MOSTLY = 0.5
_LARGE = 64 << 20  # of a smaller state nobody misses the half


def back_pressure(job: SaveJob) -> Noticed | None:
    """What to say if the save had to wait long for the one before it."""
    copy = job.stall_ms - job.wait_ms
    if job.wait_ms <= _LONG_MS and (job.wait_ms <= _SHORTEST_MS or job.wait_ms <= _TIMES_THE_COPY * copy):
        return None
    return Noticed(
        source="checkpoint",
        topic="back-pressure",
        message=f"at step {job.step} training waited {job.wait_ms / 1000:.1f} s until the save before was written",
        cure='save less often, set compression=False if the disk is fast, or pass busy="skip" to save_checkpoint',
        since_step=job.step,
    )


def unchanged(job: SaveJob, share: float | None) -> Noticed | None:
    """What to say if more than half of the state is what the save before wrote already.

    Args:
        job: The save.
        share: Part of the state's bytes that did not change; None: not known.
    """
    if share is None or share <= _MOSTLY or job.arena_bytes < _LARGE:
        return None
    if job.delta or job.include == "trainable" or job.format != "milepost":
        return None
    return Noticed(
        source="checkpoint",
        topic="unchanged",
        message=f"{share:.0%} of the checkpoint of step {job.step} is what the one before holds already",
        cure='compression="delta" stores the difference alone, include="trainable" leaves frozen parameters out',
        since_step=job.step,
    )


class Advisor:
    """Remembers what was said.

    Args:
        tell: Takes what is new.
    """

    def __init__(self, tell: Callable[[Noticed], None]) -> None:
        self._tell = tell
        self._said: set[str] = set()

    def staged(self, job: SaveJob) -> None:
        """A save arrived."""
        self._say_once(back_pressure(job))

    def written(self, job: SaveJob, habits: Habits) -> None:
        """A save was committed; ``habits`` know how it compares with the one before."""
        self._say_once(unchanged(job, habits.unchanged))

    def _say_once(self, noticed: Noticed | None) -> None:
        if noticed is not None and noticed.topic not in self._said:
            self._said.add(noticed.topic)
            self._tell(noticed)
