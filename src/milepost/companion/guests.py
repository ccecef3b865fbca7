"""Who follows this run, and with what are they opened?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from milepost.companion.keeper import RecordKeeper
from milepost.companion.messages import Hello
from milepost.companion.rulebook import Entry, Respond, RuleBook
from milepost.core.events import Noticed
from milepost.runs.layout import RunLayout
from milepost.runs.metadata import read_metadata
from milepost.runs.scan import LogFollower, LoggedRecord
from milepost.trackers.delivery import Pace
from milepost.trackers.feed import LogSource
from milepost.trackers.follower import Follower
from milepost.trackers.protocol import RunDescription
from milepost.trackers.registry import follower_for, guests_for

__all__ = ["describe_run", "follow_rules", "make_followers"]


def describe_run(layout: RunLayout, hello: Hello) -> RunDescription:
    """The run as guests are told about it, out of ``metadata.json`` as the start wrote it."""
    known = read_metadata(layout)
    return RunDescription(
        id=layout.experiment_id,
        name=str(known.get("name") or layout.experiment_id),
        attempt=hello.attempt,
        started=float(known.get("start_time") or 0.0),
        host=hello.host,
        pid=hello.pid,
        description=str(known.get("description") or ""),
        hyperparameters=known.get("hyperparameters") or {},
        model_config=known.get("model_config") or {},
        dataset_info=known.get("dataset_info") or {},
        tags=tuple(known.get("tags") or ()),
        group=known.get("group"),
        notes=str(known.get("notes") or ""),
        folder=layout.tensorboard or Path(layout.experiment),
        media=layout.media,
        project=hello.settings.get("wandb_project"),
        artifacts=hello.settings.get("wandb_artifacts", "best"),
        best_metric=hello.settings.get("best_metric"),
        best_mode=hello.settings.get("best_mode", "min"),
    )


def make_followers(
    layout: RunLayout,
    settings: Mapping[str, Any],
    run: RunDescription,
    notice: Callable[[Noticed], None],
    tell: Callable[[str], None],
    may_feed: threading.Event | None,
) -> tuple[Follower, list[Follower]]:
    """The keeper of the run's own files, and every guest that the settings ask for."""
    source = partial(_Gated, layout, may_feed)
    keeper = Follower(
        "record",
        partial(RecordKeeper, layout, tell),
        run,
        open_source=source,
        cursor_path=layout.cursor("record"),
        notice=notice,
    )
    guests = [
        follower_for(
            plan,
            _with_folder(plan.name, run, layout),
            open_source=source,
            cursor_path=layout.cursor(plan.name),
            notice=notice,
        )
        for plan in guests_for(settings)
    ]
    return keeper, guests


def follow_rules(
    layout: RunLayout,
    entries: Sequence[Entry],
    respond: Respond,
    run: RunDescription,
    notice: Callable[[Noticed], None],
    may_feed: threading.Event | None,
) -> tuple[RuleBook, Follower]:
    """What judges the run by the user's rules, and what brings it the log."""
    book = RuleBook(layout, entries, respond)
    follower = Follower(
        book.name,
        lambda: book,
        run,
        open_source=partial(_Gated, layout, may_feed),
        cursor_path=layout.cursor(book.name),
        notice=notice,
        pace=Pace(poll_every=0.5),
    )
    return book, follower


def _with_folder(guest: str, run: RunDescription, layout: RunLayout) -> RunDescription:
    """TensorBoard has a folder of the mission's; any other guest keeps its files with the run."""
    return run if guest == "tensorboard" else replace(run, folder=layout.experiment / guest)


class _Gated:
    """The run's log, read only while nothing more urgent wants this process."""

    def __init__(self, layout: RunLayout, may_feed: threading.Event | None, cursor: Mapping[str, int]) -> None:
        self._follow = LogFollower(layout.log, cursor)
        self._may_feed = may_feed

    @property
    def cursor(self) -> Mapping[str, int]:
        return self._follow.cursor

    def read(self, limit: int) -> list[LoggedRecord]:
        if self._may_feed is not None:
            self._may_feed.wait(1.0)
        return self._follow.read(limit)


_: type[LogSource] = _Gated
