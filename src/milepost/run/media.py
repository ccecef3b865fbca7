"""Where does a file go that a run logs?

Below ``experiments/<id>/media``, under a name made from the metric's name and the step. A name is taken by creating the
file, so two processes never write to one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from milepost.core.events import Event, MediaAdded
from milepost.core.names import safe_name

__all__ = ["MediaDesk", "keep_file", "keep_text"]


class _Append(Protocol):
    def __call__(self, event: Event, *, step: int | None = None) -> object: ...


class MediaDesk:
    """Takes what a process of a run wants to have looked at.

    Args:
        folder: ``experiments/<id>/media``.
        append: Puts an event into the log of this process.
        last_step: The step last logged, for what is given without one.
        notice: Says and records that the world went wrong: message and cure.
    """

    def __init__(
        self,
        folder: Path,
        *,
        append: _Append,
        last_step: Callable[[], int],
        notice: Callable[[str, str], None],
    ) -> None:
        self.folder = folder
        self.append = append
        self._last_step = last_step
        self._notice = notice

    def step(self, given: int | None) -> int:
        """The step to log at."""
        return max(self._last_step(), 0) if given is None else given

    def keep(self, keep: Callable[[], MediaAdded]) -> None:
        """Write a media file and record it; a disk that refuses is said, and stops nothing."""
        try:
            added = keep()
        except OSError as error:
            self._notice(f"a logged file could not be kept ({error.strerror})", "free disk space")
        else:
            self.append(added, step=added.step)


def keep_text(folder: Path, name: str, text: str, step: int) -> MediaAdded:
    """Write a text as a file.

    Raises:
        OSError: The disk refuses.
    """
    target = _reserve(folder, name, step, ".txt")
    target.write_text(text, encoding="utf-8", errors="replace")
    return _added(name, target, "text/plain", step, form="text")


def keep_file(folder: Path, name: str, source: str | os.PathLike[str], step: int) -> MediaAdded:
    """Copy a file.

    Raises:
        OSError: It cannot be read, or the disk refuses.
    """
    target = _reserve(folder, name, step, Path(source).suffix)
    shutil.copyfile(source, target)
    return _added(name, target, "application/octet-stream", step)


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


def _added(name: str, target: Path, media_type: str, step: int, form: str = "file") -> MediaAdded:
    size = target.stat().st_size
    return MediaAdded(step=step, name=name, path=target.name, media_type=media_type, size=size, form=form)
