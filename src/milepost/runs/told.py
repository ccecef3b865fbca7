"""Which pieces, beside numbers, is the history of a run made of?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from milepost.core.events import Alerted, AlertLevel

__all__ = ["Attempt", "LoggedAlert", "LoggedLine", "LoggedText", "newest_alerts"]

_ALERTS_AT_A_GLANCE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One stay of the run, from a start or a resume to its end.

    Attributes:
        number: From 1.
        started: Seconds since 1970.
        ended: When its end was stated, or its last sign of life; None while nothing but running was ever stated and
            no later attempt began.
        log_ids: The logs of all its processes.
        rank_logs: Of the training process of each rank.
        last_step: The step that rank 0 logged last; -1 if none.
        status: As stated by its processes; ``"killed"`` if none did and a later attempt began; else ``"running"``.
        reason: In words.
        host: Where rank 0 ran.
        pid: Its process.
    """

    number: int
    started: float
    ended: float | None = None
    log_ids: tuple[bytes, ...] = ()
    rank_logs: tuple[tuple[int, bytes], ...] = ()
    last_step: int = -1
    status: str = "running"
    reason: str = ""
    host: str = ""
    pid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedLine:
    """A line of the console, and when it was finished (seconds since 1970)."""

    time: float
    stream: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedText:
    """A text logged under a name."""

    time: float
    step: int | None
    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedAlert:
    """What a person was asked to look at.

    Attributes:
        time: Seconds since 1970.
        step: At which step.
        title: What happened.
        text: More about it.
        level: How much it should alarm.
        rule: The rule that found it, as one writes it; empty if the training itself called ``alert``.
        actions: What was done about it, in words.
    """

    time: float
    step: int | None
    title: str
    text: str = ""
    level: AlertLevel = "warning"
    rule: str = ""
    actions: tuple[str, ...] = ()

    @classmethod
    def of(cls, event: Alerted, time: float) -> LoggedAlert:
        """The alert that ``event`` recorded."""
        return cls(
            time=time,
            step=event.step,
            title=event.title,
            text=event.text,
            level=event.level,
            rule=event.rule,
            actions=tuple(event.actions),
        )


def newest_alerts(alerts: Sequence[LoggedAlert], *, before: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """The last few alerts as ``metadata.json`` holds them, for whoever looks at many runs at once.

    Args:
        alerts: In the order in which they were given.
        before: What the file held; one that is told again stands there once.
    """
    told = [*before, *(asdict(alert) | {"actions": list(alert.actions)} for alert in alerts)]
    return [one for number, one in enumerate(told) if one not in told[:number]][-_ALERTS_AT_A_GLANCE:]
