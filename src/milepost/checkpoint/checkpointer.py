"""How does a training save, find and load its checkpoints?

``ModelCheckpointer`` works alone or as a part of a run; then the system gives it the run's id, the time stamp of the
attempt (which all ranks share, so they name the same file) and a writer that lives in the companion process.

Two kinds of trouble are kept apart. Using it wrongly raises at once: an argument of the wrong type, a state that cannot
be saved. The world going wrong (a full disk, a dead writer) never raises in the training loop: it is logged, and raised
by whoever waits for that very save.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from milepost.checkpoint.arguments import TrainingObjects, checked_epoch, checked_metrics, checked_step
from milepost.checkpoint.cadence import Cadence
from milepost.checkpoint.handover import Handover
from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.retention import RetentionRule, best_of
from milepost.checkpoint.saved_path import SavedPath
from milepost.checkpoint.side_file import side_file
from milepost.checkpoint.writer import CheckpointWriter, InlineWriter, PendingSave
from milepost.core.config import ExperimentConfig, is_disabled
from milepost.core.errors import InvalidCallError, InvalidInputError, StorageError
from milepost.core.events import Noticed
from milepost.core.records import CheckpointInfo, LoadReport
from milepost.core.saying import say
from milepost.io.durable import storage_error

if TYPE_CHECKING:
    from torch import nn

    from milepost.checkpoint.catalog import Scan
    from milepost.checkpoint.selection import Selector

__all__ = ["ModelCheckpointer"]

_EXTENSIONS = {"milepost": ".milepost", "pt": ".pt", "pt.gz": ".pt.gz", "safetensors": ".safetensors"}


class ModelCheckpointer:
    """Saves, lists and loads the checkpoints of one experiment.

    Args:
        config: Folder, cadence, retention, format, compression.
        experiment_id: The run the checkpoints belong to; without one, those of this folder that have none.
        stamp: Goes into the file names; the time the attempt started. None: now.
        writer: Who writes; None: a thread of this process.
        rank: Which rank of a distributed training this is; ranks above 0 only add what they have for themselves.
        world_size: How many ranks there are.
        attempt: Which attempt of the run this is, from 1.
        notice: Told what the user should know once; None: it is printed.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        experiment_id: str | None = None,
        stamp: str | None = None,
        writer: CheckpointWriter | None = None,
        rank: int = 0,
        world_size: int = 1,
        attempt: int = 1,
        notice: Callable[[Noticed], None] | None = None,
    ) -> None:
        self.config = config
        self.folder = Path(config.checkpoint_dir)
        self.experiment_id = experiment_id or ""
        self._stamp = stamp or datetime.now().astimezone().strftime("%Y%m%d-%H%M%S-%f")
        self._writer = writer if writer is not None else self._own_writer()
        self._world_size, self._attempt = world_size, attempt
        self._notice = notice
        self._noticed: set[str] = set()
        self._handover = Handover(self._writer, rank=rank, say=self._say, overlap=config.snapshot == "overlap")
        self._lock = threading.RLock()
        self._counts: dict[int, int] = {}
        self._cadence = Cadence(
            every_steps=config.save_frequency,
            every_minutes=config.save_every_minutes,
            max_overhead=config.max_overhead,
            world_size=world_size,
        )
        self._last_step: int | None = None
        self._last: PendingSave | None = None

    @property
    def rule(self) -> RetentionRule:
        """What is kept after a save, by the configuration."""
        return RetentionRule.of(vars(self.config))

    def _own_writer(self) -> InlineWriter:
        """Who writes where there is no run; what died in a spool before is finished first."""
        spool = self.folder if self.config.staging == "spool" else None
        if spool is not None:
            from milepost.checkpoint.spool import recover

            recover(spool, experiment_id=self.experiment_id)
        return InlineWriter(self.rule, backup=next(iter(self.copies), None), spool=spool)

    def save_checkpoint(
        self,
        model: nn.Module,
        optimizer: Any = None,
        scheduler: Any = None,
        epoch: float | None = None,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        is_best: bool = False,
        *,
        scaler: Any = None,
        loader: Any = None,
        extra: Mapping[str, Any] | None = None,
        pin: bool = False,
        durable: bool = False,
        busy: Literal["wait", "skip"] = "wait",
        final: bool = False,
    ) -> SavedPath | None:
        """Save the state of a training; returns as soon as it is copied.

        Args:
            model: Wrapped (DDP, torch.compile) or not.
            optimizer: Its state is kept by the names of the model's parameters.
            scheduler: Anything with ``state_dict``.
            epoch: The epoch of ``step``.
            step: The last step that was done. None: one more than at the last save, 0 first.
            metrics: Numbers or short texts kept with the checkpoint.
            is_best: Mark it as the best so far.
            scaler: A ``torch.amp.GradScaler``.
            loader: The data loader, for its position inside the epoch.
            extra: More named objects with ``state_dict``, modules, generators, plain values.
            pin: Never remove it.
            durable: Return only when the file is committed.
            busy: While the save before is still being written: wait for it, or skip this one.
            final: It is the last one before an end: with ``compression="delta"`` it then loads alone all the same.

        Returns:
            The path of the file. Opening it waits for the commit and raises this save's error; printing it does not.
            None if it was skipped.

        Raises:
            InvalidCallError: An argument is of the wrong type.
            InvalidInputError: Something cannot be saved; the message names its place.
            StorageError: An earlier save failed and ``on_save_error`` is ``"raise"``, or this one did and ``durable``.
        """
        started = time.perf_counter()
        objects = TrainingObjects(model, optimizer, scheduler, scaler, loader, extra)
        objects.check()
        _check_busy(busy)
        job = self._job(step, epoch, metrics, is_best=bool(is_best), pinned=bool(pin), final=final)
        if is_disabled():
            return SavedPath(job.path)
        with self._lock:
            self._raise_earlier()
            if busy == "skip" and not self._handover.is_free:
                return None
            pending = self._save(job, started, objects)
        if durable:
            pending.wait()
        return SavedPath.of(pending, job.path)

    def _save(self, job: SaveJob, started: float, objects: TrainingObjects) -> PendingSave:
        """Stage and hand over; what the world does wrong ends up in the pending save."""
        self._note(objects)
        pending = PendingSave(Path(job.path), job.step)
        try:
            self._make_folder()
            self._handover.hand_over(job, objects, pending, started)
        except StorageError as error:
            self._writer.refuse(job, pending, error)
        self._last, self._last_step = pending, job.step
        self._cadence.saved(job.step, time.perf_counter() - started)
        self._counts[job.step] = self._counts.get(job.step, 0) + 1
        return pending

    def watch(self, objects: TrainingObjects) -> None:
        """See from now on which gradients the optimizers use up; those that they did not belong to the state."""
        self._handover.watch(objects)

    def prepare(self, objects: TrainingObjects) -> None:
        """Make the memory of the copy ahead of the first save, from a thread that has time."""
        self._handover.prepare(objects)

    def _job(self, given: Any, epoch: Any, metrics: Any, *, is_best: bool, pinned: bool, final: bool) -> SaveJob:
        _require_unicode(self.folder)
        config = self.config
        step = self._next_step if given is None else checked_step(given)
        again = self._counts.get(step, 0)
        name = f"checkpoint_{self._stamp}_{step}{f'-{again + 1}' if again else ''}{'_best' if is_best else ''}"
        path = self.folder / f"{name}{_EXTENSIONS[config.checkpoint_format]}"
        return SaveJob(
            path=str(path),
            step=step,
            epoch=checked_epoch(epoch),
            metrics=checked_metrics(metrics),
            format=config.checkpoint_format,
            compression=config.compression is not False,
            delta=config.compression == "delta",
            standalone=is_best or pinned or final,
            include=config.include,
            lossy="bf16-moments" if config.compression == "bf16-moments" else "",
            experiment_id=self.experiment_id,
            is_best=is_best,
            pinned=pinned,
            tree="",
            tensors=[],
            arena_bytes=0,
            side_files=[str(side_file(path, rank)) for rank in range(1, self._world_size)],
            attempt=self._attempt,
        )

    @property
    def _next_step(self) -> int:
        return 0 if self._last_step is None else self._last_step + 1

    def _make_folder(self) -> None:
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise storage_error(error, "making the folder", self.folder) from error

    def _raise_earlier(self) -> None:
        failed = self._last
        if self.config.on_save_error == "raise" and failed is not None and failed.error is not None:
            self._last = None
            raise failed.error

    def _note(self, objects: TrainingObjects) -> None:
        from milepost.checkpoint.state import notes_at_save

        for topic, note in notes_at_save(objects):
            what, _, cure = note.partition(": ")
            self._say(topic, what, cure)

    def _say(self, topic: str, message: str, cure: str = "") -> None:
        if topic in self._noticed:
            return
        self._noticed.add(topic)
        if self._notice is not None:
            self._notice(Noticed(source="checkpoint", topic=topic, message=message, cure=cure))
        else:
            say(message, cure=cure)

    def load_checkpoint(
        self,
        checkpoint_path: Selector,
        model: nn.Module | None = None,
        optimizer: Any = None,
        scheduler: Any = None,
        device: Any = None,
        *,
        scaler: Any = None,
        extra: Mapping[str, Any] | None = None,
        strict: bool = True,
        only: str | Collection[str] | None = None,
        fallback: bool = False,
    ) -> LoadReport:
        """Put a checkpoint into the objects given, bit for bit, and change nothing else.

        Args:
            checkpoint_path: A path, a listed checkpoint, ``"best"``, ``"latest"``, or a step.
            model: Its tensors are written in place.
            optimizer: Matched by the names of the model's parameters.
            scheduler: Gets its state by ``load_state_dict``.
            device: Where tensors are put that have no place yet; the model stays where it is. A device that is not
                here is noted, never an error.
            scaler: A ``torch.amp.GradScaler``.
            extra: Named objects, as at the save.
            strict: Refuse missing and unexpected names; else take what fits.
            only: Pattern or patterns of names, ``"model.encoder.*"``; the rest stays as it is.
            fallback: If it is damaged, take the newest sound one instead, and say so in the notes.

        Raises:
            NotFoundError: There is no such checkpoint.
            CorruptDataError: It is damaged; the message names file, tensor and offset, and the newest sound one. If
                the damage was found in the middle, the objects hold a part of it, and the message says so.
            InvalidInputError: It does not fit; nothing was changed.
        """
        from milepost.checkpoint.recovery import load_into
        from milepost.checkpoint.selection import select

        objects = TrainingObjects(model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, extra=extra)
        objects.check(needs_model=False)
        self.settle_copies()
        self._settle()
        found = self._found()
        path = select(checkpoint_path, found, self.rule, self.folder)
        patterns = (only,) if isinstance(only, str) else None if only is None else tuple(only)
        return load_into(
            path, objects, found, device=device, strict=strict, only=patterns, fallback=fallback, copies=self.copies
        )

    @property
    def copies(self) -> tuple[Path, ...]:
        """Folders where a second copy of a checkpoint may lie."""
        return (Path(self.config.backup_dir),) if self.config.backup_dir is not None else ()

    def list_checkpoints(self, experiment_id: str | None = None) -> list[CheckpointInfo]:
        """The committed checkpoints by step: of ``experiment_id``, else of this experiment, else of the folder."""
        self._settle()
        return list(self._found(experiment_id).infos)

    def get_best_checkpoint(self, experiment_id: str | None = None) -> CheckpointInfo | None:
        """The last one saved with ``is_best=True``, else the best by ``best_metric``, else None."""
        return best_of(self.list_checkpoints(experiment_id), self.config.best_metric, self.config.best_mode)

    def should_save(self, step: int) -> bool:
        """Whether a save is due: ``save_frequency`` steps after the last one or the resume, once after a signal.

        Never at step 0, where nothing has been learnt yet.
        """
        return self._cadence.due(step)

    def resumed_at(self, step: int) -> None:
        """Count the next saves from ``step``, the last step that the restored checkpoint had done."""
        self._last_step = step
        self._cadence.resumed_at(step)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the last save is committed and everything after it is done.

        Raises:
            MilepostError: The last save failed; this is its error.
            GaveUpWaitingError: It took longer than ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._last is not None:
            self._last.wait(timeout)
        self._writer.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def settle_copies(self) -> None:
        """Wait until what :meth:`save_checkpoint` returned ahead of is copied and handed over; a bounded wait."""
        with suppress(StorageError):  # a copy that does not end is discarded
            self._handover.settle()

    def _settle(self) -> None:
        """Let a save on its way arrive, so that a list made after a save contains it."""
        if self._last is not None:
            self._last.settle(self.config.exit_timeout)

    def _found(self, experiment_id: str | None = None) -> Scan:
        from milepost.checkpoint.catalog import scan
        from milepost.checkpoint.selection import of_experiment

        return of_experiment(scan(self.folder), self.experiment_id if experiment_id is None else experiment_id)


def _check_busy(busy: object) -> None:
    if busy not in {"wait", "skip"}:
        raise InvalidCallError(f"busy is {busy!r}", cure='give "wait" or "skip"')


def _require_unicode(folder: Path) -> None:
    """The path goes to another process and into records as UTF-8."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise InvalidInputError(
            f"checkpoint_dir is {str(folder)!a}, which is no valid Unicode", cure="choose a folder with a UTF-8 name"
        ) from None
