"""What runs are there, and what does one of them say?

For terminal, notebook and programs. Everything is read when it is asked for, from the log and from what is on disk now.

**Invariants**: reading writes nothing, starts nothing, and needs no torch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from milepost.core.errors import NotFoundError
from milepost.core.events import Noticed
from milepost.core.names import is_safe_id
from milepost.core.records import CheckpointInfo
from milepost.runs.history import RunHistory
from milepost.runs.layout import RunLayout
from milepost.runs.listed import best_of, listed_checkpoints
from milepost.runs.logged_media import MediaItem
from milepost.runs.metadata import read_metadata
from milepost.runs.nearest import did_you_mean
from milepost.runs.projections import summarize
from milepost.runs.query import parse_query
from milepost.runs.run_list import RunList
from milepost.runs.series import Series
from milepost.runs.state import RunState, run_state
from milepost.runs.summary import RunSummary
from milepost.runs.telling import read_history
from milepost.runs.told import Attempt, LoggedAlert, LoggedLine, LoggedText

__all__ = ["RunReader", "Store", "open"]


class RunReader:
    """One run as it is now. The log is read at the first question about it; :meth:`refresh` reads it again."""

    def __init__(self, layout: RunLayout) -> None:
        self.layout = layout

    @property
    def id(self) -> str:
        """Its id, the name of its folders."""
        return self.layout.experiment_id

    @property
    def name(self) -> str:
        """As the user called it."""
        return str(self.metadata.get("name") or self.id)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What was said about it: ``metadata.json``, or if that is gone, what the log says."""
        return read_metadata(self.layout) or dict(self.history.fields)

    @cached_property
    def state(self) -> RunState:
        """Its state, derived from log, locks and heartbeats now."""
        return run_state(self.layout)

    @property
    def status(self) -> str:
        """``running``, ``paused``, ``completed``, ``failed``, ``stopped``, ``killed``, ``preempted`` or ``unsure``."""
        return self.state.status

    @cached_property
    def history(self) -> RunHistory:
        """Everything that its logs say."""
        return read_history(self.layout, live=self.state.live)

    def refresh(self) -> RunReader:
        """Forget what was read; return the same reader."""
        for name in ("metadata", "state", "history"):
            self.__dict__.pop(name, None)
        return self

    @property
    def started(self) -> float | None:
        """When its first attempt began, seconds since 1970; None if nothing says so."""
        given = self.metadata.get("start_time")
        return float(given) if isinstance(given, (int, float)) else None

    @property
    def seconds(self) -> float | None:
        """How long it took, the times between its attempts included; up to now while it runs."""
        if self.started is None:
            return None
        last = self.attempts[-1].ended if self.attempts else None
        ended = time.time() if self.state.live else last
        return None if ended is None else max(0.0, ended - self.started)

    @property
    def group(self) -> str | None:
        """What ties it to other runs, a sweep for example."""
        group = self.metadata.get("group")
        return None if group is None else str(group)

    @property
    def tags(self) -> list[str]:
        """Its tags."""
        return [str(tag) for tag in self.metadata.get("tags") or ()]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """As it was given them."""
        given = self.metadata.get("hyperparameters")
        return dict(given) if isinstance(given, Mapping) else {}

    def metrics(self, rank: int = 0) -> list[str]:
        """Names of its metrics."""
        return self.history.metrics(rank)

    def series(self, metric: str, rank: int = 0, *, superseded: bool = False) -> Series:
        """The points of a metric: columns ``step``, ``epoch``, ``time``, ``value``.

        Args:
            metric: Full name.
            rank: Of which training process.
            superseded: Give what a resume did again instead of what counts.

        Raises:
            NotFoundError: It has no such metric.
        """
        known = self.metrics(rank)
        if metric not in known:
            raise NotFoundError(f"{self.id} has no metric {metric!r}", cure=did_you_mean(metric, known))
        return self.history.series(metric, rank, superseded=superseded)

    @property
    def summary(self) -> RunSummary:
        """What ``end_experiment`` was given; ``summary["val/loss"].min`` and the like for every metric."""
        status = self.history.status
        return RunSummary(status[0].summary if status is not None else {}, self.metrics(), self.summarize)

    def summarize(self, metric: str, rank: int = 0) -> dict[str, Any]:
        """``points``, ``nan``, ``last``, ``min``, ``max`` with their steps, ``mean``; what a metric lacks is absent."""
        return summarize(self.series(metric, rank))

    @property
    def checkpoints(self) -> list[CheckpointInfo]:
        """Committed and not removed, by step. A file may be gone nevertheless: ``info.path.exists()``."""
        return listed_checkpoints(self.layout, self.history.checkpoints)

    @property
    def latest(self) -> CheckpointInfo | None:
        """The checkpoint of the largest step whose file is there."""
        there = [info for info in self.checkpoints if info.path.exists()]
        return there[-1] if there else None

    @property
    def best(self) -> CheckpointInfo | None:
        """The last one saved as best; else by the configured metric; else None."""
        settings = self.metadata.get("settings")
        return best_of(self.checkpoints, settings if isinstance(settings, Mapping) else {})

    @property
    def lines(self) -> list[LoggedLine]:
        """What was printed."""
        return self.history.lines

    @property
    def texts(self) -> list[LoggedText]:
        """What was logged with ``log_text``."""
        return self.history.texts

    @property
    def media(self) -> list[MediaItem]:
        """Files to look at, in the order in which they were logged; without those that a resume did again."""
        return self.history.media.items(self.layout.media, self.history.rewinds)

    @property
    def system(self) -> tuple[str, ...]:
        """Names of what was sampled of machine and processes."""
        return self.history.samples.names(0)

    def system_series(self, name: str, rank: int = 0) -> Series:
        """Samples by time; ``step`` is the last one known then, -1 before the first.

        Args:
            name: One of :attr:`system`.
            rank: Beside which training process; with several hosts, each one's first samples its own.

        Raises:
            NotFoundError: It was not sampled.
        """
        known = list(self.history.samples.names(rank))
        if name not in known:
            raise NotFoundError(f"{self.id} has no samples {name!r}", cure=did_you_mean(name, known))
        return self.history.system_series(name, rank)

    @property
    def alerts(self) -> list[LoggedAlert]:
        """What a person was asked to look at, by the training itself or by a rule."""
        return self.history.alerts

    @property
    def notices(self) -> list[Noticed]:
        """What is wrong and not cured."""
        return self.history.notices

    @property
    def attempts(self) -> list[Attempt]:
        """Its stays, the last one with the derived state."""
        from dataclasses import replace

        attempts = list(self.history.attempts)
        if attempts and attempts[-1].number == self.state.attempt:
            attempts[-1] = replace(attempts[-1], status=self.status, reason=self.state.reason)
        return attempts

    @property
    def last_step(self) -> int | None:
        """The last step that its latest attempt logged, or None."""
        attempts = self.history.attempts
        return attempts[-1].last_step if attempts and attempts[-1].last_step >= 0 else None

    @property
    def lost_steps(self) -> int:
        """Steps that were done again after a resume."""
        return self.history.lost_steps

    def __repr__(self) -> str:
        return f"<RunReader {self.id}: {self.status}>"


