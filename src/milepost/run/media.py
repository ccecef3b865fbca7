"""How does a training hand over what is to be looked at?

It is put down raw (:mod:`milepost.runs.staged`), and the companion does the rest. Only a file of the user's is copied
below ``experiments/<id>/media`` at once, under a name made from its own and the step; the name is taken by creating it,
so two processes never write to one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from milepost.core.errors import InvalidCallError, InvalidInputError
from milepost.core.events import Event, MediaAdded, MediaStaged
from milepost.core.names import safe_name
from milepost.environment.secrets import redact
from milepost.run.media_forms import Form
from milepost.runs.layout import RunLayout
from milepost.runs.staged import Staged, staged_names, write_staged

__all__ = ["MediaDesk", "keep_file"]

_LOOK_EVERY = 0.02
_REMEMBERED = 1024
_LONGEST_WORDS = 4096  # of a name or a caption, in characters: both stand in a record of limited size


class _Append(Protocol):
    def __call__(self, event: Event, *, step: int | None = None) -> object: ...


class MediaDesk:
    """Takes what a process of a run wants to have looked at.

    Args:
        layout: The run.
        rank: Of this training process.
        append: Puts an event into the log of this process.
        last_step: The step last logged, for what is given without one.
        notice: Says and records that the world went wrong: message and cure.
        make_durable: Brings the log of this process to the disk, until a ``time.monotonic()``; whether it got there.
    """

    def __init__(
        self,
        layout: RunLayout,
        rank: int,
        *,
        append: _Append,
        last_step: Callable[[], int],
        notice: Callable[[str, str], None],
        make_durable: Callable[[float], bool],
    ) -> None:
        self.folder = layout.media
        self.append = append
        self._staged_folder = layout.staged_media
        self._rank = rank
        self._last_step = last_step
        self._notice = notice
        self._make_durable = make_durable
        self._handed: set[str] = set()
        self._refused = False

    def step(self, given: int | None) -> int:
        """The step to log at.

        Raises:
            InvalidCallError: The one given is no whole number.
        """
        if given is None:
            return max(self._last_step(), 0)
        if isinstance(given, bool) or not hasattr(given, "__index__"):
            raise InvalidCallError(f"step is {given!r:.80}", cure="give a whole number, or None for the last one")
        return given.__index__()

    def keep(self, keep: Callable[[], MediaAdded]) -> None:
        """Write a media file and record it; a disk that refuses is said, and stops nothing."""
        try:
            added = keep()
        except OSError as error:
            self._refuse(error)
        else:
            self._refused = False
            self.append(added, step=added.step)

    def hand_over(self, name: str, forms: list[Form], step: int | None, caption: str = "") -> None:
        """Put raw data down for the encoder; a disk that refuses is said once, and stops nothing.

        Raises:
            InvalidCallError: Name or caption is no text, or the step no whole number.
            InvalidInputError: Name or caption does not fit a record.
        """
        for what, text in (("name", name), ("caption", caption)):
            if not isinstance(text, str):
                raise InvalidCallError(f"{what} is a {type(text).__name__}", cure="give a string")
            if len(text) > _LONGEST_WORDS:
                raise InvalidInputError(f"{what} has {len(text)} characters", cure="log it as a text with log_text")
        at = self.step(step)
        for form in forms:
            staged = Staged(step=at, name=name, form=form.form, caption=redact(caption), facts=form.facts)
            try:
                source = write_staged(self._staged_folder, self._rank, staged, form.data)
            except OSError as error:
                self._refuse(error)
                return
            self._refused = False
            self._remember(source)
            event = MediaStaged(
                step=at, name=name, source=source, form=staged.form, caption=staged.caption, facts=staged.facts
            )
            self.append(event, step=at)

    def _refuse(self, error: OSError) -> None:
        if not self._refused:
            self._refused = True
            message = f"what was logged to be looked at could not be kept ({error.strerror}); said once"
            self._notice(message, "free disk space")

    def _remember(self, source: str) -> None:
        if len(self._handed) >= _REMEMBERED:
            self._handed &= set(staged_names(self._staged_folder))
        self._handed.add(source)

    def flush(self, seconds: float) -> bool:
        """Wait until what was handed over is encoded, recorded and on disk; False after ``seconds``."""
        deadline = time.monotonic() + seconds
        while self._handed:
            self._handed &= set(staged_names(self._staged_folder))
            if self._handed and time.monotonic() > deadline:
                return False
            if self._handed:
                time.sleep(_LOOK_EVERY)
        return self._make_durable(deadline)


def keep_file(folder: Path, name: str, source: str | os.PathLike[str], step: int) -> MediaAdded:
    """Copy a file.

    Raises:
        OSError: It cannot be read, or the disk refuses.
    """
    target = _reserve(folder, name, step, Path(source).suffix)
    shutil.copyfile(source, target)
    size = target.stat().st_size
    return MediaAdded(step=step, name=name, path=target.name, media_type="application/octet-stream", size=size)


def _reserve(folder: Path, name: str, step: int, suffix: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{safe_name(name)}_{step}"
    number = 1
    while True:
        target = folder / (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
        try:
            target.open("x").close()
        except FileExistsError:
            number += 1
        else:
            return target
