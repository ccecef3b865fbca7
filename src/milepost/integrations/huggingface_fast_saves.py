"""How does Trainer save folders that are never torn, with everything of the training's state in one checked file?

Trainer writes ``checkpoint-<step>`` in place. Here the same files are written below ``.milepost-partial`` beside the
others; once every rank has written, the process that owns the folder brings it to the disk and renames it, and the
others wait for that. Optimizer, scheduler, scaler and random numbers go into ``trainer.milepost`` instead of Trainer's
four files: the tensors are written straight from where they lie, with a checksum for every block.

The model stays Hugging Face's, so ``from_pretrained`` and ``load_best_model_at_end`` find what they look for. The
position in the data is Trainer's: it follows from the step. What the batch ahead of it was drawn with is kept
(:mod:`.huggingface_draws`).

**Invariants**: a folder called ``checkpoint-<step>`` was complete and synced before it got its name. Only the process
that Trainer lets save renames, between two meetings of all ranks. Older folders go only after that.

**On crash**: a partial folder stays behind and is removed by the next save. If the folder was written before, for the
same step, the old one has no name between two renames; the one that the training went on from is still there.
"""
# ruff: noqa: SLF001 - the methods that save are Trainer's private ones; _require_hooks says which are missing

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from milepost.checkpoint.arguments import TrainingObjects
from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.loading import open_state
from milepost.checkpoint.restore import restore_stored, restore_training_position
from milepost.checkpoint.snapshot import outline
from milepost.checkpoint.state import capture_rank, state_of
from milepost.checkpoint.streaming import commit_from_live
from milepost.core.errors import InvalidInputError, MissingDependencyError, StorageError
from milepost.core.saying import say
from milepost.integrations.huggingface_digests import STATE_FILE
from milepost.integrations.huggingface_draws import Draws
from milepost.integrations.huggingface_folders import FAST_FILE, FAST_RANK_FILE
from milepost.io.durable import fsync_directory, storage_error

__all__ = ["MilepostTrainerMixin"]

_PARTIAL = ".milepost-partial"
_AHEAD = "rng_before_batch_ahead"
_HOOKS = (
    *("_save_checkpoint", "_get_output_dir", "_save_optimizer_and_scheduler", "_save_rng_state"),
    *("_load_optimizer_and_scheduler", "_load_rng_state", "_push_from_checkpoint"),
)