class Store:
    """The runs below a folder.

    Attributes:
        folder: It, absolute.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def runs(self, query: str = "") -> RunList:
        """All runs, or those that ``query`` asks for, the newest first.

        Args:
            query: Terms like ``group:lr-sweep``; see :mod:`milepost.runs.query`.

        Raises:
            InvalidInputError: A term is none.
        """
        asked = parse_query(query)
        readers = [RunReader(layout) for layout in _layouts(self.folder)]
        found = [run for run in readers if asked.holds(run)]
        return RunList(sorted(found, key=lambda run: (run.started or 0.0, run.id), reverse=True))

    def __getitem__(self, name: str) -> RunReader:
        """A run by id, by name (the newest of that name), or by the unique beginning of an id.

        Raises:
            NotFoundError: There is none, or several ids begin so.
        """
        runs = self.runs()
        for found in ([run for run in runs if run.id == name], [run for run in runs if run.name == name]):
            if found:
                return found[0]
        begun = [run for run in runs if name and run.id.startswith(name)]
        if len(begun) == 1:
            return begun[0]
        if begun:
            several = ", ".join(run.id for run in begun[:5])
            raise NotFoundError(f"several runs begin with {name!r}", cure=f"name one of {several}")
        known = [run.id for run in runs] + [run.name for run in runs]
        raise NotFoundError(f"no run {name!r} in {self.folder}", cure=did_you_mean(name, known))

    def __repr__(self) -> str:
        return f"<Store {self.folder}>"


def open(folder: str | os.PathLike[str] | None = None) -> Store:  # noqa: A001 - milepost.open, as in gzip.open
    """The runs in a folder.

    Args:
        folder: The folder that holds ``experiments/`` (or that folder itself). None: ``MILEPOST_DIR``, else the
            working folder or the nearest one above it that holds ``experiments/`` and ``metrics/``.

    Raises:
        NotFoundError: There is no such folder.
    """
    if folder is None:
        folder = os.environ.get("MILEPOST_DIR") or _found_upward(Path.cwd())
    place = Path(folder).expanduser().absolute()
    if not place.is_dir():
        raise NotFoundError(f"no folder {str(place)!r}", cure="check the path, or set MILEPOST_DIR")
    return Store(place)


def _found_upward(start: Path) -> Path:
    for folder in (start, *start.parents):
        if (folder / "experiments").is_dir() and (folder / "metrics").is_dir():
            return folder
    raise NotFoundError(
        f"no runs in {str(start)!r} or above it",
        cure="go to the folder that holds experiments/ and metrics/, or set MILEPOST_DIR",
    )


def _layouts(folder: Path) -> list[RunLayout]:
    experiments = folder / "experiments" if (folder / "experiments").is_dir() else folder
    try:
        names = [entry.name for entry in os.scandir(experiments) if entry.is_dir() and is_safe_id(entry.name)]
    except OSError:
        return []
    layouts = [_layout(experiments, name) for name in names]
    return [layout for layout in layouts if layout.metadata.exists() or layout.log.is_dir()]


def _layout(experiments: Path, experiment_id: str) -> RunLayout:
    """Where the parts of a run lie: beside each other if they are there, else where its metadata says.

    In that order, because a store that was copied or moved still names the folders that it came from.
    """
    beside = experiments.parent
    layout = RunLayout(
        experiment_id=experiment_id,
        experiment_dir=str(experiments),
        checkpoint_dir=str(beside / "checkpoints"),
        logs_dir=str(beside / "logs"),
        metrics_dir=str(beside / "metrics"),
        tensorboard_dir=str(beside / "runs"),
    )
    folders = read_metadata(layout).get("folders")
    named = {str(k): v for k, v in folders.items() if isinstance(v, str)} if isinstance(folders, Mapping) else {}
    fields = layout.to_dict()
    for name in ("checkpoint_dir", "logs_dir", "metrics_dir", "tensorboard_dir"):
        shared = name in {"checkpoint_dir", "logs_dir"}
        if name in named and not Path(fields[name], "" if shared else experiment_id).is_dir():
            fields[name] = named[name]
    return RunLayout.from_dict(fields)
