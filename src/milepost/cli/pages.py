"""How do the views look as text?"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from milepost.cli.guest_views import GuestView
from milepost.cli.output import Cell, print_line, print_table
from milepost.cli.views import (
    AlertView,
    AttemptView,
    CheckpointView,
    CodeView,
    MetricView,
    NoticeView,
    RunLine,
    RunView,
    StatusView,
)
from milepost.cli.words import age, count, number, size, state_word, styled_state

__all__ = ["print_checkpoints", "print_code", "print_run", "print_runs", "print_status"]

_MOST_ALERTS = 20
_ALERT_STYLES = {"info": "cyan", "warning": "yellow", "error": "red"}
_PATCH_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def _ago(when: float | None) -> str:
    return "-" if when is None else f"{age(time.time() - when)} ago"


def _clock(when: float | None) -> str:
    return "-" if when is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


def _state(line: RunLine) -> Cell:
    causes = (line.signal, "its companion is finishing" if line.finishing else "")
    return state_word(line.status, ", ".join(filter(None, causes))), styled_state(line.status)


def _brief(checkpoint: CheckpointView | None) -> str:
    """``step 1,200 (val/loss 0.31)``."""
    if checkpoint is None:
        return "-"
    values = ", ".join(f"{name} {_value(value)}" for name, value in list(checkpoint.metrics.items())[:1])
    return f"step {count(checkpoint.step)}" + (f" ({values})" if values else "")


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return shlex.join(map(_value, value))
    return number(value) if isinstance(value, (int, float)) else str(value)


def print_status(view: StatusView) -> None:
    """What runs here; if nothing does, the newest run and how it ended."""
    if not view.going:
        print_line(f"nothing is running in {view.folder}")
    shown = view.going or ((view.newest,) if view.newest else ())
    rows: list[list[Cell]] = [
        [
            _state(line),
            (line.id, "bold"),
            count(line.last_step),
            _brief(line.best),
            f"step {count(line.latest.step)}, {_ago(line.latest.time)}" if line.latest else "-",
        ]
        for line in shown
    ]
    print_table(["STATE", "RUN", "STEP", "BEST", "LAST CHECKPOINT"], rows, numbers=["STEP"], whole=["STATE", "RUN"])
    for run_id, notices in view.notices.items():
        for notice in notices:
            _print_notice(notice, f"{run_id}: ")
    for run_id, alerts in view.alerts.items():
        for alert in alerts:
            _print_alert(alert, f"{run_id}: ")


def print_runs(lines: Iterable[RunLine]) -> None:
    """All runs, one a line."""
    rows: list[list[Cell]] = [
        [
            _state(line),
            (line.id, "bold"),
            _ago(line.since),
            count(line.last_step),
            str(line.attempts),
            str(line.checkpoint_count),
            _brief(line.best),
        ]
        for line in lines
    ]
    headings = ["STATE", "RUN", "SINCE", "STEP", "ATTEMPTS", "SAVED", "BEST"]
    print_table(headings, rows, numbers=["STEP", "ATTEMPTS", "SAVED"], whole=["STATE", "RUN"])


def print_checkpoints(checkpoints: Sequence[CheckpointView]) -> None:
    """One checkpoint a line; marks: ★ best, ✓ read back and decoded, ⚑ pinned, ✗ its file is gone."""
    rows: list[list[Cell]] = [
        [
            count(one.step),
            _marks(one),
            _ago(one.time),
            size(one.size),
            f"{one.stall_ms:.0f} ms",
            ", ".join(f"{name} {_value(value)}" for name, value in one.metrics.items()),
            (one.filename, "dim"),
        ]
        for one in checkpoints
    ]
    headings = ["STEP", "MARKS", "SAVED", "SIZE", "STALL", "METRICS", "FILE"]
    print_table(headings, rows, numbers=["STEP", "SIZE", "STALL"], whole=["STEP", "FILE"])


def _marks(one: CheckpointView) -> str:
    marks = (
        (one.is_best, "★ best"),
        (one.is_latest, "latest"),
        (one.pinned, "⚑ pinned"),
        (one.verified, "✓ verified"),
        (not one.present, "✗ gone"),
    )
    return " ".join(mark for holds, mark in marks if holds)


def print_run(view: RunView) -> None:
    """The page of one run."""
    line = view.run
    print_line((line.name, "bold"), _state(line), f"since {_clock(line.since)}")
    again = f", {count(view.lost_steps)} steps done again after a resume" if view.lost_steps else ""
    print_line(f"id {line.id}, started {_clock(line.started)}, last step {count(line.last_step)}{again}")
    for text in (view.description, ", ".join(view.tags), view.notes):
        if text:
            print_line(text)
    for text in view.traceback.splitlines():
        print_line((f"  {text}", "red"))
    for notice in view.notices:
        _print_notice(notice)
    for alert in view.alerts[-_MOST_ALERTS:]:
        _print_alert(alert)
    _print_attempts(view.attempts)
    _print_metrics(view.metrics)
    _print_machine(view.machine)
    if view.checkpoints:
        _print_heading("CHECKPOINTS")
        print_checkpoints(view.checkpoints)
    _print_guests(view.guests)
    _print_fields("SUMMARY", view.summary)
    _print_fields("HYPERPARAMETERS", view.hyperparameters)
    _print_fields("MODEL", view.model_config)
    _print_fields("DATA", view.dataset_info)
    _print_fields("ENVIRONMENT", {name: value for name, value in view.environment.items() if name != "packages"})
    _print_fields("FOLDERS", view.folders)
    _print_fields("TRACKERS INSIDE THE TRAINING (seconds of processor time)", view.tracker_cpu_seconds)


def _print_machine(used: Mapping[str, float]) -> None:
    """One line of what the training used."""
    words = {
        "process_memory_bytes": lambda value: f"{size(int(value))} of memory at the most",
        "cpu_percent": lambda value: f"processor {value:.0f} % busy on average",
        "gpu_percent": lambda value: f"GPU {value:.0f} %",
    }
    if used:
        _print_heading("MACHINE")
        print_line(", ".join(words[name](value) for name, value in used.items()))


def _print_guests(guests: Sequence[GuestView]) -> None:
    if guests:
        _print_heading("GUESTS")
        rows: list[list[Cell]] = [[one.name, one.state, count(one.records), _ago(one.time)] for one in guests]
        print_table(["GUEST", "STATE", "RECORDS", "LAST"], rows, numbers=["RECORDS"], whole=["GUEST"])


def print_code(view: CodeView) -> None:
    """Commit, branch, changed and untracked files, and the difference itself."""
    for line in view.lines:
        print_line(line)
    for line in view.patch.expandtabs(4).splitlines():
        print_line((line, _PATCH_STYLES.get(line[:1], "")))


def _print_heading(heading: str) -> None:
    print_line("")
    print_line((heading, "bold"))


def _print_notice(notice: NoticeView, prefix: str = "") -> None:
    since = f" (since step {count(notice.since_step)})" if notice.since_step is not None else ""
    print_line((f"! {prefix}{notice.source}: {notice.message}{since}", "yellow"))
    if notice.cure:
        print_line(f"  {notice.cure}")


def _print_alert(alert: AlertView, prefix: str = "") -> None:
    at = f" at step {count(alert.step)}" if alert.step is not None else ""
    done = f" ({', '.join(alert.actions)})" if alert.actions else ""
    style = _ALERT_STYLES.get(alert.level, "yellow")
    print_line((f"! {prefix}{alert.level}{at}, {_ago(alert.time)}: {alert.title}{done}", style))
    if alert.text:
        print_line(f"  {alert.text}")


def _print_attempts(attempts: Sequence[AttemptView]) -> None:
    if len(attempts) < 2:
        return
    _print_heading("ATTEMPTS")
    rows: list[list[Cell]] = [
        [
            str(one.number),
            (state_word(one.status), styled_state(one.status)),
            count(one.last_step),
            _clock(one.started),
            _clock(one.ended),
            one.reason,
        ]
        for one in attempts
    ]
    headings = ["NUMBER", "STATE", "LAST STEP", "STARTED", "ENDED", "REASON"]
    print_table(headings, rows, numbers=["NUMBER", "LAST STEP"], whole=headings[:3])


def _print_metrics(metrics: Sequence[MetricView]) -> None:
    if not metrics:
        return
    _print_heading("METRICS")
    rows: list[list[Cell]] = [
        [
            (one.name, "bold"),
            f"{number(one.last)} @ {count(one.last_step)}",
            f"{number(one.min)} @ {count(one.min_step)}",
            f"{number(one.max)} @ {count(one.max_step)}",
            number(one.mean),
            count(one.points),
        ]
        for one in metrics
    ]
    headings = ["METRIC", "LAST @ STEP", "MIN @ STEP", "MAX @ STEP", "MEAN", "POINTS"]
    print_table(headings, rows, numbers=headings[1:], whole=headings[:2])


def _print_fields(heading: str, fields: Mapping[str, Any]) -> None:
    rows: list[list[Cell]] = [[name, _value(value)] for name, value in _flat(fields)]
    if rows:
        _print_heading(heading)
        print_table([], rows)


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as ``optimizer.lr``; what is empty is not shown."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value not in (None, "", [], ()):
            yield f"{prefix}{name}", value
