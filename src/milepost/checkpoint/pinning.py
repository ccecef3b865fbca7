"""How is a checkpoint that is already there kept for good?

One that was saved with ``pin=True`` says so itself. A file is never changed once it is there, so a later wish stands
beside it: an empty file ``.<filename>.pinned``, which goes where the folder goes.

**Invariants**: whoever lists the folder after :func:`pin_newest` returned a checkpoint sees it pinned.

**On crash**: the mark is there or not; a mark without its checkpoint means nothing.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from milepost.checkpoint.catalog import pin_mark_of, refresh
from milepost.checkpoint.retention import newest_first
from milepost.core.records import CheckpointInfo
from milepost.io.durable import fsync_directory

__all__ = ["pin_newest"]


def pin_newest(folder: Path, experiment_id: str, *, before: int | None) -> CheckpointInfo | None:
    """Pin the newest checkpoint of an experiment.

    Args:
        folder: Where its checkpoints lie.
        experiment_id: Whose they are.
        before: Only of steps below this one; None: of any.

    Returns:
        The checkpoint, pinned (now or before); None if there is none.

    Raises:
        OSError: The folder cannot be written.
    """
    if not folder.is_dir():
        return None
    for info in newest_first([info for info in refresh(folder).infos if info.experiment_id == experiment_id]):
        if before is not None and info.step >= before:
            continue
        if info.pinned:
            return info
        mark = pin_mark_of(info.path)
        mark.touch()
        if info.path.exists():
            fsync_directory(folder)
            refresh(folder)
            return replace(info, pinned=True)
        with suppress(OSError):  # retention was faster: the one before it is taken
            mark.unlink()
    return None
