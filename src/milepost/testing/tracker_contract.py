"""Does a tracker do what :class:`milepost.trackers.protocol.Tracker` promises for it?

A class of tests to inherit from. It plays the follower: every call comes in the order of the protocol, and every
cursor is carried through JSON, as it is between two processes.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from milepost.core.events import BigIntegers, Metrics, StatusChanged
from milepost.core.plugins import checked_tracker
from milepost.runs.scan import LoggedRecord
from milepost.testing.stories import HOSTILE_NAMES, NUMBERS, every_kind, losses, told
from milepost.trackers.protocol import RunDescription, Tracker

__all__ = ["Points", "TrackerContract"]

#: By metric, its points as pairs of step and value, by step.
Points = Mapping[str, Sequence[tuple[int, float]]]

_COMPLETED = StatusChanged(status="completed", summary={"loss": 0.125})


class TrackerContract:
    """Tests of a tracker; inherit from it under a name that pytest collects, and say how the tracker is made.

    ::

        class TestMyTracker(TrackerContract):
            def make_tracker(self, tmp_path):
                return MyTracker(tmp_path / "elsewhere")

            def read_back(self, tmp_path):
                return my_points(tmp_path / "elsewhere")

    Attributes:
        safe_after_flush: False for a tool that acknowledges before it has written (W&B's service process). What was
            flushed is then looked for only after the close.
    """

    safe_after_flush = True

    def make_tracker(self, tmp_path: Path) -> Tracker:
        """A new tracker; each one made for the same ``tmp_path`` is a later life of the one before."""
        raise NotImplementedError("say in make_tracker(self, tmp_path) how your tracker is made")

    def read_back(self, tmp_path: Path) -> Points | None:  # noqa: ARG002  for those who override it
        """What the tool holds now, by its own reader; None if that cannot be known, and is not checked."""
        return None

    def run_for(self, tmp_path: Path) -> RunDescription:
        """What the tracker is told about the run."""
        return RunDescription(
            id="contract_20260101-000000",
            name="contract",
            started=1_767_225_600.0,
            hyperparameters={"lr": 0.1, "deep": {"er": [1, None]}, "": "empty", "long": "x" * 2000},
            tags=("one", "one", ""),
            project="contract",
            folder=tmp_path / "guest",
            media=tmp_path / "media",
        )

    # ---------------------------------------------------------------- what the tests are made of

    def opened(self, tmp_path: Path, cursor: Mapping[str, Any] | None = None, **changes: Any) -> tuple[Tracker, bool]:
        """A new tracker that was opened, and whether it goes on from ``cursor``."""
        tracker = self.make_tracker(tmp_path)
        goes_on = tracker.open(replace(self.run_for(tmp_path), **changes), cursor or {})
        return tracker, goes_on

    def flushed(self, tracker: Tracker, records: Sequence[LoggedRecord]) -> dict[str, Any]:
        """Write and flush; the cursor as the next process gets it."""
        if records:
            tracker.write(records)
        cursor = tracker.flush()
        through_json = json.loads(json.dumps(cursor))
        assert through_json == cursor, f"flush() returned {cursor!r}, which JSON turns into {through_json!r}"
        return dict(through_json)

    def expect(self, tmp_path: Path, expected: Points) -> None:
        """The tool holds these points of these metrics, each once, and perhaps other metrics."""
        found = self.read_back(tmp_path)
        if found is None:
            return
        for name, points in expected.items():
            assert sorted(found.get(name, ())) == sorted(points), name

    # ---------------------------------------------------------------- the tests

    def test_it_has_a_name_and_the_four_methods(self, tmp_path: Path) -> None:
        """The name is a short word for files and messages."""
        checked_tracker(self.make_tracker(tmp_path))

    def test_a_run_is_told_from_its_first_record_to_its_end(self, tmp_path: Path) -> None:
        """Open, write and flush again and again, close."""
        tracker, _ = self.opened(tmp_path)
        self.flushed(tracker, losses(range(3)))
        self.flushed(tracker, [])
        self.flushed(tracker, losses(range(3, 8)))
        tracker.close(_COMPLETED)
        self.expect(tmp_path, {"loss": _eighths(range(8))})

    def test_what_was_flushed_is_safe_before_the_close(self, tmp_path: Path) -> None:
        """After ``flush`` a crash of this process loses nothing."""
        if not self.safe_after_flush or self.read_back(tmp_path) is None:
            pytest.skip("nobody can see what was flushed before the close")
        tracker, _ = self.opened(tmp_path)
        self.flushed(tracker, losses(range(5)))
        self.expect(tmp_path, {"loss": _eighths(range(5))})
        tracker.close(None)

    def test_a_later_tracker_goes_on_from_the_cursor_and_what_is_told_again_is_there_once(self, tmp_path: Path) -> None:
        """Delivery is at least once; what is shown is exactly once."""
        tracker, _ = self.opened(tmp_path)
        cursor = self.flushed(tracker, losses(range(4)))
        self.flushed(tracker, losses(range(4, 6)))  # the process dies before this cursor is saved
        tracker.write(losses(range(6, 8)))  # nor is this flushed
        tracker.close(None)

        tracker, goes_on = self.opened(tmp_path, cursor)
        if not goes_on:
            tracker, _ = self.opened(tmp_path)
        self.flushed(tracker, losses(range(4 if goes_on else 0, 10)))
        tracker.close(_COMPLETED)
        self.expect(tmp_path, {"loss": _eighths(range(10))})

    def test_a_run_that_has_ended_can_go_on_in_another_attempt(self, tmp_path: Path) -> None:
        """A killed run that is resumed is one story."""
        tracker, _ = self.opened(tmp_path)
        cursor = self.flushed(tracker, losses(range(4)))
        tracker.close(StatusChanged(status="killed", reason="killed by SIGKILL", signal="SIGKILL", source="companion"))

        tracker, goes_on = self.opened(tmp_path, cursor, attempt=2, pid=2)
        if not goes_on:
            tracker, _ = self.opened(tmp_path, attempt=2, pid=2)
        self.flushed(tracker, losses(range(4 if goes_on else 0, 6)))
        tracker.close(_COMPLETED)
        self.expect(tmp_path, {"loss": _eighths(range(6))})

    def test_a_cursor_of_something_that_is_gone_is_refused_or_passed_over_and_never_a_crash(
        self, tmp_path: Path
    ) -> None:
        """``open`` returns False if what the cursor speaks of is not there."""
        first, second = tmp_path / "first", tmp_path / "second"
        for folder in (first, second):
            folder.mkdir()
        tracker, _ = self.opened(first)
        cursor = self.flushed(tracker, losses(range(4)))
        tracker.close(None)

        tracker, goes_on = self.opened(second, cursor)
        assert isinstance(goes_on, bool)
        if not goes_on:
            tracker, _ = self.opened(second)
            self.flushed(tracker, losses(range(6)))
        tracker.close(None)
        if not goes_on:
            self.expect(second, {"loss": _eighths(range(6))})

    def test_every_number_every_name_and_every_kind_of_record_is_taken(self, tmp_path: Path) -> None:
        """What cannot be shown is passed over, and the rest is told."""
        tracker, _ = self.opened(tmp_path)
        numbers = Metrics(step=2**40, epoch=1e9, values=dict(NUMBERS))
        beyond = BigIntegers(step=3, epoch=None, values={"beyond": str(-(10**400))})
        names = Metrics(step=3, epoch=None, values=dict.fromkeys(HOSTILE_NAMES, 0.5))
        self.flushed(tracker, every_kind(tmp_path / "media"))
        self.flushed(tracker, told([numbers, beyond, names, Metrics(step=4, epoch=None, values={"loss": 0.25})], 100))
        tracker.close(_COMPLETED)
        found = self.read_back(tmp_path)
        if found is not None:
            assert (4, 0.25) in found["loss"]
            assert any(math.isnan(value) for _, value in found.get("nan", [(0, math.nan)]))

    def test_it_can_be_closed_at_any_time(self, tmp_path: Path) -> None:
        """Also before it was opened."""
        self.make_tracker(tmp_path).close(None)
        tracker, _ = self.opened(tmp_path)
        tracker.close(None)
        tracker, _ = self.opened(tmp_path)
        tracker.write(losses(range(2)))
        tracker.close(None)

    def test_it_can_be_closed_after_a_call_that_raised(self, tmp_path: Path) -> None:
        """Whatever raised, also ``open``."""
        (tmp_path / "file").write_text("no folder", encoding="utf-8")
        tracker = self.make_tracker(tmp_path)
        run = replace(self.run_for(tmp_path), folder=tmp_path / "file" / "below")
        with contextlib.suppress(Exception):  # it may raise what it likes, or need no folder
            tracker.open(run, {})
            tracker.write(losses(range(2)))
            tracker.flush()
        tracker.close(None)


def _eighths(steps: range) -> list[tuple[int, float]]:
    return [(step, step / 8) for step in steps]
