"""How does a run follow a training that Trainer drives?

The run begins with ``trainer.train()`` on every rank. It stays open until the script ends (or the next training of this
process begins), because what ``trainer.evaluate()`` finds out afterwards belongs to it too.

What the disk or another process does wrong never stops the training here: it is said once. What Trainer itself raises
is none of our business, and ends the run as failed.
"""
# ruff: noqa: ARG002 - Trainer calls every hook with all of its arguments

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from milepost.core.config import ExperimentConfig, one_config
from milepost.core.errors import (
    CorruptDataError,
    GaveUpWaitingError,
    InvalidCallError,
    MilepostError,
    NotFoundError,
    StorageError,
)
from milepost.core.records import CheckpointInfo
from milepost.core.saying import say
from milepost.integrations.huggingface_arguments import data_facts, hyperparameters_of, metric_names, model_facts
from milepost.integrations.huggingface_digests import STATE_FILE, keep_digests
from milepost.integrations.huggingface_folders import inspect_folder, step_of
from milepost.run import DisabledRun, Run
from milepost.system.facade import start

__all__ = ["MilepostCallback"]


_transformers: Any = import_module("transformers")  # takes a type checker minutes to read


class MilepostCallback(_transformers.TrainerCallback):  # type: ignore[misc]  # its types are not looked at
    """Tracks the trainings of a Trainer: ``Trainer(..., callbacks=[MilepostCallback(name="bert", resume="auto")])``.

    Args:
        name: Of the run; may be a template over ``TrainingArguments``: ``"bert-lr{learning_rate}"``.
        tags: Short words.
        resume: Which run goes on, as for :func:`milepost.start`; where the weights go on from is said to
            ``trainer.train(resume_from_checkpoint=...)``.
        group: Ties runs together.
        description: One or more sentences.
        config: Settings; instead of ``settings``.
        **settings: Fields of :class:`milepost.ExperimentConfig`, for example ``wandb_project`` and ``save_on_signal``.

    Attributes:
        run: The live run, or the last one; None before ``trainer.train()``, and where none could be started.

    Raises:
        InvalidInputError: A setting cannot be meant.
        InvalidCallError: Both ``config`` and ``settings`` are given.
    """

    def __init__(
        self,
        name: str = "trainer",
        tags: Iterable[str] = (),
        resume: str = "auto",
        *,
        group: str | None = None,
        description: str = "",
        config: ExperimentConfig | None = None,
        **settings: Any,
    ) -> None:
        if isinstance(tags, str):
            raise InvalidCallError(f"tags is the text {tags!r}", cure=f"give a list: [{tags!r}]")
        self.run: Run | DisabledRun | None = None
        self._config = one_config("MilepostCallback", config, settings)
        self._name, self._tags, self._resume = name, tuple(tags), resume
        self._group, self._description = group, description
        self._training = False
        self._evaluated: dict[str, Any] = {}
        self._folders = _Folders()

    # ---------------------------------------------------------------- the run

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Start the run, or go on with it where Trainer goes on."""
        again = self._training and self.run is not None and not self.run.ended  # with another batch size, for example
        if not again:
            self._start_run(args, objects)
        run = self.run
        self._training, self._evaluated = True, {}
        if run is None:
            return
        if again or run.attempt > 1:
            run.goes_on_after(state.global_step or -1)
            if state.is_world_process_zero:
                say(f"{run.id} goes on after step {state.global_step} (attempt {run.attempt})")
        if state.is_world_process_zero:
            self._folders.know(run.checkpoints)
            _set_torn_folders_aside(Path(args.output_dir), state.global_step)

    def _start_run(self, args: Any, objects: Mapping[str, Any]) -> None:
        if self.run is not None and not self.run.ended:
            self.run.end()
        self.run = None
        try:
            self.run = start(
                self._name,
                hyperparameters=hyperparameters_of(args, self._name),
                description=self._description,
                model_config=model_facts(objects.get("model")),
                dataset_info=data_facts(
                    {"train": objects.get("train_dataloader"), "eval": objects.get("eval_dataloader")}
                ),
                tags=self._tags,
                resume=self._resume,
                group=self._group,
                config=_with_best(self._config, args),
            )
        except (StorageError, GaveUpWaitingError) as error:
            say(f"this training is not tracked: {error.what}", cure=error.cure)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: Mapping[str, Any] | None = None,
        **objects: Any,
    ) -> None:
        """Log what Trainer logs, at its step, under the names that :func:`metric_names` gives."""
        if self.run is None or self.run.ended or not state.is_world_process_zero or not logs:
            return
        metrics = metric_names(logs)
        self._evaluated |= {name: value for name, value in metrics.items() if _is_quality(name)}
        self.run.log(metrics, state.global_step, epoch=state.epoch)

    def on_step_end(self, args: Any, state: Any, control: Any, **objects: Any) -> Any:
        """After a signal: save and stop, on all ranks after the same step."""
        run = self.run
        if run is not None and not run.ended:
            run.should_save(state.global_step)  # tells where this rank is; Trainer decides when to save
            if run.should_stop:
                control.should_log = control.should_save = control.should_training_stop = True
        return self._announce_save(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **objects: Any) -> Any:
        """What a signal asked for was done after the step: end now, and evaluate at the next attempt."""
        if self.run is not None and self.run.should_stop:
            control.should_evaluate = control.should_save = False
        return self._announce_save(args, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """End a run that a signal interrupted; any other one stays open for what is evaluated after the training."""
        self._training = False
        self._folders.settle(self._config.exit_timeout)
        if self.run is not None and self.run.should_stop and state.global_step < state.max_steps:
            self.run.end(status="preempted")

    # ---------------------------------------------------------------- its checkpoints

    def _announce_save(self, args: Any, state: Any, control: Any) -> Any:
        """Trainer is about to write, perhaps over a folder of an earlier attempt: from now on that is not whole."""
        if control.should_save and state.is_world_process_zero:
            self._folders.settle(self._config.exit_timeout)  # before Trainer looks which is the newest, and removes one
            with suppress(OSError):
                (_folder_of(args, state) / STATE_FILE).unlink()
        return control

    def on_save(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """List the folder that Trainer wrote; it is read back, given digests and brought to the disk by a thread."""
        run, folder = self.run, _folder_of(args, state)
        if not state.is_world_process_zero or not folder.is_dir():
            return
        info = CheckpointInfo(
            filename=folder.name,
            path=folder.absolute(),
            experiment_id=run.id if run is not None else "",
            step=state.global_step,
            epoch=state.epoch,
            metrics=dict(self._evaluated),
            is_best=_is_best(state, folder),
            timestamp=folder.stat().st_mtime,
            size=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            format="huggingface",
            contents=("model",) if args.save_only_model else ("model", "optimizer", "scheduler", "rng"),
        )
        self._folders.written(info, run)


def _with_best(config: ExperimentConfig, args: Any) -> ExperimentConfig:
    """The settings, with Trainer's idea of what is best where the user said nothing else."""
    metric = args.metric_for_best_model
    if config.best_metric is not None or metric is None:
        return config
    name = next(iter(metric_names({metric if metric.startswith("eval_") else f"eval_{metric}": 0})))
    return replace(config, best_metric=name, best_mode="max" if args.greater_is_better else "min")


