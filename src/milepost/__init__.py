"""What does a user import?

::

    import milepost

    with milepost.start("bert-fine-tuning", hyperparameters=hp, resume="auto") as run:   # write
        run.log({"train/loss": loss}, step)

    milepost.open("~/project")["bert-fine-tuning"].series("train/loss")                  # read
    milepost.load("checkpoints/checkpoint_...milepost")                                  # weights

Every name is fetched when it is first used, so ``import milepost`` costs a few milliseconds and loads no package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from milepost.checkpoint.checkpointer import ModelCheckpointer
    from milepost.checkpoint.export import export
    from milepost.checkpoint.loading import load, open_checkpoint
    from milepost.core.config import ExperimentConfig
    from milepost.core.errors import (
        ConflictError,
        CorruptDataError,
        GaveUpWaitingError,
        InvalidCallError,
        InvalidInputError,
        MilepostError,
        MissingDependencyError,
        NotFoundError,
        StorageError,
    )
    from milepost.core.records import CheckpointInfo, LoadReport, ResumePoint
    from milepost.run import Run
    from milepost.run.watching import watch
    from milepost.runs.store import open  # noqa: A004  # milepost.open(folder), as in gzip.open
    from milepost.system import ExperimentTracker, ExperimentTrackingSystem, start
    from milepost.trackers.tensorboard import TensorboardTracker
    from milepost.trackers.wandb import WandbTracker

__version__ = "0.1.0"

__all__ = [
    "CheckpointInfo",
    "ConflictError",
    "CorruptDataError",
    "ExperimentConfig",
    "ExperimentTracker",
    "ExperimentTrackingSystem",
    "GaveUpWaitingError",
    "InvalidCallError",
    "InvalidInputError",
    "LoadReport",
    "MilepostError",
    "MissingDependencyError",
    "ModelCheckpointer",
    "NotFoundError",
    "ResumePoint",
    "Run",
    "StorageError",
    "TensorboardTracker",
    "WandbTracker",
    "export",
    "load",
    "open",
    "open_checkpoint",
    "start",
    "watch",
]

_HOMES = {
    "milepost.checkpoint.checkpointer": ("ModelCheckpointer",),
    "milepost.checkpoint.export": ("export",),
    "milepost.checkpoint.loading": ("load", "open_checkpoint"),
    "milepost.core.config": ("ExperimentConfig",),
    "milepost.core.errors": (
        "ConflictError",
        "CorruptDataError",
        "GaveUpWaitingError",
        "InvalidCallError",
        "InvalidInputError",
        "MilepostError",
        "MissingDependencyError",
        "NotFoundError",
        "StorageError",
    ),
    "milepost.core.records": ("CheckpointInfo", "LoadReport", "ResumePoint"),
    "milepost.run": ("Run",),
    "milepost.run.watching": ("watch",),
    "milepost.runs.store": ("open",),
    "milepost.system": ("ExperimentTracker", "ExperimentTrackingSystem", "start"),
    "milepost.trackers.tensorboard": ("TensorboardTracker",),
    "milepost.trackers.wandb": ("WandbTracker",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'milepost' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
