"""What can stand in a run log?

A closed union of frozen dataclasses, one per kind of record, and their translation to and from the body of a record
(``docs/format.md``): a msgpack array ``[kind, step, epoch, monotonic ns, body]``. Kinds are only ever
added; a reader ignores kinds it does not know.

``Metrics`` are decoded here but encoded by the fast path of :mod:`milepost.runs.log` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

__all__ = [
    "AlertLevel",
    "Alerted",
    "BigIntegers",
    "CheckpointChanged",
    "ClockSet",
    "Deferred",
    "Described",
    "Event",
    "Identified",
    "Line",
    "Lost",
    "MediaAdded",
    "MediaStaged",
    "Metrics",
    "Noticed",
    "Number",
    "Rewound",
    "RunStatus",
    "StatusChanged",
    "SystemSampled",
    "Text",
    "event_from_body",
]

Number = int | float | bool

#: How much an alert should alarm.
AlertLevel = Literal["info", "warning", "error"]

#: The states of a run. ``unsure`` is never written: readers derive it where the heartbeat of another host is late.
RunStatus = Literal["running", "paused", "completed", "failed", "stopped", "killed", "preempted", "unsure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Named numbers of one step. ``rejected`` maps a name to the type that is not a number (a string, None, a list)."""

    kind: ClassVar[int] = 1
    step: int | None
    epoch: float | None
    values: dict[str, Number]
    rejected: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One finished line of the console; ``stream`` is ``"stdout"`` or ``"stderr"``."""

    kind: ClassVar[int] = 2
    stream: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaAdded:
    """A file below ``experiments/<id>/media``; ``path`` is relative to that folder.

    ``form`` says what was logged: ``"file"``, ``"text"``, ``"image"``, ``"histogram"``, ``"table"``, ``"figure"``,
    ``"audio"``, ``"html"``, ``"graph"``. ``facts`` holds what a viewer wants to know before it opens the file (width,
    height, sample rate, rows and columns, an index within one call). ``source`` is that of the :class:`MediaStaged` it
    was made from: what was logged counts as of that record.
    """

    kind: ClassVar[int] = 3
    step: int | None
    name: str
    path: str
    media_type: str
    size: int
    form: str = "file"
    caption: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusChanged:
    """The run changed its state, or ended.

    ``summary`` is what ``end_experiment`` was given. ``source`` says who wrote it: the trainer itself, the companion
    that saw it die, or ``doctor``.
    """

    kind: ClassVar[int] = 4
    status: RunStatus
    reason: str = ""
    traceback: str = ""
    signal: str = ""
    exit_code: int | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    source: str = "trainer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewound:
    """History after step ``step`` that is older than this record is superseded."""

    kind: ClassVar[int] = 5
    step: int
    checkpoint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockSet:
    """Wall time of the record = its monotonic time + (``wall_ns`` - ``monotonic_ns``)."""

    kind: ClassVar[int] = 6
    wall_ns: int
    monotonic_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferred:
    """The value of metric ``name`` in record ``sequence`` of this log, known only after its device copy finished."""

    kind: ClassVar[int] = 7
    sequence: int
    name: str
    value: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """``count`` records could not be kept since the last such record, for ``reason``."""

    kind: ClassVar[int] = 8
    count: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BigIntegers:
    """Metrics whose integers do not fit 64 bits, as decimal strings."""

    kind: ClassVar[int] = 9
    step: int | None
    epoch: float | None
    values: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identified:
    """First record of every log: who writes it.

    ``role`` is ``"trainer"``, ``"worker"`` (a forked or spawned child), ``"companion"`` or ``"doctor"``. ``attempt``
    counts the stays of the run from 1. ``rank`` is 0 without distributed training.
    """

    kind: ClassVar[int] = 10
    role: str
    attempt: int
    rank: int
    world_size: int
    host: str
    boot_id: str
    pid: int
    start_time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointChanged:
    """Something happened to a checkpoint of this run.

    ``action``: ``staged`` (the copy is safe from the death of the trainer), ``committed`` (complete, fsynced, listed),
    ``verified`` (read back and decoded), ``pinned`` (kept from now on, for ``reason``), ``failed``, ``removed`` (by
    retention; ``reason`` says which rule), ``demoted`` (likewise: only the model is left of it). ``info`` holds the
    fields of :class:`milepost.core.records.CheckpointInfo` for ``committed`` and ``demoted``.
    """

    kind: ClassVar[int] = 11
    step: int | None
    action: Literal["staged", "committed", "verified", "pinned", "failed", "removed", "demoted"]
    filename: str
    reason: str = ""
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """Fields of ``metadata.json`` that changed: all of them at the start, then what was edited (tags, notes, ...)."""

    kind: ClassVar[int] = 12
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Noticed:
    """The world went wrong, or is mended: said once, and shown as a state until it is ``cured``.

    ``source`` names the part (``"log"``, ``"checkpoint"``, ``"tensorboard"``, ``"wandb"``); a later notice of the same
    source and ``topic`` with ``cured=True`` ends it.
    """

    kind: ClassVar[int] = 13
    source: str
    topic: str
    message: str
    cure: str = ""
    cured: bool = False
    since_step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text logged under a name (``run.log_text``)."""

    kind: ClassVar[int] = 14
    step: int | None
    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaStaged:
    """Something to look at was handed over unencoded; the companion turns it into a :class:`MediaAdded`.

    ``source`` is the name of a file below ``experiments/<id>/media/.staged``; ``form``, ``caption`` and ``facts`` are
    those of the file to come, and what its encoder must know (dtype, shape, sample rate).
    """

    kind: ClassVar[int] = 15
    step: int | None
    name: str
    source: str
    form: str
    caption: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemSampled:
    """What machine and training processes used, as the companion saw it; names begin with ``system/``."""

    kind: ClassVar[int] = 16
    values: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alerted:
    """A person should look: the training said so (``run.alert``), or a rule on its metrics did.

    ``rule`` is the rule's description, empty for an alert of the user's own. ``actions`` says what was done about it.
    ``cause`` names the record that a rule judged (log id and sequence number): by it, rule and title, an alert of a
    companion that was replaced is known again.
    """

    kind: ClassVar[int] = 17
    step: int | None
    title: str
    text: str = ""
    level: AlertLevel = "warning"
    rule: str = ""
    actions: list[str] = field(default_factory=list)
    cause: str = ""


