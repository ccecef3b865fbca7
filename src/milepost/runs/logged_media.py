"""Which files did a run log to be looked at, and which of them count after a resume?

A file counts as of the moment it was handed over, not of the one it was encoded: that may be days later, and behind a
resume that did its step again.

**Invariants**: a path that would lead out of the run's media folder is not given out.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from milepost.core.events import MediaAdded
from milepost.runs.series import Rewind

__all__ = ["LoggedAt", "MediaItem", "MediaLog"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaItem:
    """A file to look at.

    Attributes:
        time: When it was logged, seconds since 1970.
        step: At which step.
        name: Under which name.
        form: ``"image"``, ``"figure"``, ``"histogram"``, ``"table"``, ``"audio"``, ``"html"``, ``"graph"``, ``"text"``
            or ``"file"``.
        path: The file, absolute; it may have been removed.
        media_type: As ``"image/png"``.
        size: Bytes.
        caption: Of an image or a sound.
        facts: Width and height, sample rate, numbers of rows and columns, the place in a list of images.
        rank: Of the training process that logged it.
    """

    time: float
    step: int | None
    name: str
    form: str
    path: Path
    media_type: str
    size: int
    caption: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedAt:
    """Where and when a record was logged: the number of its log, its place there, and whose log it is."""

    attempt: int
    log: int
    sequence: int
    wall_ns: int
    rank: int

    def is_hidden_by(self, rewind: Rewind, step: int | None) -> bool:
        """Whether a resume did again what was logged here for ``step``; as :meth:`Points.superseded`."""
        if step is None or step <= rewind.step:
            return False
        if self.log == rewind.log:
            return self.sequence < rewind.sequence
        return self.attempt < rewind.attempt or (self.attempt == rewind.attempt and self.wall_ns < rewind.wall_ns)


@dataclass(slots=True)
class MediaLog:
    """What the logs say of media, while they are read and afterwards."""

    added: list[tuple[MediaAdded, LoggedAt]] = field(default_factory=list)
    staged: dict[str, LoggedAt] = field(default_factory=dict)

    def items(self, folder: Path, rewinds: Sequence[Rewind], *, superseded: bool = False) -> list[MediaItem]:
        """Those that count, or those that a resume did again, in the order in which they were logged.

        Args:
            folder: Of the run's media.
            rewinds: The resumes of the run.
            superseded: Give the ones that were done again.
        """
        found = []
        for added, recorded_at in self.added:
            at = self.staged.get(added.source, recorded_at)
            path = _inside(folder, added.path)
            if path is not None and any(at.is_hidden_by(one, added.step) for one in rewinds) == superseded:
                found.append(_item(added, at, path))
        return sorted(found, key=lambda item: item.time)


def _item(added: MediaAdded, at: LoggedAt, path: Path) -> MediaItem:
    return MediaItem(
        time=at.wall_ns / 1e9,
        step=added.step,
        name=added.name,
        form=added.form,
        path=path,
        media_type=added.media_type,
        size=added.size,
        caption=added.caption,
        facts=dict(added.facts),
        rank=at.rank,
    )


def _inside(folder: Path, name: str) -> Path | None:
    """The file ``name`` of ``folder``; None if it lies elsewhere, by its name or through a link."""
    path = folder.absolute() / name
    with suppress(OSError, ValueError, RuntimeError):
        inside = path.resolve().relative_to(folder.resolve())
        if inside.parts and ".." not in path.parts:
            return path
    return None
