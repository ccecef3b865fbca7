"""With what does a continued run go on, and how do all ranks go on with the same?

Rank 0 takes the newest checkpoint that is whole; damage is named and the one before is tried. The other ranks are told
which one it was, without a collective.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from milepost.checkpoint.retention import newest_first
from milepost.core.errors import CorruptDataError
from milepost.core.events import Rewound
from milepost.core.records import CheckpointInfo, ResumePoint
from milepost.core.saying import say
from milepost.environment.ranks import Ranks, meet

if TYPE_CHECKING:
    from milepost.checkpoint.checkpointer import ModelCheckpointer

__all__ = ["Resumption"]

_PATIENCE = 600.0


@dataclass(slots=True, kw_only=True)
class Resumption:
    """What a start decided, and what is left to do when the user's objects are known.

    Attributes:
        experiment_id: The run.
        fresh: Whether this start began a new run.
        attempt: Counts the stays of the run.
        ranks: This process among those of the training.
        last_step: Last step that the attempt before had logged, None if there was none.
        tags: Tags of the run so far.
        signals: Signals that the run wants to hear of.
        saved_for_stop: Whether ``should_save`` was already true for the signal that asks to end.
    """

    experiment_id: str
    fresh: bool
    attempt: int
    ranks: Ranks
    last_step: int | None = None
    tags: list[str] = field(default_factory=list)
    signals: tuple[str, ...] = ()
    saved_for_stop: bool = False

    @property
    def rank(self) -> int:
        """Rank of this process."""
        return self.ranks.rank

    def restore(
        self,
        checkpointer: ModelCheckpointer,
        *,
        model: Any,
        optimizer: Any,
        scheduler: Any,
        scaler: Any,
        loader: Any,
        extra: Mapping[str, Any] | None,
    ) -> ResumePoint:
        """Restore the newest sound checkpoint into the objects.

        Raises:
            InvalidInputError: Something cannot be saved, or does not fit the checkpoint.
            CorruptDataError: There are checkpoints and none is sound.
        """
        from milepost.checkpoint.arguments import TrainingObjects
        from milepost.checkpoint.position import position_note, track
        from milepost.checkpoint.restore import resume_objects
        from milepost.checkpoint.snapshot import walk
        from milepost.checkpoint.state import notes_at_resume, state_of

        others = {"scaler": scaler, "loader": loader, "extra": extra}
        objects = TrainingObjects(model=model, optimizer=optimizer, scheduler=scheduler, **others)
        walk(state_of(objects))
        track(loader)
        checkpointer.watch(objects)
        note = position_note(loader)
        notes = [note] if note is not None else []
        candidates, damaged = ([], None) if self.fresh else self._candidates(checkpointer)
        for info in candidates:
            try:
                report = resume_objects(
                    info.path, model, optimizer, scheduler, rank=self.rank, copies=checkpointer.copies, **others
                )
            except CorruptDataError as error:
                damaged = error
                say(f"checkpoint {info.filename} is left out: {error.what}")
                continue
            self._agree(info)
            return ResumePoint(
                step=info.step + 1,
                epoch=int(info.epoch or 0),
                fresh=False,
                checkpoint=info,
                lost_steps=max(0, (self.last_step if self.last_step is not None else info.step) - info.step),
                notes=tuple(dict.fromkeys([*notes, *report.notes, *notes_at_resume(objects)])),
            )
        if damaged is not None:
            raise damaged
        self._agree(None)
        lost = 0 if self.fresh or self.last_step is None else self.last_step + 1
        return ResumePoint(step=0, epoch=0, fresh=True, lost_steps=lost, notes=tuple(notes))

    def _candidates(self, checkpointer: ModelCheckpointer) -> tuple[list[CheckpointInfo], CorruptDataError | None]:
        """Newest first, and what is wrong with one that cannot be listed; on other ranks only what rank 0 went on with.

        Newest by time: after a resume from an older checkpoint a lower step can be the newer one.
        """
        from milepost.checkpoint.catalog import scan
        from milepost.checkpoint.selection import of_experiment

        found = of_experiment(scan(checkpointer.folder), self.experiment_id)
        infos = newest_first(found.infos)
        if self.rank:
            chosen = meet(self.ranks, self._topic(), None, _PATIENCE)
            return [info for info in infos if info.filename == chosen], None
        ours = [file for file in found.damaged if file.info is not None]
        for file in ours:
            say(f"checkpoint {file.path.name} is left out: {file.error.what}")
        damaged = ours[-1].error if ours else None
        return infos, damaged if isinstance(damaged, CorruptDataError) else None

    def _agree(self, info: CheckpointInfo | None) -> None:
        if self.rank == 0 and self.ranks.world_size > 1:
            meet(self.ranks, self._topic(), info.filename if info is not None else "", _PATIENCE)

    def _topic(self) -> str:
        return f"resume-{self.experiment_id}-{self.attempt}"

    def rewound(self, info: CheckpointInfo | None) -> Rewound:
        """The record that hides what the attempt before did after the checkpoint: all of it, if there was none."""
        if info is None:
            return Rewound(step=-1)
        return Rewound(step=info.step, checkpoint=info.filename)

    def announce(self, run_id: str, attempt: int, point: ResumePoint) -> None:
        """Say in one line where the run goes on."""
        if self.rank != 0:
            return
        for note in point.notes:
            say(note)
        lost = point.lost_steps
        again = f", {lost} step{'s are' if lost > 1 else ' is'} done again" if lost else ""
        if self.fresh:
            say(f"{run_id}: fresh, step 0")
        else:
            say(f"{run_id} goes on at step {point.step} (attempt {attempt}{again})")
