"""What does the terminal show of a run?

Frozen views, made from the store's reader. The same objects are printed as tables and as JSON, so that a person and a
program can never be told different things; their field names are the stable keys of ``--json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from milepost.checkpoint.catalog import scan as scan_checkpoints
from milepost.cli.guest_views import GuestView, guest_views
from milepost.core.errors import NotFoundError
from milepost.core.events import Noticed
from milepost.core.records import CheckpointInfo
from milepost.environment.code_record import PATCH, CodeRecord, describe
from milepost.runs.history import Attempt
from milepost.runs.listed import best_of
from milepost.runs.scan import read_log_files, scan, writer_of
from milepost.runs.store import RunReader, Store
from milepost.runs.told import LoggedAlert

__all__ = [
    "AlertView",
    "AttemptView",
    "CheckpointView",
    "CodeView",
    "MetricView",
    "NoticeView",
    "RunLine",
    "RunView",
    "StatusView",
    "checkpoint_views",
    "code_record",
    "code_view",
    "run_lines",
    "run_view",
    "status_view",
]

#: States in which somebody may still be at work.
_GOING = frozenset({"running", "paused", "unsure"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointView:
    """A listed checkpoint. ``present``: its file is there; ``is_best``, ``is_latest``: what the run takes it for."""

    filename: str
    path: str
    step: int
    epoch: float | None
    time: float
    size: int
    state_bytes: int
    stall_ms: float
    format: str
    present: bool
    verified: bool
    pinned: bool
    is_best: bool
    is_latest: bool
    metrics: Mapping[str, Any]
    contents: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """One run in a list.

    ``since`` is when it came into its state, in seconds since 1970 like every time here. ``finishing``: the training is
    over, and its companion still writes or feeds guests.
    """

    id: str
    name: str
    status: str
    signal: str
    reason: str
    finishing: bool
    since: float | None
    started: float | None
    attempts: int
    last_step: int | None
    checkpoint_count: int
    best: CheckpointView | None
    latest: CheckpointView | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusView:
    """What runs here. By run id, of those that are going: ``notices``, what is wrong, and ``alerts``, the last few."""

    folder: str
    going: tuple[RunLine, ...]
    newest: RunLine | None
    notices: Mapping[str, tuple[NoticeView, ...]]
    alerts: Mapping[str, tuple[AlertView, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptView:
    """One stay of the run: it starts at 1 and grows by one at each resume."""

    number: int
    status: str
    reason: str
    started: float
    ended: float | None
    last_step: int | None
    host: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricView:
    """One metric over the whole run, NaN left out of ``min``, ``max`` and ``mean``."""

    name: str
    points: int
    nan: int
    last: float | None
    last_step: int | None
    min: float | None
    min_step: int | None
    max: float | None
    max_step: int | None
    mean: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeView:
    """Something that is wrong and not yet cured."""

    source: str
    message: str
    cure: str
    since_step: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertView:
    """What a person was asked to look at. ``rule``: which rule found it; empty if the training itself asked."""

    time: float
    step: int | None
    level: str
    title: str
    text: str
    rule: str
    actions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """Everything that is shown of one run."""

    run: RunLine
    lost_steps: int
    description: str
    tags: tuple[str, ...]
    notes: str
    traceback: str
    notices: tuple[NoticeView, ...]
    alerts: tuple[AlertView, ...]
    guests: tuple[GuestView, ...]
    attempts: tuple[AttemptView, ...]
    metrics: tuple[MetricView, ...]
    checkpoints: tuple[CheckpointView, ...]
    hyperparameters: Mapping[str, Any]
    model_config: Mapping[str, Any]
    dataset_info: Mapping[str, Any]
    summary: Mapping[str, Any]
    environment: Mapping[str, Any]
    folders: Mapping[str, Any]
    tracker_cpu_seconds: Mapping[str, Any]
    machine: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeView:
    """The code of a run: ``lines`` say it for a person, ``patch`` is the difference to the commit."""

    record: Mapping[str, Any]
    lines: tuple[str, ...]
    patch: str


def run_lines(runs: Sequence[RunReader]) -> list[RunLine]:
    """Lines of a list. Of each log only the end is read, and each folder of checkpoints is looked at once."""
    folders = {run.layout.checkpoints for run in runs}
    found = [info for folder in sorted(folders) for info in scan_checkpoints(folder).infos]
    of_run: dict[str, list[CheckpointInfo]] = {}
    for info in found:
        of_run.setdefault(info.experiment_id, []).append(info)
    return [_run_line(run, of_run.get(run.id, [])) for run in runs]


def _run_line(run: RunReader, infos: Sequence[CheckpointInfo]) -> RunLine:
    state = run.state
    listed = _checkpoint_views(run, infos)
    return RunLine(
        id=run.id,
        name=run.name,
        status=state.status,
        signal=state.signal,
        reason=state.reason,
        finishing=state.finishing,
        since=state.since,
        started=run.started,
        attempts=max(state.attempt, 1),
        last_step=state.last_step if state.last_step >= 0 else None,
        checkpoint_count=len(listed),
        best=next((one for one in listed if one.is_best), None),
        latest=next((one for one in listed if one.is_latest), None),
    )


def status_view(store: Store) -> StatusView:
    """What runs here, and what the companions of those runs complain about."""
    runs = store.runs()
    lines = run_lines(runs)
    going = [(run, line) for run, line in zip(runs, lines, strict=True) if line.status in _GOING]
    return StatusView(
        folder=str(store.folder),
        going=tuple(line for _, line in going),
        newest=lines[0] if lines else None,
        notices={run.id: found for run, _ in going if (found := _of_companion(run))},
        alerts={run.id: last for run, _ in going if (last := _at_a_glance(run))},
    )


def _at_a_glance(run: RunReader) -> tuple[AlertView, ...]:
    """The last alerts by ``metadata.json``, for the same reason."""
    told = [one for one in run.metadata.get("alerts") or () if isinstance(one, Mapping)]
    names = [field.name for field in fields(AlertView)]
    plain: list[dict[str, Any]] = [{name: one.get(name) for name in names} for one in told]
    return tuple(AlertView(**one) for one in plain)


def _alert_view(alert: LoggedAlert) -> AlertView:
    return AlertView(**asdict(alert))


def _of_companion(run: RunReader) -> tuple[NoticeView, ...]:
    """What is wrong by the companion's own log: the log of the training can be long, and this is asked often."""
    unsolved: dict[tuple[str, str], Noticed] = {}
    for log in read_log_files(run.layout.log):
        writer = writer_of(log)
        if writer is None or writer.role in {"trainer", "worker"}:
            continue
        for record in scan(log, live=True):
            if isinstance(record.event, Noticed):
                unsolved.pop((record.event.source, record.event.topic), None)
                if not record.event.cured:
                    unsolved[record.event.source, record.event.topic] = record.event
    return tuple(map(_notice_view, unsolved.values()))


