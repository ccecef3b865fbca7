"""How does a training of Lightning become a run?

``MilepostLogger`` is one of Lightning's loggers. Rank 0 has the run; Lightning reduces metrics before it logs them, so
the other ranks have nothing to add, and nothing here waits for them.

The run begins when Lightning first asks for it, ends when ``fit`` (or ``validate``, ``test``) does, and goes on as the
same run if another of them follows. A fit that goes on from a checkpoint hides what the run had logged behind it.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from milepost.core.config import ExperimentConfig, one_config
from milepost.core.errors import InvalidInputError
from milepost.core.names import safe_name
from milepost.core.records import CheckpointInfo
from milepost.environment.scheduler import job_identity
from milepost.integrations.file_courier import PendingFile
from milepost.integrations.lightning_files import last_step_of, listen_to_files, poll_files, settle_files
from milepost.integrations.lightning_meeting import ask_rank_zero, prepare_meeting, tell_ranks
from milepost.integrations.lightning_package import base_class, rank
from milepost.integrations.quiet_signals import without_signal_handlers
from milepost.integrations.sound_file import description_of
from milepost.run import DisabledRun, Run
from milepost.system import start

__all__ = ["MilepostLogger"]

_Base: Any = base_class("{pytorch}.loggers.logger", "Logger")


class MilepostLogger(_Base):  # type: ignore[misc]  # which package it comes from is known when it is imported
    """Lightning's logger for milepost: ``Trainer(logger=MilepostLogger(name="bert", resume="auto"))``.

    The identity of a run for ``resume="auto"`` is its name and the scheduler's job, or its name and the script: the
    hyperparameters are known only after it began, and are kept with the run when Lightning logs them.

    Args:
        name: Of the run.
        tags: Short words.
        resume: ``"auto"``: go on with the unfinished run of the same identity. ``"never"``, ``"must"``, or an id.
        group: Ties runs together.
        config: Settings; instead of ``settings``.
        **settings: Fields of :class:`milepost.ExperimentConfig`.

    Raises:
        InvalidCallError: Both ``config`` and ``settings`` are given.
        InvalidInputError: A setting cannot be meant, or is Lightning's own business.
    """

    def __init__(
        self,
        name: str,
        *,
        tags: Iterable[str] = (),
        resume: str = "auto",
        group: str | None = None,
        config: ExperimentConfig | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self._config = one_config("MilepostLogger", config, settings)
        if self._config.save_on_signal:
            raise InvalidInputError(
                f"save_on_signal is {self._config.save_on_signal!r}, but with Lightning signals are Lightning's",
                cure="leave it out; SLURMEnvironment(auto_requeue=True) saves and requeues on SIGUSR1",
            )
        self._name, self._tags, self._resume, self._group = name, tuple(tags), resume, group
        self._id: str | None = None
        self._run: Run | DisabledRun | None = None
        self._goes_on = False
        self._latest: dict[str, Any] = {}
        self._notes: dict[Path, dict[str, Any]] = {}
        self._written: dict[Path, dict[str, Any]] = {}
        self._on_their_way: set[Path] = set()
        self._loaded: int | None = None
        self._is_fitting = False
        prepare_meeting()

    # ---------------------------------------------------------------- what Lightning asks for

    @property
    def run(self) -> Run | DisabledRun:
        """The run; on other ranks one that does nothing. It stays readable when it has ended."""
        if rank() > 0:
            return DisabledRun()
        return self._run if self._run is not None else self._begin()

    @property
    def experiment(self) -> Run | DisabledRun:
        """The live run, for what a logger of Lightning has no call for: ``self.logger.experiment.log_image(...)``."""
        return self._live()

    @property
    def name(self) -> str:
        """Name of the run, as a folder can be called."""
        return safe_name(self._name)

    @property
    def version(self) -> str:
        """Id of the run: the same after a kill, another one for another run."""
        if self._id is None:
            self._id = ask_rank_zero(self._name) if rank() > 0 else self.run.id
        return self._id

    @property
    def save_dir(self) -> str:
        """Where ``ModelCheckpoint`` puts its files if it has no ``dirpath``: below, ``<name>/<id>/checkpoints``."""
        return self._config.checkpoint_dir

    def log_hyperparams(self, params: Mapping[str, Any] | Namespace | None = None, *_: Any, **__: Any) -> None:
        """Keep the hyperparameters with the run; a value that has no plain form is kept as its text."""
        if rank() == 0:
            self._live().describe_hyperparameters(_as_mapping(params))

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log at Lightning's step; ``epoch`` is the epoch, and no metric."""
        if rank() > 0:
            return
        values = dict(metrics)
        epoch = values.pop("epoch", None)
        run = self._live()
        if step is not None:
            self._go_on_before(step)
        run.log(values, step, epoch=epoch)
        self._latest |= values
        poll_files()

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Lightning calls it when it begins to fit or to evaluate, behind the load of a checkpoint."""
        del input_array
        trainer = getattr(model, "_trainer", None)
        self._is_fitting = trainer is not None and trainer.state.fn == "fit"
        if rank() == 0 and self._is_fitting and self._loaded is not None:
            self._go_on_after(self._loaded)
        self._loaded = None

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """List the file with its metrics; its digest comes from :class:`MilepostCheckpointIO`."""
        if rank() > 0:
            return
        saved = getattr(checkpoint_callback, "_last_checkpoint_saved", "")
        if not saved or "://" in saved:
            return
        if getattr(checkpoint_callback, "save_last", None) == "link":
            settle_files(self._config.exit_timeout)  # a link to this file is made next
        path = Path(saved).absolute()
        monitor, score = checkpoint_callback.monitor, checkpoint_callback.current_score
        metrics = self._latest | ({monitor: float(score)} if monitor is not None and score is not None else {})
        is_best = monitor is not None and saved == checkpoint_callback.best_model_path
        self._notes[path] = {"metrics": metrics, "is_best": is_best}
        if path in self._written and path not in self._on_their_way:
            self._list(path, self._written[path])
        elif path not in self._on_their_way and path.exists():
            step = getattr(checkpoint_callback, "_last_global_step_saved", 0) - 1
            status = path.stat()
            self._list(path, {"step": step, "size": status.st_size, "mtime_ns": status.st_mtime_ns})

    def finalize(self, status: str) -> None:
        """End the run as Lightning ended: ``"success"``, ``"failed"``; ``"finished"`` comes before a requeue."""
        if rank() > 0 or self._run is None or self._run.ended:
            return
        if status == "finished":
            if isinstance(self._run, Run):
                self._run.signal_came("SIGUSR1")
            return
        settle_files(self._config.exit_timeout)
        kind, error, where = sys.exc_info()
        if kind is not None and kind.__name__ == "SIGTERMException":
            ending = "preempted" if job_identity(os.environ) else "stopped"
            self._run.end(status=ending, reason="SIGTERM came")
        elif status == "success" or error is None:
            self._run.end(status="completed" if status == "success" else "failed")
        else:
            self._run.__exit__(kind, error, where)

    # ---------------------------------------------------------------- Lightning's files

    @property
    def run_id(self) -> str:
        """Id of the run, for what is kept beside its files."""
        return self._id or ""

    def file_on_its_way(self, pending: PendingFile) -> None:
        """Remember what is being written (hook of :mod:`.lightning_files`)."""
        self._on_their_way.add(pending.path)
        pending.then(self._file_settled)

    def _file_settled(self, pending: PendingFile) -> None:
        self._on_their_way.discard(pending.path)
        if pending.is_removal and pending.error is None:
            self._record("removed", self._info(pending.path, self._written.pop(pending.path, {})))
        elif not pending.is_removal and pending.error is None:
            self._list(pending.path, pending.described)
        elif not pending.is_removal:
            assert pending.error is not None
            self._record("failed", self._info(pending.path, pending.about), pending.error.what)

    def file_loaded(self, path: Path, content: dict[str, Any]) -> None:
        """Remember where a fit would go on (hook of :mod:`.lightning_files`); list what a killed fit could not."""
        self._loaded = last_step_of(content)
        if isinstance(self._run, Run) and self._goes_on:
            known = {info.path for info in self._run.checkpoints}
            for one in sorted(path.parent.glob(f"*{path.suffix}")):
                described = description_of(one) if one not in known else {}
                if described and described.get("run") == self._id:
                    self._list(one, described)

    def _list(self, path: Path, described: dict[str, Any]) -> None:
        info = self._info(path, described)
        self._record("committed", info)
        if info.verified:
            self._record("verified", info)
        self._written[path] = described

    def _info(self, path: Path, described: dict[str, Any]) -> CheckpointInfo:
        note = described | self._notes.get(path, {})
        return CheckpointInfo(
            filename=path.name,
            path=path,
            experiment_id=self._id or "",
            step=int(described.get("step", -1)),
            epoch=described.get("epoch"),
            metrics=note.get("metrics", {}),
            is_best=note.get("is_best", False),
            timestamp=float(described.get("mtime_ns", 0)) / 1e9,
            size=int(described.get("size", 0)),
            verified="digest" in described,
            format="ckpt",
            contents=tuple(described.get("contents", ())),
            digest=str(described.get("digest", "")),
        )

    def _record(self, action: Any, info: CheckpointInfo, reason: str = "") -> None:
        if isinstance(self._run, Run) and not self._run.ended:
            self._run.record_checkpoint(action, info, reason=reason)

    # ---------------------------------------------------------------- where it goes on

    def _go_on_before(self, step: int) -> None:
        """At the first step of a continued run, if nobody told where it goes on: hide what was logged from here."""
        if self._goes_on and self._is_fitting:
            self._go_on_after(step - 1)
        elif self._goes_on and self._loaded is not None and step > self._loaded:
            self._go_on_after(self._loaded)

    def _go_on_after(self, step: int) -> None:
        self._goes_on, self._loaded = False, None
        if isinstance(self._run, Run):
            self._run.goes_on_after(step)

    # ---------------------------------------------------------------- the run

    def _begin(self) -> Run | DisabledRun:
        first = self._id is None
        with without_signal_handlers():
            self._run = start(
                self._name,
                tags=self._tags,
                resume=self._resume if self._id is None else self._id,
                group=self._group,
                config=self._config,
            )
        self._id = self._run.id
        if first:
            self._goes_on = self._run.attempt > 1
            tell_ranks(self._name, self._id)
            listen_to_files(self)
        return self._run

    def _live(self) -> Run | DisabledRun:
        if rank() > 0:
            return DisabledRun()
        if self._run is None or self._run.ended:
            return self._begin()
        return self._run


def _as_mapping(params: Mapping[str, Any] | Namespace | None) -> Mapping[str, Any]:
    """What was given, whatever keeps it: a namespace, a mapping, a container of OmegaConf."""
    omegaconf = sys.modules.get("omegaconf")
    if omegaconf is not None and omegaconf.OmegaConf.is_config(params):
        return dict(omegaconf.OmegaConf.to_container(params, resolve=True))
    if params is None:
        return {}
    return vars(params) if isinstance(params, Namespace) else params