Event = (
    Metrics
    | Line
    | MediaAdded
    | StatusChanged
    | Rewound
    | ClockSet
    | Deferred
    | Lost
    | BigIntegers
    | Identified
    | CheckpointChanged
    | Described
    | Noticed
    | Text
    | MediaStaged
    | SystemSampled
    | Alerted
)

_BY_KIND: dict[int, type[Any]] = {
    cls.kind: cls
    for cls in (
        Line,
        MediaAdded,
        StatusChanged,
        Rewound,
        ClockSet,
        Deferred,
        Lost,
        BigIntegers,
        Identified,
        CheckpointChanged,
        Described,
        Noticed,
        Text,
        MediaStaged,
        SystemSampled,
        Alerted,
    )
}
_FIELDS = {cls: tuple(f.name for f in fields(cls)) for cls in _BY_KIND.values()}


def body_of(event: Event) -> dict[str, Any]:
    """The record body of an event: its fields without ``step`` and ``epoch``, which stand in the record itself."""
    beside_the_body = {"epoch"} if type(event) is Rewound else {"step", "epoch"}
    return {f.name: getattr(event, f.name) for f in fields(event) if f.name not in beside_the_body}


def event_from_body(kind: int, step: int | None, epoch: float | None, body: object) -> Event | None:
    """The event of a decoded record, or None for a kind or a shape this version does not know.

    Unknown fields of a known kind are ignored; a record that lacks a required field is treated as unknown, because a
    reader must survive what a later version, or a damaged disk with a lucky checksum, writes.
    """
    if not isinstance(body, Mapping):
        return None
    if kind == Metrics.kind:
        values: dict[str, Number] = {}
        rejected: dict[str, str] = {}
        _flatten(body, "", values, rejected)
        return Metrics(step=step, epoch=epoch, values=values, rejected=rejected)
    cls = _BY_KIND.get(kind)
    if cls is None:
        return None
    known = {name: body[name] for name in _FIELDS[cls] if name in body}
    if "step" in _FIELDS[cls] and "step" not in known:
        known["step"] = step
    if "epoch" in _FIELDS[cls]:
        known["epoch"] = epoch
    try:
        event: Event = cls(**known)
    except TypeError:
        return None
    return event


def _flatten(tree: Mapping[Any, Any], prefix: str, values: dict[str, Number], rejected: dict[str, str]) -> None:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, (int, float)):
            values[name] = value
        elif isinstance(value, Mapping):
            _flatten(value, f"{name}/", values, rejected)
        elif value is not None:
            rejected[name] = type(value).__name__
        else:
            rejected[name] = "None"
