"""Where are the names that older code imports? Here, and nothing else: the code lives in :mod:`milepost`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import milepost

if TYPE_CHECKING:
    from milepost import (
        CheckpointInfo,
        ConflictError,
        CorruptDataError,
        ExperimentConfig,
        ExperimentTracker,
        ExperimentTrackingSystem,
        GaveUpWaitingError,
        InvalidCallError,
        InvalidInputError,
        LoadReport,
        MilepostError,
        MissingDependencyError,
        ModelCheckpointer,
        NotFoundError,
        ResumePoint,
        StorageError,
        TensorboardTracker,
        WandbTracker,
    )

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
    "StorageError",
    "TensorboardTracker",
    "WandbTracker",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(milepost, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