def _notice_view(notice: Noticed) -> NoticeView:
    return NoticeView(source=notice.source, message=notice.message, cure=notice.cure, since_step=notice.since_step)


def checkpoint_views(run: RunReader) -> list[CheckpointView]:
    """The checkpoints that a run's own log lists, by step; also those whose file is gone."""
    return _checkpoint_views(run, run.checkpoints)


def _checkpoint_views(run: RunReader, infos: Sequence[CheckpointInfo]) -> list[CheckpointView]:
    present = [info for info in infos if info.path.exists()]
    best = best_of(present, _mapping(run.metadata.get("settings")))
    latest = present[-1] if present else None
    return [_checkpoint_view(info, is_best=info is best, is_latest=info is latest) for info in infos]


def _checkpoint_view(info: CheckpointInfo, *, is_best: bool, is_latest: bool) -> CheckpointView:
    return CheckpointView(
        filename=info.filename,
        path=str(info.path),
        step=info.step,
        epoch=info.epoch,
        time=info.timestamp,
        size=info.size,
        state_bytes=info.state_bytes,
        stall_ms=info.stall_ms,
        format=info.format,
        present=info.path.exists(),
        verified=info.verified,
        pinned=info.pinned,
        is_best=is_best,
        is_latest=is_latest,
        metrics=dict(info.metrics),
        contents=tuple(info.contents),
    )


def run_view(run: RunReader) -> RunView:
    """The page of one run."""
    facts = _facts(run)
    return RunView(
        run=_run_line(run, run.checkpoints),
        lost_steps=run.lost_steps,
        description=str(facts.get("description") or ""),
        tags=tuple(map(str, facts.get("tags") or ())),
        notes=str(facts.get("notes") or ""),
        traceback=run.state.traceback,
        notices=tuple(map(_notice_view, run.notices)),
        alerts=tuple(map(_alert_view, run.alerts)),
        guests=guest_views(run),
        attempts=tuple(map(_attempt_view, run.attempts)),
        metrics=tuple(_metric_view(name, run.summarize(name)) for name in run.metrics()),
        checkpoints=tuple(checkpoint_views(run)),
        hyperparameters=_mapping(facts.get("hyperparameters")),
        model_config=_mapping(facts.get("model_config")),
        dataset_info=_mapping(facts.get("dataset_info")),
        summary=dict(run.summary),
        environment=_mapping(facts.get("environment")),
        tracker_cpu_seconds=_mapping(facts.get("tracker_cpu_seconds")),
        machine=run.history.samples.at_a_glance(),
        folders={
            "experiment": run.layout.experiment,
            "log": run.layout.log,
            "checkpoints": run.layout.checkpoints,
            "tensorboard": run.layout.tensorboard,
        },
    )


def code_view(run: RunReader) -> CodeView:
    """The code of a run.

    Raises:
        NotFoundError: Nothing was recorded about it.
    """
    record = code_record(run)
    patch = run.layout.code / PATCH
    return CodeView(
        record=record.to_dict(),
        lines=tuple(describe(record)),
        patch=patch.read_text(encoding="utf-8", errors="replace") if patch.is_file() else "",
    )


def code_record(run: RunReader) -> CodeRecord:
    """What the run's own record says about its code.

    Raises:
        NotFoundError: It says nothing.
    """
    stored = _facts(run).get("code")
    if not isinstance(stored, Mapping):
        raise NotFoundError(
            f"nothing is known about the code of {run.id}", cure="its capture was switched off, or the run died at once"
        )
    return CodeRecord.from_dict(stored)


def _facts(run: RunReader) -> dict[str, Any]:
    """What the start wrote down, and over it what was learned while the run went on."""
    return {**run.metadata, **run.history.fields}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _attempt_view(attempt: Attempt) -> AttemptView:
    return AttemptView(
        number=attempt.number,
        status=attempt.status,
        reason=attempt.reason,
        started=attempt.started,
        ended=attempt.ended,
        last_step=attempt.last_step if attempt.last_step >= 0 else None,
        host=attempt.host,
        pid=attempt.pid,
    )


def _metric_view(name: str, known: Mapping[str, Any]) -> MetricView:
    return MetricView(
        name=name,
        points=known["points"],
        nan=known["nan"],
        **{part: known.get(part) for part in ("last", "last_step", "min", "min_step", "max", "max_step", "mean")},
    )
