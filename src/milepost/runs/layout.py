"""Where does everything of a run lie? The only place that knows names of files and folders.

::

    experiments/<id>/   metadata.json  metrics.json  summary.json  experiment.log  media/  code/
    metrics/<id>/       wal-<log id>-<first sequence>[.n].mlog  <log id>.lock  <log id>-<n>.companion
                        guest-<name>.json
    checkpoints/        checkpoint files of all runs
    logs/               milepost-<pid>.log
    runs/<id>/          TensorBoard event files
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from milepost.core.config import ExperimentConfig
from milepost.core.errors import InvalidInputError
from milepost.core.names import is_safe_id, safe_name

__all__ = ["LogName", "RunLayout", "milepost_log", "parse_log_name"]

_LOG_NAME = re.compile(r"wal-([0-9a-f]{32})-([0-9a-f]{16})(?:\.([0-9]{1,9}))?\.mlog")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogName:
    """What the name of a durable log file says: whose it is, where it starts, and which copy it is."""

    log_id: bytes
    first_sequence: int
    copy: int


def parse_log_name(name: str) -> LogName | None:
    """The parts of a durable log's file name, or None for any other name."""
    found = _LOG_NAME.fullmatch(name)
    if found is None:
        return None
    log_id, first, copy = found.groups()
    return LogName(log_id=bytes.fromhex(log_id), first_sequence=int(first, 16), copy=int(copy or 0))


def milepost_log(logs_dir: str | os.PathLike[str], pid: int) -> Path:
    """Our own log file of one process."""
    return Path(logs_dir) / f"milepost-{pid}.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLayout:
    """The paths of one run.

    Attributes:
        experiment_id: Its id, safe as a folder name.
        experiment_dir: Folder that holds one folder per run; the other four are meant likewise.
    """

    experiment_id: str
    experiment_dir: str
    checkpoint_dir: str
    logs_dir: str
    metrics_dir: str
    tensorboard_dir: str | None

    def __post_init__(self) -> None:
        if not is_safe_id(self.experiment_id):
            raise InvalidInputError(
                f"{self.experiment_id!r} cannot be the id of a run",
                cure="use letters, digits, dot, dash and underscore, not starting with a dot or a dash",
            )

    @classmethod
    def from_config(cls, config: ExperimentConfig, experiment_id: str) -> RunLayout:
        """Where the run ``experiment_id`` lies under ``config``."""
        return cls(
            experiment_id=experiment_id,
            experiment_dir=config.experiment_dir,
            checkpoint_dir=config.checkpoint_dir,
            logs_dir=config.logs_dir,
            metrics_dir=config.metrics_dir,
            tensorboard_dir=config.tensorboard_dir,
        )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> RunLayout:
        """Inverse of :meth:`to_dict`."""
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Plain fields, for JSON."""
        return asdict(self)

    @property
    def experiment(self) -> Path:
        """Folder with what a person opens first."""
        return Path(self.experiment_dir) / self.experiment_id

    @property
    def metadata(self) -> Path:
        """``metadata.json``."""
        return self.experiment / "metadata.json"

    @property
    def metrics_json(self) -> Path:
        """``metrics.json``: history by metric."""
        return self.experiment / "metrics.json"

    @property
    def summary(self) -> Path:
        """``summary.json``."""
        return self.experiment / "summary.json"

    @property
    def console(self) -> Path:
        """``experiment.log``: what was printed."""
        return self.experiment / "experiment.log"

    @property
    def media(self) -> Path:
        """Folder of texts, images and other files that were logged."""
        return self.experiment / "media"

    @property
    def staged_media(self) -> Path:
        """What was handed over to be looked at, as raw data; its encoded file comes to lie in ``media``."""
        return self.media / ".staged"

    @property
    def code(self) -> Path:
        """Folder of the difference to the commit, and of files outside it."""
        return self.experiment / "code"

    @property
    def starting_lock(self) -> Path:
        """Keeps two processes from starting the same run at the same moment."""
        return self.experiment / ".starting.lock"

    @property
    def log(self) -> Path:
        """Folder of the run log."""
        return Path(self.metrics_dir) / self.experiment_id

    @property
    def tensorboard(self) -> Path | None:
        """Folder of the event files, or None where TensorBoard is off."""
        return Path(self.tensorboard_dir) / self.experiment_id if self.tensorboard_dir is not None else None

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints of all runs."""
        return Path(self.checkpoint_dir)

    def durable_log(self, log_id: bytes, first_sequence: int, copy: int = 0) -> Path:
        """A file of the log ``log_id`` that starts at ``first_sequence``; ``copy`` > 0 after a disk failed a sync."""
        suffix = f".{copy}" if copy else ""
        return self.log / f"wal-{log_id.hex()}-{first_sequence:016x}{suffix}.mlog"

    def log_lock(self, log_id: bytes) -> Path:
        """Held by the process that writes the log ``log_id``, as long as it lives."""
        return self.log / f"{log_id.hex()}.lock"

    def companion_lock(self, log_id: bytes, number: int) -> Path:
        """Held by the ``number``-th companion of the log's writer, from before it starts until it has left."""
        return self.log / f"{log_id.hex()}-{number}.companion"

    def cursor(self, guest: str) -> Path:
        """How far the guest ``guest`` has read."""
        return self.log / f"guest-{safe_name(guest)}.json"
