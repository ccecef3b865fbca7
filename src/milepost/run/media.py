"""Where does a file go that a run logs?

Below ``experiments/<id>/media``, under a name made from the metric's name and the step. A name is taken by creating the
file, so two processes never write to one.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from milepost.core.events import MediaAdded
from milepost.core.names import safe_name

__all__ = ["keep_file", "keep_text"]


def keep_text(folder: Path, name: str, text: str, step: int) -> MediaAdded:
    """Write a text as a file.

    Raises:
        OSError: The disk refuses.
    """
    target = _reserve(folder, name, step, ".txt")
    target.write_text(text, encoding="utf-8", errors="replace")
    return _added(name, target, "text/plain", step)


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


def _added(name: str, target: Path, media_type: str, step: int) -> MediaAdded:
    return MediaAdded(step=step, name=name, path=target.name, media_type=media_type, size=target.stat().st_size)
