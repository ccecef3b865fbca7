"""Which checkpoint is meant by a path, a record, a step, ``"best"`` or ``"latest"``?

Pure, over what a scan of the folder found. Damaged files take part: if the newest checkpoint cannot be read, the one
before it is not quietly taken for the newest.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from milepost.checkpoint.catalog import Scan
from milepost.checkpoint.retention import RetentionRule, best_of, newest_first
from milepost.core.errors import InvalidCallError, NotFoundError
from milepost.core.records import CheckpointInfo

__all__ = ["Selector", "of_experiment", "select", "sound_ones"]

Selector = str | os.PathLike[str] | int | CheckpointInfo


def of_experiment(found: Scan, experiment_id: str) -> Scan:
    """What belongs to one experiment, and damaged files that tell nobody whose they are; all, if none is named."""
    if not experiment_id:
        return found
    return Scan(
        infos=tuple(info for info in found.infos if info.experiment_id == experiment_id),
        damaged=tuple(file for file in found.damaged if file.info is None or file.info.experiment_id == experiment_id),
    )


def select(selector: Selector, found: Scan, rule: RetentionRule, folder: Path) -> Path:
    """The file that is meant.

    Raises:
        NotFoundError: There is none; the message says what there is.
        InvalidCallError: The selector is of no known type.
    """
    if isinstance(selector, CheckpointInfo):
        return selector.path
    infos = [*found.infos, *(file.info for file in found.damaged if file.info is not None)]
    if isinstance(selector, int) and not isinstance(selector, bool):
        return _by_step(selector, infos, folder)
    if selector == "best":
        best = best_of(infos, rule.best_metric, rule.best_mode)
        if best is None:
            raise _nothing("no checkpoint is marked best", infos, folder)
        return best.path
    if selector == "latest":
        return _latest(found, infos, folder)
    if isinstance(selector, (str, os.PathLike)):
        return _by_path(selector, infos, folder)
    raise InvalidCallError(
        f"a checkpoint cannot be chosen by a {type(selector).__name__}",
        cure='give a path, a listed checkpoint, a step, "best" or "latest"',
    )


def _by_step(step: int, infos: Sequence[CheckpointInfo], folder: Path) -> Path:
    matching = newest_first([info for info in infos if info.step == step])
    if not matching:
        raise _nothing(f"no checkpoint of step {step}", infos, folder)
    return matching[0].path


def _latest(found: Scan, infos: Sequence[CheckpointInfo], folder: Path) -> Path:
    dated = [(info.timestamp, info.path) for info in infos]
    dated += [(file.modified, file.path) for file in found.damaged if file.info is None]
    if not dated:
        raise _nothing("no checkpoint", infos, folder)
    return max(dated)[1]


def _by_path(selector: str | os.PathLike[str], infos: Sequence[CheckpointInfo], folder: Path) -> Path:
    path = Path(os.fspath(selector))
    for candidate in (path, folder / path):
        if candidate.exists():
            return candidate.absolute()
    raise _nothing(f"no checkpoint {str(path)!r}", infos, folder)


def sound_ones(found: Scan, without: Path) -> list[CheckpointInfo]:
    """What can be taken instead of a damaged file, the newest first."""
    return [info for info in newest_first(found.infos) if info.path != without]


def _nothing(what: str, infos: Sequence[CheckpointInfo], folder: Path) -> NotFoundError:
    steps = ", ".join(str(info.step) for info in infos[-5:]) or "none"
    return NotFoundError(f"{what} in {folder}", cure=f"checkpoints there are of step: {steps}")
