"""What is said of a checkpoint that was just written?"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.regions import state_bytes
from milepost.core.records import CheckpointInfo

__all__ = ["info_of", "job_again"]


def info_of(job: SaveJob, path: Path, size: int, base: str = "") -> CheckpointInfo:
    """The record of ``job`` written to ``path``: ``size`` bytes, beside ``base`` if it needs one; not verified."""
    return CheckpointInfo(
        filename=path.name,
        path=path,
        experiment_id=job.experiment_id,
        step=job.step,
        epoch=job.epoch,
        metrics=job.metrics,
        is_best=job.is_best,
        timestamp=job.timestamp,
        size=size,
        state_bytes=state_bytes(job.tensors),
        pinned=job.pinned,
        format=job.format,
        stall_ms=job.stall_ms,
        wait_ms=job.wait_ms,
        contents=tuple(job.contents),
        base=base,
        include=job.include,
        lossy=job.lossy,
    )


def job_again(info: CheckpointInfo, contents: Collection[str]) -> SaveJob:
    """A job that writes the checkpoint ``info`` once more, to load alone; where to, and its tensors, are still open."""
    return SaveJob(
        path="",
        standalone=True,
        include=info.include,
        lossy=info.lossy,
        experiment_id=info.experiment_id,
        step=info.step,
        epoch=info.epoch,
        metrics=dict(info.metrics),
        is_best=info.is_best,
        pinned=info.pinned,
        timestamp=info.timestamp,
        stall_ms=info.stall_ms,
        wait_ms=info.wait_ms,
        contents=list(contents),
        tree="",
        tensors=[],
        arena_bytes=0,
    )
