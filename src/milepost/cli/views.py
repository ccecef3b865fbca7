"""What does the terminal show of a run?

Frozen views, made from the store's reader. The same objects are printed as tables and as JSON, so that a person and a
program can never be told different things; their field names are the stable keys of ``--json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from milepost.core.errors import NotFoundError
from milepost.core.records import CheckpointInfo
from milepost.environment.code_record import PATCH, CodeRecord, describe
from milepost.runs.history import Attempt
from milepost.runs.store import RunReader

__all__ = [
    "AttemptView",
    "CheckpointView",
    "CodeView",
    "MetricView",
    "NoticeView",
    "RunLine",
    "RunView",
    "checkpoint_views",
    "code_record",
    "code_view",
    "run_line",
    "run_view",
]


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
    """One run in a list. ``since`` is when it came into its state, in seconds since 1970 like every time here."""

    id: str
    name: str
    status: str
    signal: str
    reason: str
    since: float | None
    started: float | None
    attempts: int
    last_step: int | None
    checkpoint_count: int
    best: CheckpointView | None
    latest: CheckpointView | None
    notices: int


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
class RunView:
    """Everything that is shown of one run."""

    run: RunLine
    lost_steps: int
    description: str
    tags: tuple[str, ...]
    notes: str
    traceback: str
    notices: tuple[NoticeView, ...]
    attempts: tuple[AttemptView, ...]
    metrics: tuple[MetricView, ...]
    checkpoints: tuple[CheckpointView, ...]
    hyperparameters: Mapping[str, Any]
    model_config: Mapping[str, Any]
    dataset_info: Mapping[str, Any]
    summary: Mapping[str, Any]
    environment: Mapping[str, Any]
    folders: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeView:
    """The code of a run: ``lines`` say it for a person, ``patch`` is the difference to the commit."""

    record: Mapping[str, Any]
    lines: tuple[str, ...]
    patch: str


def run_line(run: RunReader) -> RunLine:
    """One line of a list."""
    state = run.state
    listed = checkpoint_views(run)
    return RunLine(
        id=run.id,
        name=run.name,
        status=state.status,
        signal=state.signal,
        reason=state.reason,
        since=state.since,
        started=run.started,
        attempts=max(state.attempt, 1),
        last_step=run.last_step,
        checkpoint_count=len(listed),
        best=next((one for one in listed if one.is_best), None),
        latest=next((one for one in listed if one.is_latest), None),
        notices=len(run.notices),
    )


def checkpoint_views(run: RunReader) -> list[CheckpointView]:
    """The listed checkpoints, by step."""
    best, latest = run.best, run.latest
    return [
        _checkpoint_view(
            info,
            is_best=best is not None and info.filename == best.filename,
            is_latest=latest is not None and info.filename == latest.filename,
        )
        for info in run.checkpoints
    ]


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
        run=run_line(run),
        lost_steps=run.lost_steps,
        description=str(facts.get("description") or ""),
        tags=tuple(map(str, facts.get("tags") or ())),
        notes=str(facts.get("notes") or ""),
        traceback=run.state.traceback,
        notices=tuple(
            NoticeView(source=one.source, message=one.message, cure=one.cure, since_step=one.since_step)
            for one in run.notices
        ),
        attempts=tuple(map(_attempt_view, run.attempts)),
        metrics=tuple(_metric_view(name, run.summarize(name)) for name in run.metrics()),
        checkpoints=tuple(checkpoint_views(run)),
        hyperparameters=_mapping(facts.get("hyperparameters")),
        model_config=_mapping(facts.get("model_config")),
        dataset_info=_mapping(facts.get("dataset_info")),
        summary=run.summary,
        environment=_mapping(facts.get("environment")),
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