def _is_quality(name: str) -> bool:
    """Whether a metric tells how good the model is, and not how fast it was evaluated."""
    return name.startswith("eval/") and not name.endswith(("runtime", "per_second", "compilation_time"))


def _folder_of(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _is_best(state: Any, folder: Path) -> bool:
    best = state.best_model_checkpoint
    return best is not None and Path(best).name == folder.name


def _set_torn_folders_aside(directory: Path, step: int) -> None:
    """Give folders that a kill left torn another name, so that Trainer does not count them as checkpoints to keep."""
    for folder in sorted(directory.glob("checkpoint-*")):
        if not folder.is_dir() or (step_of(folder) or 0) <= step:
            continue
        try:
            inspect_folder(folder)
        except (CorruptDataError, NotFoundError):
            with suppress(OSError):
                folder.rename(folder.with_name(f"torn-{folder.name}"))
        except StorageError as error:
            say(f"{folder} cannot be looked at: {error.what}", cure=error.cure)


class _Folders:
    """Lists what Trainer wrote and removed, and looks at it in a thread of its own, one folder at a time."""

    def __init__(self) -> None:
        self._listed: dict[str, CheckpointInfo] = {}
        self._reader: ThreadPoolExecutor | None = None
        self._open: set[Future[None]] = set()

    def know(self, listed: Iterable[CheckpointInfo]) -> None:
        """What earlier attempts wrote and is still there."""
        self._listed = {info.filename: info for info in listed if info.format == "huggingface"}

    def written(self, info: CheckpointInfo, run: Run | DisabledRun | None) -> None:
        """A folder is complete."""
        self._reader = self._reader or ThreadPoolExecutor(1, "milepost-huggingface")
        if run is not None and not run.ended:
            for name, listed in list(self._listed.items()):
                if not listed.path.is_dir():
                    run.record_checkpoint("removed", self._listed.pop(name), reason="by Trainer (save_total_limit)")
            run.record_checkpoint("committed", info)
            self._listed[info.filename] = info
        self._open = {one for one in self._open if not one.done()}
        self._open.add(self._reader.submit(_read_back, info, run))

    def settle(self, timeout: float) -> None:
        """Wait until what was written is read back; a bounded wait."""
        wait(self._open, timeout)


def _read_back(info: CheckpointInfo, run: Run | DisabledRun | None) -> None:
    """Find a folder whole and give it digests; what is wrong with it is listed."""
    try:
        inspect_folder(info.path)
        keep_digests(info.path)
    except (CorruptDataError, NotFoundError, StorageError) as error:
        if not info.path.is_dir():
            return  # Trainer removed it
        say(f"{info.path} was written, and is not whole: {error.what}", cure="check the disk")
        _record(run, "failed", info, error.what)
    else:
        _record(run, "verified", replace(info, verified=True), "")


def _record(run: Run | DisabledRun | None, action: Any, info: CheckpointInfo, reason: str) -> None:
    if run is not None and not run.ended:
        with suppress(MilepostError):  # the run ends at this moment
            run.record_checkpoint(action, info, reason=reason)
