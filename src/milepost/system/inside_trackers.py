"""Who follows a run from inside the training process: the tracker objects that the user gave?

An object cannot move to the companion, so it works here: in a daemon thread of its own, fed from the run log on disk by
the same follower as every guest, with a cursor, retries and notices. Beside a companion process this is the one work
that costs the training processor time, so it is measured, and told at the end.

**Invariants**: nothing here holds up, or raises into, the training loop. An object is called by one thread only. After
a call that raised it is closed with None and opened again with its cursor: it cannot be built anew.

**On crash**: its cursor stays. The next attempt of the run opens the object that it is given under that name with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from milepost.core.errors import InvalidInputError
from milepost.core.events import Noticed
from milepost.core.saying import say
from milepost.runs.layout import RunLayout
from milepost.runs.scan import LogFollower
from milepost.trackers.follower import Follower
from milepost.trackers.protocol import RunDescription, Tracker

__all__ = ["InsideTrackers", "given_objects", "refuse_names_taken"]

_CATCHES_UP = "nothing is lost: it is tried again, and told the rest when the run goes on with it"
#: The least that a tracker gets to take the end, where the companion has used the time up.
_LEAST = 1.0
_NOTABLE_SHARE = 0.01


def given_objects(trackers: Sequence[Any]) -> list[Tracker]:
    """Those of the setting ``trackers`` that are objects, not names."""
    return [tracker for tracker in trackers if not isinstance(tracker, str)]


def refuse_names_taken(trackers: Sequence[Tracker], taken: Sequence[str]) -> None:
    """Every guest of a run has a name, and so a cursor, of its own.

    Raises:
        InvalidInputError: Two of them have the same.
    """
    names = [tracker.name for tracker in trackers]
    for name in names:
        if name in taken or names.count(name) > 1:
            raise InvalidInputError(f"two trackers have the name {name!r}", cure="give one of them another name")


class InsideTrackers:
    """The followers of tracker objects.

    Args:
        trackers: The objects.
        run: What they are told about the run.
        layout: Whose log they follow.
        notice: Takes what a person should know; called from their threads.
    """

    def __init__(
        self, trackers: Sequence[Tracker], run: RunDescription, layout: RunLayout, notice: Callable[[Noticed], None]
    ) -> None:
        self._began = time.monotonic()
        self._followers = [
            Follower(
                tracker.name,
                partial(_the_same, tracker),
                replace(run, folder=layout.experiment / tracker.name),
                open_source=partial(LogFollower, layout.log),
                cursor_path=layout.cursor(tracker.name),
                notice=notice,
                catches_up=_CATCHES_UP,
            )
            for tracker in trackers
        ]

    def start(self) -> None:
        """Begin to follow."""
        for follower in self._followers:
            follower.start()

    def check(self) -> None:
        """Say it, once, if an object hangs. Never waits."""
        for follower in self._followers:
            follower.check()

    def cost(self) -> dict[str, float]:
        """Seconds of processor time that each has taken so far; threads that it started itself are not seen."""
        return {follower.name: round(follower.state.cpu_seconds, 3) for follower in self._followers}

    def finish(self, deadline: float) -> None:
        """Deliver the rest and tell the end, until ``deadline`` (``time.monotonic()``).

        The log must be complete on disk. Who does not take everything is named by its follower.
        """
        if not self._followers:
            return
        for follower in self._followers:
            follower.hurry()
        deadline = max(deadline, time.monotonic() + _LEAST)
        for follower in self._followers:
            follower.finish(deadline)
        self._tell_cost(time.monotonic() - self._began)

    def _tell_cost(self, lasted: float) -> None:
        for name, seconds in self.cost().items():
            if seconds > max(1.0, _NOTABLE_SHARE * lasted):
                share = f"{100 * seconds / lasted:.0f} % of the time it lasted"
                say(f"the tracker {name!r} took {seconds:.1f} s of processor time inside the training, {share}")


def _the_same(tracker: Tracker) -> Tracker:
    return tracker
