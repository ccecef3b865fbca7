"""How does a run reach Weights & Biases?

Through the package ``wandb``, kept quiet: it captures no console, reads no git, samples no machine, asks nothing. The
W&B run has the id of the experiment, so every attempt goes on in the same one. Without a login it stays offline, in
files that ``wandb sync`` uploads later.

**Invariants**: W&B's own step counts the rows that were told, and the count is part of the cursor: a row that is told
twice has the same step both times, and W&B keeps the first. The step of the training is the x axis of every chart.

**On crash**: W&B's service process dies with the companion and loses what it had not yet written, or uploaded. The
cursor therefore lags (:class:`milepost.trackers.delivery.Pace`), and those rows are told again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from milepost.core.errors import InvalidCallError, InvalidInputError, MissingDependencyError
from milepost.core.events import (
    Alerted,
    BigIntegers,
    CheckpointChanged,
    Described,
    MediaAdded,
    Metrics,
    Noticed,
    StatusChanged,
    SystemSampled,
    Text,
)
from milepost.runs.scan import LoggedRecord
from milepost.trackers.protocol import RunDescription
from milepost.trackers.wandb_artifacts import ModelArtifacts
from milepost.trackers.wandb_login import has_login, offline_notice
from milepost.trackers.wandb_media import Galleries, MediaValues, as_page
from milepost.trackers.wandb_summary import Extremes

__all__ = ["WandbTracker"]

_STEP = "trainer/global_step"
_SECONDS = "system/seconds"
_LONGEST_TAG = 64
_LONGEST_TITLE = 63
_LEVELS = {"info": "INFO", "warning": "WARN", "error": "ERROR"}
#: How W&B shows an end: 0 finished, 255 killed, others failed.
_EXIT_CODES = {"completed": 0, "paused": 0, "failed": 1}
_KILLED = 255
_QUIET: Mapping[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "save_code": False,
    "silent": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "x_transaction_log_flush_interval": 1.0,
}


class WandbTracker:
    """Follows a run at Weights & Biases.

    Hyperparameters, model and dataset become the config; metrics the history, with the wall time of their record;
    smallest, largest and final values the summary; images, sounds, histograms, tables, pages and texts W&B's own kinds
    of them; checkpoints artifacts (:mod:`milepost.trackers.wandb_artifacts`). Samples of the machine stand in the
    history over the seconds of the run, because W&B's own panel takes only what W&B sampled itself.

    W&B cannot take points back: after a resume at step k the points after k of the earlier attempt stay visible there,
    overdrawn by the new ones at the same steps.

    Args:
        notice: Told once if the run stays offline because there is no login, and once if something logged cannot be
            shown.
    """

    name = "wandb"

    def __init__(self, notice: Callable[[Noticed], None] | None = None) -> None:
        self._notice = notice
        self._left_out_said = False
        self._wandb: Any = None
        self._run: Any = None
        self._rows = 0
        self._first_seconds: float | None = None
        self._described: dict[str, Any] = {}
        self._machine: set[str] = set()
        self._extremes = Extremes({})
        self._galleries = Galleries([])
        self._media: MediaValues | None = None
        self._artifacts: ModelArtifacts | None = None

    def open(self, run: RunDescription, cursor: Mapping[str, Any]) -> bool:
        """Start or go on with the W&B run.

        Raises:
            MissingDependencyError: The package ``wandb`` is absent.
            InvalidInputError: W&B does not accept the login.
        """
        self._wandb = _import_wandb()
        self._rows = cursor.get("rows", 0)
        self._first_seconds = cursor.get("first_seconds")
        self._described = {"name": run.name, "notes": run.notes, "tags": list(run.tags)}
        self._described["hyperparameters"] = run.hyperparameters
        self._extremes = Extremes(cursor.get("extremes", {}))
        self._galleries = Galleries(cursor.get("gallery", []))
        # The global settings too: W&B prints where it found the login before it looks at those of the run.
        self._wandb.setup(self._settings())
        offline = "WANDB_MODE" not in os.environ and not has_login(self._wandb.Settings())
        self._run = self._start(run, mode="offline" if offline else None)
        self._run.define_metric(_STEP, hidden=True)
        self._run.define_metric(_SECONDS, hidden=True)
        self._run.define_metric("*", step_metric=_STEP)
        self._media = MediaValues(self._wandb, self._run, run, self._leave_out)
        self._artifacts = ModelArtifacts(self._wandb, self._run, run, cursor.get("checkpoints", {}), self._leave_out)
        if offline and self._notice is not None:
            self._notice(offline_notice(self._run.settings.sync_dir))
        return True

    def write(self, records: Sequence[LoggedRecord]) -> None:
        """Log a row per record of numbers, texts or media, and an artifact per committed checkpoint."""
        if records and self._first_seconds is None:
            self._first_seconds = records[0].wall_ns / 1e9
        for record in records:
            self._tell(record)

    def flush(self) -> Mapping[str, Any]:
        """Wait until W&B's service process has taken every row."""
        run, artifacts = self._opened()
        run.status()
        return {
            "rows": self._rows,
            "first_seconds": self._first_seconds,
            "extremes": self._extremes.known(),
            "gallery": self._galleries.open_one(),
            "checkpoints": artifacts.state(),
        }

    def close(self, end: StatusChanged | None) -> None:
        """Finish the W&B run with the state of the run, and wait until it is uploaded."""
        if self._run is not None:
            run, artifacts = self._opened()
            if end is not None:
                artifacts.ended(end)
                run.summary.update(self._extremes.summary() | end.summary)
            run.finish(exit_code=_KILLED if end is None else _EXIT_CODES.get(end.status, _KILLED))
            artifacts.finished()
            self._run = None
        self._end_service()

    def _opened(self) -> tuple[Any, ModelArtifacts]:
        if self._run is None or self._artifacts is None:
            raise InvalidCallError("this W&B tracker is not open", cure="call open(run, cursor) first")
        return self._run, self._artifacts

    def _settings(self) -> Any:
        known = self._wandb.Settings.model_fields
        return self._wandb.Settings(**{name: value for name, value in _QUIET.items() if name in known})

    def _start(self, run: RunDescription, mode: str | None) -> Any:
        config = {**run.hyperparameters, "model_config": run.model_config, "dataset_info": run.dataset_info}
        run.folder.mkdir(parents=True, exist_ok=True)
        try:
            return self._wandb.init(
                project=run.project,
                id=run.id,
                name=run.name,
                group=run.group,
                notes=run.notes or run.description or None,
                tags=_tags(run.tags),
                config=config,
                dir=os.environ.get("WANDB_DIR", str(run.folder)),
                mode=mode,
                resume="allow",
                reinit="create_new",
                settings=self._settings(),
            )
        except (self._wandb.errors.AuthenticationError, self._wandb.errors.UsageError) as error:
            raise InvalidInputError(
                f"W&B authentication failed ({error})", cure="run wandb login", kind="wandb-login"
            ) from error

    def _tell(self, record: LoggedRecord) -> None:
        run, artifacts = self._opened()
        when = record.wall_ns / 1e9
        match record.event:
            case Metrics(values=values) as event:
                self._numbers(when, event, values)
            case BigIntegers() as event:
                self._numbers(when, event, {name: _float(text) for name, text in event.values.items()})
            case SystemSampled(values=values):
                self._sample(when, values)
            case Text() as event:
                self._row(when, {_STEP: event.step, event.name: as_page(self._wandb, event.text)})
            case MediaAdded() as event:
                for group in self._galleries.taken(event):
                    self._show(when, group)
            case CheckpointChanged(action="committed") as event:
                artifacts.committed(event)
            case Alerted() as event:
                run.alert(event.title[:_LONGEST_TITLE], _alert_text(event), level=_LEVELS.get(event.level, "WARN"))
            case Described(fields=fields):
                self._describe(fields)
            case _:
                pass

    def _numbers(self, when: float, event: Metrics | BigIntegers, values: Mapping[str, Any]) -> None:
        if not values:
            return
        self._extremes.take(values)
        epoch = {} if event.epoch is None else {"epoch": event.epoch}
        self._row(when, {_STEP: event.step, **epoch, **values})

    def _sample(self, when: float, values: Mapping[str, float]) -> None:
        run, _ = self._opened()
        second = when - (self._first_seconds or when)
        for name in values.keys() - self._machine:
            run.define_metric(name, step_metric=_SECONDS)
            self._machine.add(name)
        self._row(when, {_SECONDS: second, **values})

    def _show(self, when: float, group: Sequence[MediaAdded]) -> None:
        """A row, or the place of one: a file that is gone the second time must not move the rows after it."""
        assert self._media is not None
        value = self._media.value(group)
        if value is None:
            self._rows += 1
        else:
            self._row(when, {_STEP: group[0].step, group[0].name: value})

    def _row(self, when: float, values: Mapping[str, Any]) -> None:
        run, _ = self._opened()
        run.log({"_timestamp": when, **values}, step=self._rows, commit=True)
        self._rows += 1

    def _describe(self, fields: Mapping[str, Any]) -> None:
        """Take what was edited; a start says everything again, of which W&B knows most."""
        run, _ = self._opened()
        changed = {name: fields[name] for name, known in self._described.items() if fields.get(name, known) != known}
        self._described |= changed
        if "name" in changed:
            run.name = changed["name"]
        if "notes" in changed:
            run.notes = changed["notes"]
        if "tags" in changed:
            run.tags = tuple(_tags(changed["tags"]))
        if "hyperparameters" in changed:
            run.config.update(changed["hyperparameters"], allow_val_change=True)

    def _leave_out(self, what: str, cure: str) -> None:
        if self._notice is not None and not self._left_out_said:
            self._left_out_said = True  # a folder that is gone would be said for each of its files
            message = f"W&B goes on without a file: {what}"
            self._notice(Noticed(source="wandb", topic="media", message=message, cure=cure))

    def _end_service(self) -> None:
        """Wait until W&B's service process has ended, unless somebody else in this process uses it.

        Only then everything is in its file: ``finish`` may return before. After a start that failed it is the only way
        to start again, because the process keeps the id in use.
        """
        if self._wandb is not None and self._wandb.run is None:
            self._wandb.teardown()


def _import_wandb() -> Any:
    try:
        return import_module("wandb")
    except ImportError as error:
        raise MissingDependencyError(f"W&B not available ({error})", cure="pip install wandb") from error


def _tags(tags: Sequence[str]) -> list[str]:
    """What W&B accepts as tags: not empty, not twice, not longer than it allows."""
    return list(dict.fromkeys(tag[:_LONGEST_TAG] for tag in tags if tag))


def _float(digits: str) -> float:
    """W&B's numbers are JSON's: an integer beyond 64 bits becomes the nearest float, infinite where there is none."""
    return float(digits)


def _alert_text(alert: Alerted) -> str:
    return "\n".join(line for line in (alert.text, alert.rule and f"rule: {alert.rule}", *alert.actions) if line)
