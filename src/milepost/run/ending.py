"""What is the last record of a run, and what becomes of calls after it?

The last record must always fit: a run whose end could not be written down would be shown as killed.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from milepost.core.errors import InvalidCallError, InvalidInputError
from milepost.core.events import Event, RunStatus, StatusChanged
from milepost.core.plain import plain
from milepost.core.saying import say
from milepost.environment.secrets import redact
from milepost.runs.recording import NOT_KEPT

__all__ = ["EndedLog", "command_that_goes_on", "end_as_said", "without_secrets"]

_ENDS = ("completed", "failed", "stopped", "killed", "preempted", "paused")
_LONGEST_TRACEBACK = 20_000
_LONGEST_REASON = 1000
_LARGEST_SUMMARY = 24 * 1024


class EndedLog:
    """Takes the place of the log of a run that has ended: what comes is counted as lost, and that is said once.

    It never raises, because a loop that goes on after ``end()`` must not die of it.
    """

    def __init__(self, run_id: str, last_step: int) -> None:
        self.last_step = last_step
        self.lost = 0
        self._run_id = run_id

    def log(self, metrics: Mapping[str, Any], step: int | None = None, epoch: float | None = None) -> None:  # noqa: ARG002
        """Nothing is kept."""
        self._lose()

    def append(self, event: Event, *, step: int | None = None) -> int:  # noqa: ARG002 - the signature of a log
        """Nothing is kept."""
        self._lose()
        return NOT_KEPT

    def close(self) -> None:
        """It is closed."""

    def _lose(self) -> None:
        self.lost += 1
        if self.lost == 1:
            say(f"{self._run_id} has ended: what is logged to it is lost (said once)", cure="start another run")


def without_secrets(end: StatusChanged) -> StatusChanged:
    """The end as it may be written down: no secrets in reason and traceback, and no more of them than fits."""
    reason = redact(end.reason).encode(errors="replace")[:_LONGEST_REASON]
    traceback = redact(end.traceback).encode(errors="replace")[-_LONGEST_TRACEBACK:]
    return replace(end, reason=reason.decode(errors="ignore"), traceback=traceback.decode(errors="ignore"))


def end_as_said(final_metrics: Mapping[str, Any] | None, status: str, reason: str) -> StatusChanged:
    """The end that the arguments of ``Run.end`` ask for; what is raised is documented there."""
    if status not in _ENDS:
        raise InvalidInputError(f"status is {status!r}", cure=f"give one of {', '.join(_ENDS)}")
    if final_metrics is not None and not isinstance(final_metrics, Mapping):
        raise InvalidCallError(f"final_metrics is a {type(final_metrics).__name__}", cure="give a dictionary")
    if not isinstance(reason, str):
        raise InvalidCallError(f"reason is a {type(reason).__name__}", cure="give a text")
    word: RunStatus = status  # type: ignore[assignment]  # checked above
    return StatusChanged(status=word, reason=reason, summary=_that_fits(final_metrics or {}))


def _that_fits(final_metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The final metrics as plain values; what does not fit the last record any more is said, and left out."""
    kept: dict[str, Any] = {}
    left_out: list[str] = []
    room = _LARGEST_SUMMARY
    for name, value in plain(dict(final_metrics)).items():
        room -= len(name.encode(errors="replace")) + len(repr(value).encode(errors="replace")) + 16
        if room >= 0:
            kept[name] = value
        else:
            left_out.append(name)
    if left_out:
        say(
            f"{len(left_out)} of the final metrics do not fit the summary, from {left_out[0][:80]!r} on",
            cure="log them with log() before the end",
        )
    return kept


def command_that_goes_on() -> str:
    """The command that started this process, secrets redacted."""
    return redact(shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]))
