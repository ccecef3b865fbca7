"""Which pieces, beside numbers, is the history of a run made of?"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Attempt", "LoggedLine", "LoggedText"]


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
