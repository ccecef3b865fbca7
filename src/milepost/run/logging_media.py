"""What can a run log beside numbers?

The verbs stand here once and are called through several doors: :class:`milepost.Run`, ``ExperimentTrackingSystem``, the
run in a forked child, and the one that does nothing.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path

from milepost.core.errors import InvalidCallError, InvalidInputError
from milepost.core.events import Text
from milepost.environment.secrets import redact
from milepost.run.media import MediaDesk, keep_file, keep_text

__all__ = ["LogsMedia"]

_LONGEST_TEXT = 48 * 1024


class LogsMedia(ABC):
    """Logs texts, files and other things to look at."""

    @property
    @abstractmethod
    def media_desk(self) -> MediaDesk | None:
        """Where things to look at are handed over; None where nothing is recorded (any more)."""

    def log_text(self, name: str, text: str, step: int | None = None) -> None:
        """Log a text under a name; a long one becomes a file below ``media``."""
        if not isinstance(text, str):
            raise InvalidCallError(f"log_text got {type(text).__name__}", cure="give a string")
        desk = self.media_desk
        if desk is None:
            return
        at = desk.step(step)
        content = redact(text)
        if len(content.encode(errors="replace")) <= _LONGEST_TEXT:
            desk.append(Text(step=at, name=name, text=content), step=at)
        else:
            desk.keep(partial(keep_text, desk.folder, name, content, at))

    def log_file(self, name: str, path: str | os.PathLike[str], step: int | None = None) -> None:
        """Keep a copy of a file below ``media``; it is copied before this returns.

        Raises:
            InvalidInputError: There is no such file.
        """
        if not Path(path).is_file():
            raise InvalidInputError(f"no file {os.fspath(path)!r}", cure="give the path of a file to log_file")
        desk = self.media_desk
        if desk is not None:
            desk.keep(partial(keep_file, desk.folder, name, path, desk.step(step)))
