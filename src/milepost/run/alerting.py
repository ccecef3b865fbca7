"""How does a training ask a person to look at it?

``alert`` stands here once and is called through the same doors as what a run logs beside numbers. It writes one record;
guests and readers take it from there.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import get_args

from milepost.core.errors import InvalidCallError, InvalidInputError
from milepost.core.events import Alerted, AlertLevel
from milepost.core.saying import say
from milepost.environment.secrets import redact
from milepost.run.media import MediaDesk

__all__ = ["GivesAlerts", "say_alert"]

_LONGEST_TITLE = 200
_LONGEST_TEXT = 8 * 1024


class GivesAlerts(ABC):
    """Asks a person to look."""

    @property
    @abstractmethod
    def media_desk(self) -> MediaDesk | None:
        """Where records are handed over; None where nothing is recorded (any more)."""

    def alert(self, title: str, text: str = "", level: AlertLevel = "warning") -> None:
        """Ask a person to look: said once at the terminal, recorded with the run, and told to its guests.

        Args:
            title: What happened, in a few words; cut after 200 characters.
            text: More about it; cut after 8 KiB. Secrets are redacted in both.
            level: ``"info"``, ``"warning"`` or ``"error"``.

        Raises:
            InvalidCallError: ``title`` or ``text`` is no text.
            InvalidInputError: ``title`` is empty, or ``level`` another word.
        """
        if not isinstance(title, str) or not isinstance(text, str):
            raise InvalidCallError(f"alert got {title!r:.80} and {text!r:.80}", cure="give two texts")
        if not title.strip():
            raise InvalidInputError("the title of an alert is empty", cure="say what happened")
        if level not in get_args(AlertLevel):
            raise InvalidInputError(
                f"the level of an alert is {level!r}", cure=f"give one of {', '.join(get_args(AlertLevel))}"
            )
        desk = self.media_desk
        if desk is None:
            return
        step = desk.step(None)
        title, text = redact(title)[:_LONGEST_TITLE], _cut(redact(text))
        say_alert(title, text, level)
        desk.append(Alerted(step=step, title=title, text=text, level=level), step=step)


def _cut(text: str) -> str:
    return text.encode(errors="replace")[:_LONGEST_TEXT].decode(errors="ignore")


def say_alert(title: str, text: str, level: str) -> None:
    """One line at the terminal."""
    say(f"{level}: {title}", cure=text, level=logging.getLevelNamesMapping()[level.upper()])
