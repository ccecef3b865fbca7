"""Real snapshots to save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from milepost.checkpoint.arena import Arena
from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.snapshot import Stager, outline


def staged(folder: Path, step: int, **more: Any) -> tuple[SaveJob, Arena]:
    """A job for a small model and the arena that it lies in."""
    arena = Arena()
    snapshot = Stager().stage(outline({"model": {"weight": torch.full((500,), float(step))}}), arena)
    job = SaveJob(
        path=str(folder / f"checkpoint_s_{step}.milepost"),
        experiment_id="run_20261124-133155",
        step=step,
        timestamp=float(step),
        tree=snapshot.tree,
        tensors=snapshot.tensors,
        arena_bytes=snapshot.nbytes,
        **more,
    )
    return job, arena
