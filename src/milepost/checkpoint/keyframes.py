"""To which earlier checkpoint may a new one hold differences, and when does it stand alone instead?

A *keyframe* is a checkpoint that stands alone and that later ones hold differences to: one, never a chain. It takes
disk space as long as one of them is kept, so the differences must save more than it costs.

Pure: it decides over records and numbers, and touches no file.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

from milepost.checkpoint.job import SaveJob
from milepost.core.records import CheckpointInfo

__all__ = ["choose", "pays", "repays"]

#: Saves after which a keyframe is renewed, and after which a best checkpoint takes its place.
_OLD = 25
_OLD_FOR_BEST = 5

#: What most bytes of a checkpoint are in.
_LARGE_PARTS = frozenset({"model", "optimizer"})

#: Differences cost time at each restore, so they must be smaller than this share. Not less: who set them asked for
#: fewer bytes, and a dense float32 state saves an eighth at the most.
_WORTH = 0.95


def choose(infos: Sequence[CheckpointInfo], job: SaveJob, rule_keep: int) -> CheckpointInfo | None:
    """The keyframe that ``job`` may hold differences to; None: it stands alone, and may be the next keyframe.

    Args:
        infos: The checkpoints in the job's folder, of any run.
        job: What is to be saved.
        rule_keep: How many of the newest checkpoints are kept. With one, a keyframe would only be one file more.
    """
    if job.format != "milepost" or not (job.compression and job.delta) or job.standalone or rule_keep < 2:
        return None
    own = sorted((info for info in infos if _comparable(info, job)), key=_order)
    keyframe = _keyframe(own)
    if keyframe is None:
        return None
    age = _saves_between(keyframe, own[own.index(keyframe) + 1 :], job.step)
    return None if age >= (_OLD_FOR_BEST if job.is_best else _OLD) else keyframe


def _keyframe(own: Sequence[CheckpointInfo]) -> CheckpointInfo | None:
    """The newest checkpoint that stands alone and was read back.

    A young keyframe in use does not yield to one that stands alone only because it is the best or pinned.
    """
    alone = [info for info in own if info.verified and not info.base]
    if not alone:
        return None
    newest = alone[-1]
    used = next((info.base for info in reversed(own) if info.base), "")
    current = next((info for info in alone if info.filename == used), None)
    if current is None or current is newest or not (newest.is_best or newest.pinned):
        return newest
    between = own[own.index(current) + 1 : own.index(newest)]
    return newest if _saves_between(current, between, newest.step) >= _OLD_FOR_BEST else current


def _saves_between(keyframe: CheckpointInfo, later: Sequence[CheckpointInfo], step: int) -> int:
    """About which save after ``keyframe`` the one at ``step`` is.

    Most of those between were removed long ago, so their number is told from the usual distance of those that are left.
    """
    steps = [*(info.step for info in later), step]
    distances = [after - before for before, after in itertools.pairwise(steps) if after > before]
    usual = statistics.median(distances) if distances else 0
    return max(len(steps), round((step - keyframe.step) / usual) if usual else 0)


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


def _order(info: CheckpointInfo) -> tuple[float, int, str]:
    return info.timestamp, info.step, info.filename


def _comparable(info: CheckpointInfo, job: SaveJob) -> bool:
    """Whether a checkpoint holds the same run's state, saved the same way."""
    return (
        info.format == "milepost"
        and info.experiment_id == job.experiment_id
        and (info.include, info.lossy) == (job.include, job.lossy)
        and _LARGE_PARTS.intersection(job.contents) <= set(info.contents)  # not one that was cut to its weights
        and info.timestamp <= job.timestamp
    )
