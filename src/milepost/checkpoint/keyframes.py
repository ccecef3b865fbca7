"""To which earlier checkpoint may a new one hold differences, and when does it stand alone instead?

A *keyframe* is a checkpoint that stands alone and that later ones hold differences to: one, never a chain. It takes
disk space as long as one of them is kept, so the differences must save more than it costs.

Pure: it decides over records and numbers, and touches no file.
"""

from __future__ import annotations

from collections.abc import Sequence

from milepost.checkpoint.job import SaveJob
from milepost.core.records import CheckpointInfo

__all__ = ["choose", "is_due", "pays", "repays"]

#: Saves after which a keyframe is renewed, and after which a best checkpoint takes its place.
_OLD = 25
_OLD_FOR_BEST = 5

#: Differences cost time at each restore, so they must be this much smaller.
_WORTH = 0.75


def choose(infos: Sequence[CheckpointInfo], job: SaveJob, rule_keep: int) -> CheckpointInfo | None:
    """The keyframe that ``job`` may hold differences to; None: it stands alone, and may be the next keyframe.

    Args:
        infos: The checkpoints in the job's folder, of any run.
        job: What is to be saved.
        rule_keep: How many of the newest checkpoints are kept. With one, a keyframe would only be one file more.
    """
    asked = job.format == "milepost" and job.compression and job.delta and not job.standalone
    own = [info for info in infos if _comparable(info, job)] if asked and rule_keep > 1 else []
    own.sort(key=lambda info: (info.timestamp, info.step, info.filename))
    for position in reversed(range(len(own))):
        if own[position].verified and not own[position].base:
            due = is_due(len(own) - position, is_best=job.is_best)
            return None if due else own[position]
    return None


def is_due(age: int, *, is_best: bool) -> bool:
    """Whether a save that is the ``age``-th after the keyframe becomes the next keyframe itself."""
    return age >= _OLD or (is_best and age >= _OLD_FOR_BEST)


def pays(alone: int, beside: int, *, keep: int) -> bool:
    """Whether differences are worth their keyframe.

    Args:
        alone: Bytes of a checkpoint that stands alone.
        beside: Bytes of one that holds differences.
        keep: How many checkpoints will hold differences to the keyframe.
    """
    return beside <= _WORTH * alone and repays(alone, alone - beside, keep=keep)


def repays(alone: int, saved: int, *, keep: int) -> bool:
    """Whether ``saved`` bytes of each of ``keep`` checkpoints are more than the keyframe takes."""
    return keep * saved > alone


def _comparable(info: CheckpointInfo, job: SaveJob) -> bool:
    """Whether a checkpoint holds the same run's state, saved the same way."""
    return (
        info.format == "milepost"
        and info.experiment_id == job.experiment_id
        and (info.include, info.lossy) == (job.include, job.lossy)
        and info.timestamp <= job.timestamp
    )