class MilepostTrainerMixin:
    """``class MyTrainer(MilepostTrainerMixin, Trainer)``: saves that are whole or not there.

    A folder that it saved is resumed by it alone: a plain Trainer would load the model and, without a word, begin with
    a fresh optimizer. Folders of a plain Trainer are resumed as ever.

    Raises:
        InvalidInputError: The training shards its optimizer (FSDP, DeepSpeed, SageMaker, XLA), whose state each has its
            own way to be saved.
        MissingDependencyError: This version of transformers saves in another way.
    """

    _partial: Path | None = None
    _draws: Draws | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        _require_hooks(type(self))
        super().__init__(*arguments, **named)
        _refuse_sharded(self)

    # ---------------------------------------------------------------- batches

    def get_train_dataloader(self) -> Any:
        """Trainer's own, which remembers the random numbers of the batch that it is ahead."""
        trainer: Any = self
        inherited: Any = super()
        collate = trainer.data_collator
        self._draws = trainer.data_collator = Draws(collate)
        try:
            return inherited.get_train_dataloader()
        finally:
            trainer.data_collator = collate

    def get_batch_samples(self, *arguments: Any, **named: Any) -> Any:
        """As Trainer's; counts what the training has got."""
        inherited: Any = super()
        taken = inherited.get_batch_samples(*arguments, **named)
        if self._draws is not None:
            self._draws.used(len(taken[0]))
        return taken

    # ---------------------------------------------------------------- saving

    def _save_checkpoint(self, model: Any, trial: Any, *more: Any, **named: Any) -> None:
        trainer: Any = self
        name = f"checkpoint-{trainer.state.global_step}"
        final = Path(trainer._get_output_dir(trial=trial))
        with self._written_apart(final, name):
            super()._save_checkpoint(model, trial, *more, **named)  # type: ignore[misc]  # Trainer's
            partial = final / _PARTIAL / name
        if trainer.state.best_model_checkpoint == str(partial):
            trainer.state.best_model_checkpoint = str(final / name)
        _meet(trainer)
        if trainer.args.should_save:
            trainer.state.save_to_json(str(partial / STATE_FILE))  # it now knows the final name
            _publish(partial, final / name)
            if trainer.args.push_to_hub:
                trainer._push_from_checkpoint(str(final / name))
            _rotate(trainer, final)
        _meet(trainer)

    @contextmanager
    def _written_apart(self, final: Path, name: str) -> Iterator[None]:
        """While Trainer saves, it believes that the output folder is another one."""
        trainer: Any = self
        if trainer.args.should_save:
            shutil.rmtree(final / _PARTIAL, ignore_errors=True)
        _meet(trainer)
        self._partial = final / _PARTIAL
        try:
            (self._partial / name).mkdir(parents=True, exist_ok=True)
            yield
        finally:
            self._partial = None

    def _get_output_dir(self, trial: Any) -> str:
        inherited: Any = super()
        return str(self._partial) if self._partial is not None else str(inherited._get_output_dir(trial))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._partial is None:  # else once more when it has its name
            inherited: Any = super()
            inherited._push_from_checkpoint(checkpoint_folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        trainer: Any = self
        if trainer.args.should_save:
            state = state_of(_objects(trainer))
            del state["model"]
            _write(Path(output_dir) / FAST_FILE, state | self._batch_ahead(), trainer.state)

    def _save_scaler(self, output_dir: str) -> None:
        """Stands in the file of the optimizer."""

    def _save_rng_state(self, output_dir: str) -> None:
        trainer: Any = self
        if trainer.args.process_index > 0:
            path = Path(output_dir) / FAST_RANK_FILE.format(trainer.args.process_index)
            _write(path, capture_rank() | self._batch_ahead(), trainer.state)

    def _batch_ahead(self) -> dict[str, Any]:
        ahead = self._draws.ahead if self._draws is not None else None
        return {_AHEAD: ahead} if ahead is not None else {}

    # ---------------------------------------------------------------- loading

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        inherited: Any = super()
        if checkpoint is None or not (Path(checkpoint) / FAST_FILE).is_file():
            inherited._load_optimizer_and_scheduler(checkpoint)
            return
        with open_state(Path(checkpoint) / FAST_FILE) as stored:
            # by the order of the parameters, as Trainer does it: the file holds no model to compare with
            for note in restore_stored(stored, replace(_objects(self), model=None)).notes:
                say(note)
        self._make_again(checkpoint)

    def _make_again(self, checkpoint: str) -> None:
        """Have the batch that was ahead made as it was, unless a stream makes all batches before it once more."""
        from torch.utils.data import IterableDataset

        trainer: Any = self
        position = _position(checkpoint, trainer.args.process_index)
        skips = not isinstance(trainer.train_dataset, IterableDataset) and not trainer.args.ignore_data_skip
        if self._draws is not None and skips and _AHEAD in position:
            self._draws.make_again(position[_AHEAD], position["rng"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        inherited: Any = super()
        if checkpoint is None or not (Path(checkpoint) / FAST_FILE).is_file():
            inherited._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        trainer: Any = self
        inherited: Any = super()
        if checkpoint is None or not (Path(checkpoint) / FAST_FILE).is_file():
            inherited._load_rng_state(checkpoint)
            return
        if self._draws is not None and self._draws.is_exact:
            return  # they were set between two batches, and the second one has drawn since
        position = _position(checkpoint, trainer.args.process_index)
        if not position:
            say(
                f"random numbers of rank {trainer.args.process_index} were not saved",
                cure="go on with as many processes as before",
            )
            return
        for note in restore_training_position(position):
            say(note)


def _position(checkpoint: str, rank: int) -> dict[str, Any]:
    """Random numbers of a rank, and those before the batch that it was ahead; empty if they were not saved."""
    path = Path(checkpoint) / (FAST_RANK_FILE.format(rank) if rank else FAST_FILE)
    if not path.is_file():
        return {}
    with open_state(path) as stored:
        return dict(stored.read({part: stored.state[part] for part in ("rng", _AHEAD) if part in stored.state}))


def _require_hooks(trainer_class: type) -> None:
    missing = [name for name in _HOOKS if not any(name in vars(cls) for cls in trainer_class.__mro__[2:])]
    if missing:
        transformers = import_module("transformers")
        raise MissingDependencyError(
            f"transformers {transformers.__version__} saves in another way: its Trainer has no {', '.join(missing)}"
            if any(cls.__name__ == "Trainer" for cls in trainer_class.__mro__)
            else f"{trainer_class.__name__} is no Trainer: {', '.join(missing)} is missing",
            cure="write class MyTrainer(MilepostTrainerMixin, Trainer), with a version of transformers from 4.46 on",
        )


def _refuse_sharded(trainer: Any) -> None:
    for name in ("is_fsdp_enabled", "is_deepspeed_enabled", "is_fsdp_xla_enabled"):
        if getattr(trainer, name, False):
            raise InvalidInputError(
                f"MilepostTrainerMixin cannot save a sharded optimizer ({name})", cure="use a plain Trainer for it"
            )


def _objects(trainer: Any) -> TrainingObjects:
    return TrainingObjects(
        model=trainer.accelerator.unwrap_model(trainer.model),
        optimizer=trainer.optimizer,
        scheduler=trainer.lr_scheduler,
        scaler=getattr(trainer.accelerator, "scaler", None),
    )


def _write(path: Path, state: dict[str, Any], at: Any) -> None:
    """Write a state out of live memory; durable on return."""
    content = outline(state)
    job = SaveJob(
        path=str(path),
        compression=False,
        experiment_id="",
        step=at.global_step,
        epoch=at.epoch,
        timestamp=time.time(),
        tree=content.tree,
        tensors=content.entries,
        arena_bytes=content.nbytes,
        contents=list(state),
    )
    commit_from_live(job, content)


def _publish(partial: Path, final: Path) -> None:
    """Bring a folder that is complete to the disk, then give it its name.

    Raises:
        StorageError: It keeps its temporary name.
    """
    try:
        for folder, _, names in os.walk(partial):
            for name in names:
                _sync(Path(folder) / name)
            fsync_directory(folder)
        if final.exists():  # of an earlier attempt: it was not what this one went on from
            final.rename(partial.with_name(f"old-{final.name}"))
        partial.rename(final)
    except OSError as error:
        raise error if isinstance(error, StorageError) else storage_error(error, "writing", final) from error
    fsync_directory(final.parent)
    shutil.rmtree(partial.parent, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rotate(trainer: Any, directory: Path) -> None:
    """Remove what ``save_total_limit`` does not keep, in the way of this version."""
    if hasattr(trainer, "_rotate_checkpoints"):
        trainer._rotate_checkpoints(use_mtime=False, output_dir=str(directory))
        return
    import_module("transformers.trainer_utils").rotate_checkpoints(
        output_dir=str(directory),
        save_total_limit=trainer.args.save_total_limit,
        best_model_checkpoint=trainer.state.best_model_checkpoint,
        use_mtime=True,
    )


def _meet(trainer: Any) -> None:
    """Wait until all ranks are here."""
    if trainer.args.world_size > 1:
        trainer.accelerator.wait_for_everyone()
