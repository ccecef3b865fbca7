"""Which events of TensorBoard does a record of the log become?

===========================  =========================================================================================
metrics                      scalars
system samples               scalars; their step is the second since the run's first record, because a record of the
                             companion does not know at which step the training is
texts, tables, alerts        texts (Markdown)
images and figures, sounds,  the same
histograms
model graph                  the graph of the run
hyperparameters, final       the table of hyperparameters, which takes every scalar for a metric
metrics
HTML pages, Plotly figures,  a text that says where the file is
other files
===========================  =========================================================================================

**Invariants**: the events are a function of the records, of the files they name and of :meth:`RecordEncoder.state`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from milepost.core.errors import CorruptDataError, NotFoundError
from milepost.core.events import (
    Alerted,
    BigIntegers,
    Described,
    MediaAdded,
    Metrics,
    Noticed,
    Number,
    Rewound,
    StatusChanged,
    SystemSampled,
    Text,
)
from milepost.runs.scan import LoggedRecord
from milepost.trackers.event_file import EventEncoder
from milepost.trackers.media_files import (
    Attachment,
    Graph,
    Histogram,
    Media,
    Page,
    Picture,
    Plot,
    Sound,
    Table,
    Words,
    read_media,
)
from milepost.trackers.protocol import RunDescription
from milepost.trackers.tensorboard_tags import Tags

__all__ = ["RecordEncoder"]

_MOST_ROWS = 200
_LONGEST_CELL = 500
_LONGEST_TEXT = 1 << 20
_EDITED = ("hyperparameters", "tags", "notes")


class RecordEncoder:
    """Makes the events of one run.

    Args:
        run: The run.
        known: The :meth:`state` after the last record that was told; empty at first.
        notice: Told once if a logged file cannot be shown.
    """

    def __init__(
        self, run: RunDescription, known: Mapping[str, Any], notice: Callable[[Noticed], None] | None = None
    ) -> None:
        self._run = run
        self._encoder = EventEncoder()
        self._notice = notice
        self._tags = Tags(known.get("tags", {}))
        self._first_seconds: float | None = known.get("first_seconds")
        self._last_seconds: float = known.get("last_seconds", run.started)
        self._last_step: int = known.get("last_step", 0)

    def state(self) -> dict[str, Any]:
        """What the events of later records depend on, fit for JSON."""
        return {
            "tags": self._tags.known(),
            "first_seconds": self._first_seconds,
            "last_seconds": self._last_seconds,
            "last_step": self._last_step,
        }

    def begun(self, *, first: bool) -> bytes:
        """The events at the beginning of an attempt's file; ``first`` for the first file of the run."""
        run, encoder = self._run, self._encoder
        parts = [encoder.file_start(run.started)]
        if first:
            parts.append(encoder.session_start(run.started, 0))  # TensorBoard takes the first of a run for no restart
        if run.hyperparameters:
            parts.append(encoder.hyperparameters(run.started, run.id, run.hyperparameters))
        if run.description:
            parts.append(self._text(run.started, 0, "description", run.description))
        for name, content in (("model_config", run.model_config), ("dataset_info", run.dataset_info)):
            if content:
                parts.append(self._text(run.started, 0, name, _listing(content)))
        return b"".join(parts)

    def told(self, record: LoggedRecord) -> bytes:
        """The events of one record; none for what TensorBoard has no place for."""
        seconds = self._last_seconds = record.wall_ns / 1e9
        if self._first_seconds is None:
            self._first_seconds = seconds
        match record.event:
            case Metrics(step=step, values=values):
                events = self._metrics(seconds, step, values)
            case BigIntegers(step=step, values=digits):
                events = self._metrics(seconds, step, {name: int(text) for name, text in digits.items()})
            case SystemSampled(values=values):
                events = self._scalars(seconds, int(seconds - self._first_seconds), values)
            case Rewound(step=step):
                events = self._encoder.session_start(seconds, step + 1)
            case Text(step=step, name=name, text=text):
                events = self._text(seconds, step or 0, name, text)
            case MediaAdded() as added:
                events = self._media(seconds, added)
            case Alerted() as alert:
                events = self._text(seconds, alert.step or 0, f"alerts/{alert.title}", _alert(alert))
            case Described(fields=fields):
                events = self._described(seconds, fields)
            case _:
                events = b""
        return events

    def ended(self, end: StatusChanged) -> bytes:
        """The final metrics, and the mark of a completed run in the table of hyperparameters.

        Only of a completed one: TensorBoard believes the first mark it finds, and any other run may go on.
        """
        final = {f"final/{name}": value for name, value in end.summary.items() if isinstance(value, (int, float))}
        events = self._scalars(self._last_seconds, self._last_step, final)
        return events + self._encoder.completed(self._last_seconds) if end.status == "completed" else events

    def _metrics(self, seconds: float, step: int | None, values: Mapping[str, Number]) -> bytes:
        self._last_step = step or 0
        return self._scalars(seconds, self._last_step, values)

    def _scalars(self, seconds: float, step: int, values: Mapping[str, Number]) -> bytes:
        tagged = {self._tags.tag(name, "scalar"): value for name, value in values.items()}
        return self._encoder.scalars(seconds, step, tagged) if tagged else b""

    def _text(self, seconds: float, step: int, name: str, text: str) -> bytes:
        tag, first = self._tags.tag_and_first(name, "text")
        if len(text) > _LONGEST_TEXT:
            text = f"{text[:_LONGEST_TEXT]}\n\n… {len(text) - _LONGEST_TEXT} more characters"
        return self._encoder.text(seconds, step, tag, text, first=first)

    def _described(self, seconds: float, fields: Mapping[str, Any]) -> bytes:
        """What was edited later. A table of hyperparameters cannot be: TensorBoard keeps the first it finds."""
        if fields.get("hyperparameters") == self._run.hyperparameters:
            fields = {name: value for name, value in fields.items() if name != "hyperparameters"}
        texts = {name: fields[name] for name in _EDITED if fields.get(name)}
        return b"".join(
            self._text(seconds, self._last_step, name, value if isinstance(value, str) else _listing(value))
            for name, value in texts.items()
        )

    def _media(self, seconds: float, added: MediaAdded) -> bytes:
        try:
            return self._shown(seconds, added, read_media(added, self._run.media))
        except (NotFoundError, CorruptDataError) as error:
            self._say_left_out(error)
            return b""

    def _shown(self, seconds: float, added: MediaAdded, media: Media) -> bytes:
        """A list of things that was logged in one call gets a tag for each: one place per step and tag is shown."""
        step, encoder = added.step or 0, self._encoder
        name = f"{added.name}/{added.facts['index']}" if "index" in added.facts else added.name
        match media:
            case Picture():
                shown = encoder.picture(seconds, step, self._tags.tag(name, "image"), media)
            case Sound():
                shown = encoder.sound(seconds, step, self._tags.tag(name, "audio"), media)
            case Histogram():
                shown = encoder.histogram(seconds, step, self._tags.tag(name, "histogram"), media)
            case Graph(definition=definition):
                shown = self._graph(seconds, added, definition)
            case Words(text=text):
                shown = self._text(seconds, step, name, text)
            case Table():
                shown = self._text(seconds, step, name, _markdown(media))
            case Page() | Plot() | Attachment():
                where = f"`{added.path}` ({added.size} bytes) in the folder `media` of the experiment `{self._run.id}`"
                shown = self._text(seconds, step, name, where)
        return shown + self._text(seconds, step, f"{name}/caption", added.caption) if added.caption else shown

    def _graph(self, seconds: float, added: MediaAdded, definition: bytes) -> bytes:
        try:
            return self._encoder.graph(seconds, definition)
        except ValueError as error:
            raise CorruptDataError(f"the logged file {added.path} is damaged ({error})", cure="log it again") from None

    def _say_left_out(self, error: NotFoundError | CorruptDataError) -> None:
        if self._notice is not None:
            message = f"TensorBoard goes on without a file: {error.what}"
            self._notice(Noticed(source="tensorboard", topic="media", message=message, cure=error.cure))
            self._notice = None  # said once: a folder that is gone would be said for each of its files


def _listing(content: Any) -> str:
    return f"```json\n{json.dumps(content, indent=4, default=str, ensure_ascii=False)}\n```"


def _alert(alert: Alerted) -> str:
    lines = [f"**{alert.level}**: {alert.title}", alert.text, alert.rule and f"Rule: {alert.rule}", *alert.actions]
    return "\n\n".join(line for line in lines if line)


def _markdown(table: Table) -> str:
    """The table, cut to what a page can show."""
    rows = table.rows[:_MOST_ROWS]
    lines = [_row(table.columns), _row(["---"] * len(table.columns)), *map(_row, rows)]
    if len(rows) < len(table.rows):
        lines += ["", f"… {len(table.rows) - len(rows)} more rows"]
    return "\n".join(lines)


def _row(values: Sequence[Any]) -> str:
    return f"| {' | '.join(map(_cell, values))} |"


def _cell(value: Any) -> str:
    text = str(value)
    text = text if len(text) <= _LONGEST_CELL else f"{text[:_LONGEST_CELL]}…"
    return " ".join(text.split()).replace("|", "\\|")
