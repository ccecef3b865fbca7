"""What has to happen to a staged snapshot, and in which order?

Commit, list, report, read back, note, copy to the second folder, let older ones go. The companion and
:class:`InlineWriter` run the same function; it needs no torch.

**Invariants**: ``committed`` is reported when the file is complete and survives power loss, so whoever waits, waits no
longer. Nothing older goes before this one, or a newer one, was read back whole.

**On crash**: before the rename there is no file; after it there is a whole one that is not marked verified. Given the
same job again, another process finds that file and goes on behind the commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from milepost.checkpoint.backup import copy_checkpoint
from milepost.checkpoint.catalog import mark_verified, refresh, scan
from milepost.checkpoint.commit import commit, remove_stale_temporaries, verify
from milepost.checkpoint.foreign import verify_foreign
from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.keyframes import choose
from milepost.checkpoint.listing import info_of
from milepost.checkpoint.pruning import prune
from milepost.checkpoint.retention import RetentionRule
from milepost.checkpoint.side_file import RANK_FORMAT, rank_of
from milepost.core.errors import StorageError
from milepost.core.events import CheckpointChanged
from milepost.core.records import CheckpointInfo
from milepost.core.saying import logger
from milepost.io.durable import fsync_directory, replace_file

if TYPE_CHECKING:
    from milepost.checkpoint.habits import Habits

__all__ = ["commit_with_ranks", "finish_save"]

_RANKS_TIMEOUT = 60.0


def finish_save(
    job: SaveJob,
    arena: memoryview,
    rule: RetentionRule,
    report: Callable[[CheckpointChanged], None],
    *,
    habits: Habits | None = None,
    hurry: Callable[[], bool] = lambda: False,
    backup: Path | None = None,
) -> CheckpointInfo:
    """Turn a staged snapshot into a listed, verified checkpoint and apply the retention of its experiment.

    Args:
        job: What to write. A job of format ``"rank"`` is one small file: written, nothing reported, nothing listed.
        arena: The snapshot; not needed any more once ``committed`` was reported.
        rule: What is kept.
        report: Told ``committed`` (``reason`` names ranks whose state is missing), ``verified`` (a second time if there
            is no second copy; ``reason`` says why), ``demoted`` and ``removed``.
        habits: What the writing side learnt from the saves before; None: learn nothing.
        hurry: Whether what is left should be stored the fastest way, because the training is gone.
        backup: A second folder that gets a copy once the checkpoint is verified.

    Returns:
        The checkpoint as listed.

    Raises:
        StorageError: It was not committed; there is no file.
        CorruptDataError: It was committed, and reading it back failed. Nothing older was removed.
    """
    path = Path(job.path)
    if job.format == RANK_FORMAT:
        replace_file(path, job.tree.encode("utf-8", "surrogatepass"))
        return info_of(job, path, len(job.tree))
    info, reason = _committed_before(job), ""
    if info is None:
        write = partial(commit, base=_keyframe(job, rule), keep=rule.keep_newest, habits=habits, hurry=hurry)
        info, reason = commit_with_ranks(job, lambda complete: write(complete, arena))
    report(_change("committed", info, reason))  # the file itself is the record; its list may come later
    remove_stale_temporaries(path.parent)
    refresh(path.parent)
    _read_back(path, job.format)
    mark_verified(path)
    report(_change("verified", info))
    if backup is not None:
        _copy(info, backup, report)
    prune(path.parent, job.experiment_id, rule, report, backup=backup, verified={path.name})
    return replace(info, verified=True)


def _committed_before(job: SaveJob) -> CheckpointInfo | None:
    """The file of this very save, if a process committed it and died before it could say so."""
    path = Path(job.path)
    if not path.exists():
        return None
    same = (job.experiment_id, job.step, job.timestamp)
    for info in scan(path.parent).infos:
        if info.filename == path.name and (info.experiment_id, info.step, info.timestamp) == same:
            fsync_directory(path.parent)  # it may have died between the rename and this
            return info
    return None


def _keyframe(job: SaveJob, rule: RetentionRule) -> Path | None:
    """The checkpoint that this one may hold differences to."""
    if not job.delta:
        return None
    chosen = choose(scan(Path(job.path).parent).infos, job, rule.keep_newest)
    return chosen.path if chosen is not None else None


def commit_with_ranks(job: SaveJob, write: Callable[[SaveJob], CheckpointInfo]) -> tuple[CheckpointInfo, str]:
    """Commit together with what the other ranks left; the second value names ranks that left nothing.

    Args:
        job: What to write.
        write: Commits it, given the job with those side files that are there.
    """
    wanted = [Path(name) for name in job.side_files]
    present = _wait_for(wanted)
    missing = ", ".join(str(rank_of(file)) for file in wanted if file not in present)
    info = write(replace(job, side_files=[str(file) for file in present]))
    for file in present:
        with suppress(OSError):
            file.unlink()
    return info, f"random numbers and data position of rank {missing} are not in it" if missing else ""


def _read_back(path: Path, kind: str) -> None:
    if kind == "milepost":
        verify(path)
    else:
        verify_foreign(path)


def _copy(info: CheckpointInfo, backup: Path, report: Callable[[CheckpointChanged], None]) -> None:
    """A second copy that cannot be made is no failed save: the checkpoint is there, and verified."""
    try:
        copy_checkpoint(info, backup)
    except StorageError as error:
        logger.warning("%s has no second copy: %s", info.path, error)
        report(_change("verified", info, f"there is no second copy of it: {error}"))


def _change(action: str, info: CheckpointInfo, reason: str = "") -> CheckpointChanged:
    content = info.to_fields() if action == "committed" else {}
    return CheckpointChanged(step=info.step, action=action, filename=info.filename, reason=reason, info=content)  # type: ignore[arg-type]


def _wait_for(files: list[Path]) -> list[Path]:
    """Those of ``files`` that appeared within the time given to the other ranks."""
    deadline = time.monotonic() + _RANKS_TIMEOUT
    while not all(file.exists() for file in files) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [file for file in files if file.exists()]
