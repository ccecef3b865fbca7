"""What may a tracker be told? Records of a run as the feed hands them over, made without a training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from milepost.core.events import (
    Alerted,
    BigIntegers,
    CheckpointChanged,
    ClockSet,
    Described,
    Event,
    Identified,
    Line,
    Lost,
    MediaAdded,
    MediaStaged,
    Metrics,
    Noticed,
    Rewound,
    StatusChanged,
    SystemSampled,
    Text,
)
from milepost.runs.scan import LoggedRecord

__all__ = ["HOSTILE_NAMES", "NUMBERS", "every_kind", "losses", "told"]

_LOG = bytes(range(16))
_STARTED_NS = 1_767_225_600 * 10**9

#: Everything that a metric's value can be and a tool may not expect.
NUMBERS = {
    "nan": float("nan"),
    "inf": float("inf"),
    "minus_inf": float("-inf"),
    "largest": 1.7976931348623157e308,
    "smallest": 5e-324,
    "minus_zero": -0.0,
    "truth": True,
    "int64": 2**63 - 1,
    "minus_int64": -(2**63),
}

#: Names that are paths, markup, options or nothing that can be seen; all of them can stand in a run log.
HOSTILE_NAMES = (
    "train/loss",
    "a//b",
    "/etc/passwd",
    "../../up",
    "with space",
    " ",
    "-option",
    "line\nbreak",
    'tab\tand,comma;"quotes"\'',
    "<b>markup</b>",
    "perplexité-损失-🚀",
    "null\0byte",
    "percent%s{brace}",
    "name" * 200,
)


def told(events: Sequence[Event], first: int = 0) -> list[LoggedRecord]:
    """The events as records of one log, a second apart; ``first`` is the place of the first one in the log."""
    return [
        LoggedRecord(
            log_id=_LOG,
            sequence=64 + 8 * number,
            monotonic_ns=number * 10**9,
            wall_ns=_STARTED_NS + number * 10**9,
            event=event,
        )
        for number, event in enumerate(events, start=first)
    ]


def losses(steps: range) -> list[LoggedRecord]:
    """One record of ``loss`` per step; each value is the step in eighths, which any float can hold."""
    return told([Metrics(step=step, epoch=None, values={"loss": step / 8}) for step in steps], first=steps.start)


def every_kind(media: Path) -> list[LoggedRecord]:
    """At least one record of every kind that a run log can hold; its one media file is made below ``media``."""
    media.mkdir(parents=True, exist_ok=True)
    (media / "note.txt").write_text("a note", encoding="utf-8")
    events: list[Event] = [
        Identified(role="trainer", attempt=1, rank=0, world_size=1, host="h", boot_id="b", pid=1, start_time=0.0),
        ClockSet(wall_ns=_STARTED_NS, monotonic_ns=0),
        Described(
            fields={"tags": ["a", ""], "notes": "new", "hyperparameters": {"lr": 0.1, "deep": {"er": [1, None]}}}
        ),
        StatusChanged(status="running"),
        Metrics(step=0, epoch=0.5, values={"loss": 1.0}, rejected={"text": "str"}),
        Metrics(step=0, epoch=None, values={}),
        BigIntegers(step=0, epoch=None, values={"tokens": str(10**30), "beyond": "9" * 400}),
        Line(stream="stdout", text="printed"),
        Text(step=0, name="sample", text="What a model said."),
        MediaAdded(step=0, name="note", path="note.txt", media_type="text/plain", size=6, form="text"),
        MediaStaged(step=0, name="staged", source="0001", form="image"),
        SystemSampled(values={"system/cpu_percent": 12.5}),
        Alerted(step=0, title="look", text="at this"),
        CheckpointChanged(step=0, action="staged", filename="checkpoint_0.milepost"),
        CheckpointChanged(step=0, action="failed", filename="checkpoint_0.milepost", reason="the disk is full"),
        Lost(count=3, reason="the memory was full"),
        Noticed(source="log", topic="disk", message="the disk is full", cure="free some"),
        StatusChanged(status="paused", reason="coffee"),
        StatusChanged(status="running"),
        Rewound(step=0),
        Metrics(step=1, epoch=None, values={"loss": 0.5}),
    ]
    return told(events)
