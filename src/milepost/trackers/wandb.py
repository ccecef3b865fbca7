"""How does a run reach Weights & Biases?

Through the package ``wandb``, kept quiet: it captures no console, reads no git, samples no machine, asks nothing. The
W&B run has the id of the experiment, so every attempt goes on in the same one. Without a login it stays offline, in
files that ``wandb sync`` uploads later.

**Invariants**: W&B's own step counts the rows that were told, and the count is part of the cursor: a row that is told
twice has the same step both times, and W&B keeps the first. The step of the training is the x axis of every chart.

**On crash**: W&B's service process dies with the companion and loses what it had not yet written, or uploaded. The
cursor therefore lags (:class:`milepost.trackers.delivery.Pace`), and those rows are told again.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from milepost.core.errors import InvalidCallError, InvalidInputError, MissingDependencyError
from milepost.core.events import BigIntegers, CheckpointChanged, Metrics, Noticed, Number, StatusChanged
from milepost.runs.scan import LoggedRecord
from milepost.trackers.protocol import RunDescription

__all__ = ["WandbTracker"]

_STEP = "trainer/global_step"
_LONGEST_TAG = 64
#: How W&B shows an end: 0 finished, 255 killed, others failed.
_EXIT_CODES = {"completed": 0, "paused": 0, "failed": 1}
_KILLED = 255
_QUIET: Mapping[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "save_code": False,
    "silent": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "x_transaction_log_flush_interval": 1.0,
}


class WandbTracker:
    """Follows a run at Weights & Biases.

    Hyperparameters, model and dataset become the config; metrics the history, with the wall time of their record;
    ``end_experiment``'s metrics the summary. Checkpoints become versions of a model artifact by reference: step,
    metrics and path, while the bytes stay in ``checkpoint_dir``.

    W&B cannot take points back: after a resume at step k the points after k of the earlier attempt stay visible there,
    overdrawn by the new ones at the same steps.

    Args:
        notice: Told once if the run stays offline because there is no login.
    """

    name = "wandb"

    def __init__(self, notice: Callable[[Noticed], None] | None = None) -> None:
        self._notice = notice
        self._wandb: Any = None
        self._run: Any = None
        self._run_id = ""
        self._rows = 0

    def open(self, run: RunDescription, cursor: Mapping[str, Any]) -> bool:
        """Start or go on with the W&B run.

        Raises:
            MissingDependencyError: The package ``wandb`` is absent.
            InvalidInputError: W&B does not accept the login.
        """
        self._wandb = _import_wandb()
        self._rows = cursor.get("rows", 0)
        self._run_id = run.id
        # The global settings too: W&B prints where it found the login before it looks at those of the run.
        self._wandb.setup(self._settings())
        offline = "WANDB_MODE" not in os.environ and not self._logged_in()
        self._run = self._start(run, mode="offline" if offline else None)
        self._run.define_metric(_STEP, hidden=True)
        self._run.define_metric("*", step_metric=_STEP)
        if offline and self._notice is not None:
            self._notice(_offline(self._run.settings.sync_dir))
        return True

    def write(self, records: Sequence[LoggedRecord]) -> None:
        """Log a row per record of metrics, and a reference per committed checkpoint."""
        for record in records:
            event = record.event
            if isinstance(event, Metrics):
                self._log(record.wall_ns, event.step, event.epoch, event.values)
            elif isinstance(event, BigIntegers):
                values = {name: _float(text) for name, text in event.values.items()}
                self._log(record.wall_ns, event.step, event.epoch, values)
            elif isinstance(event, CheckpointChanged) and event.action == "committed":
                self._log_checkpoint(event)

    def flush(self) -> Mapping[str, Any]:
        """Wait until W&B's service process has taken every row."""
        self._opened().status()
        return {"rows": self._rows}

    def close(self, end: StatusChanged | None) -> None:
        """Finish the W&B run with the state of the run, and wait until it is uploaded."""
        if self._run is not None:
            if end is not None and end.summary:
                self._run.summary.update(end.summary)
            self._run.finish(exit_code=_KILLED if end is None else _EXIT_CODES.get(end.status, _KILLED))
            self._run = None
        self._end_service()

    def _opened(self) -> Any:
        if self._run is None:
            raise InvalidCallError("this W&B tracker is not open", cure="call open(run, cursor) first")
        return self._run

    def _settings(self) -> Any:
        known = self._wandb.Settings.model_fields
        return self._wandb.Settings(**{name: value for name, value in _QUIET.items() if name in known})

    def _start(self, run: RunDescription, mode: str | None) -> Any:
        config = {**run.hyperparameters, "model_config": run.model_config, "dataset_info": run.dataset_info}
        run.folder.mkdir(parents=True, exist_ok=True)
        try:
            return self._wandb.init(
                project=run.project,
                id=run.id,
                name=run.name,
                group=run.group,
                notes=run.notes or run.description or None,
                tags=_tags(run.tags),
                config=config,
                dir=os.environ.get("WANDB_DIR", str(run.folder)),
                mode=mode,
                resume="allow",
                reinit="create_new",
                settings=self._settings(),
            )
        except (self._wandb.errors.AuthenticationError, self._wandb.errors.UsageError) as error:
            raise InvalidInputError(
                f"W&B authentication failed ({error})", cure="run wandb login", kind="wandb-login"
            ) from error

    def _logged_in(self) -> bool:
        """Whether W&B will find a login where it looks for one without asking."""
        if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
            return True
        settings = self._wandb.Settings()
        return bool(settings.api_key) or _in_netrc(urlsplit(settings.base_url).netloc)

    def _log(self, wall_ns: int, step: int | None, epoch: float | None, values: Mapping[str, Number]) -> None:
        if not values:
            return
        row: dict[str, Any] = {_STEP: step, "_timestamp": wall_ns / 1e9}
        if epoch is not None:
            row["epoch"] = epoch
        self._opened().log(row | dict(values), step=self._rows, commit=True)
        self._rows += 1

    def _log_checkpoint(self, event: CheckpointChanged) -> None:
        info = event.info
        path = info.get("path", "")
        if not os.path.isfile(path):  # a checkpoint that retention has removed since
            return
        artifact = self._wandb.Artifact(
            f"{self._run_id}-checkpoint",
            type="model",
            metadata={name: info[name] for name in ("step", "epoch", "metrics", "format", "size") if name in info},
        )
        artifact.add_reference(f"file://{path}", name=event.filename, checksum=False)
        best = ["best"] if info.get("is_best") else []
        self._opened().log_artifact(artifact, aliases=["latest", f"step-{event.step}", *best])

    def _end_service(self) -> None:
        """Wait until W&B's service process has ended, unless somebody else in this process uses it.

        Only then everything is in its file: ``finish`` may return before. After a start that failed it is the only way
        to start again, because the process keeps the id in use.
        """
        if self._wandb is not None and self._wandb.run is None:
            self._wandb.teardown()


def _import_wandb() -> Any:
    try:
        return import_module("wandb")
    except ImportError as error:
        raise MissingDependencyError(f"W&B not available ({error})", cure="pip install wandb") from error


def _in_netrc(host: str) -> bool:
    candidates = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for path in map(os.path.expanduser, candidates):
        with suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(path).authenticators(host):
                return True
    return False


def _offline(folder: str) -> Noticed:
    return Noticed(
        source="wandb",
        topic="offline",
        message=f"W&B has no login here: the run stays in {folder}",
        cure=f"run wandb login, then wandb sync {folder}",
    )


def _tags(tags: Sequence[str]) -> list[str]:
    """What W&B accepts as tags: not empty, not twice, not longer than it allows."""
    return list(dict.fromkeys(tag[:_LONGEST_TAG] for tag in tags if tag))


def _float(digits: str) -> float:
    """W&B's numbers are JSON's: an integer beyond 64 bits becomes the nearest float, infinite where there is none."""
    return float(digits)
