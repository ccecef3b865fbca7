"""Which checkpoint is meant by ``RUN@700``, ``RUN@best``, ``RUN@latest``, or a path?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from milepost.checkpoint.catalog import scan
from milepost.checkpoint.retention import RetentionRule
from milepost.checkpoint.selection import of_experiment, select
from milepost.core.errors import NotFoundError

if TYPE_CHECKING:
    from milepost.runs.store import RunReader, Store

__all__ = ["files_of", "named_checkpoint", "rule_of"]


def named_checkpoint(name: str, store: Callable[[], Store]) -> Path:
    """The file that is meant.

    Args:
        name: A path, the name of a file among the store's checkpoints, or a run, ``@``, and a step, ``best`` or
            ``latest``.
        store: Opens the store; asked only if the path does not lead to a file.

    Raises:
        NotFoundError: There is no such checkpoint; the message says what there is.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path.absolute()
    run_name, at, which = name.rpartition("@")
    if at:
        run = store()[run_name]
        folder = run.layout.checkpoints
        selector = int(which) if which.isascii() and which.isdigit() else which
        return select(selector, of_experiment(scan(folder), run.id), rule_of(run), folder)
    for folder in sorted({run.layout.checkpoints for run in store().runs()}):
        if Path(name).name == name and (folder / name).is_file():
            return folder / name
    raise NotFoundError(
        f"no checkpoint {name!r}", cure="give a path, RUN@STEP, RUN@best or RUN@latest; list them: milepost checkpoints"
    )


def files_of(run: RunReader) -> list[Path]:
    """All checkpoint files of a run, damaged ones too, by name."""
    found = of_experiment(scan(run.layout.checkpoints), run.id)
    return sorted([info.path for info in found.infos] + [file.path for file in found.damaged])


def rule_of(run: RunReader) -> RetentionRule:
    """What the run's own settings keep; where they are not known, one file of each kind."""
    settings = run.metadata.get("settings")
    known = settings if isinstance(settings, Mapping) else {}
    return RetentionRule.of({"max_checkpoints": 1, "best_metric": None, "best_mode": "min"} | dict(known))
