"""What does a run know of a training whose framework keeps the checkpoints itself?

Trainer and Lightning write and read checkpoints of their own. The run is told where the framework goes on, so that the
history is that of the weights, and which checkpoints it wrote, so that they are listed beside milepost's own.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from milepost.core.events import CheckpointChanged, Described, Event, Rewound
from milepost.core.plain import plain
from milepost.core.records import CheckpointInfo
from milepost.core.saying import say
from milepost.environment.secrets import redact_tree
from milepost.runs.layout import RunLayout
from milepost.runs.listed import listed_checkpoints

if TYPE_CHECKING:
    from milepost.checkpoint.checkpointer import ModelCheckpointer

__all__ = ["KnowsForeignCheckpoints"]

_LARGEST = 40 * 1024


class KnowsForeignCheckpoints(ABC):
    """The part of a run that a framework's callback calls."""

    checkpointer: ModelCheckpointer
    _layout: RunLayout
    _foreign: dict[str, CheckpointInfo] | None = None

    @abstractmethod
    def _append(self, event: Event, *, step: int | None = None) -> None:
        """Write one event into the log."""

    def goes_on_after(self, step: int) -> None:
        """The framework restored its own checkpoint: what was logged after ``step`` is hidden, to be logged once more.

        Args:
            step: The last step that is done, as the metrics count it; -1 if nothing is.

        Raises:
            InvalidCallError: The run has ended.
        """
        self._append(Rewound(step=step))
        if step >= 0:
            self.checkpointer.resumed_at(step)

    def describe_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Keep hyperparameters that the framework tells only when the run has begun; they replace those before.

        Args:
            values: What has no plain form is kept as its text, secrets are redacted.

        Raises:
            InvalidCallError: The run has ended.
        """
        kept = redact_tree(plain(values))
        if len(json.dumps(kept)) > _LARGEST:
            say("the hyperparameters are not kept: as text they are too large", cure="keep them in a file")
        else:
            self._append(Described(fields={"hyperparameters": kept}))

    def record_checkpoint(
        self, action: Literal["committed", "verified", "removed", "failed"], info: CheckpointInfo, *, reason: str = ""
    ) -> None:
        """List a file or folder that the framework wrote, or say what became of it.

        Args:
            action: ``"committed"``: complete. ``"verified"``: read back. ``"removed"`` by the framework. ``"failed"``.
            info: Its description; ``path`` may lie anywhere.
            reason: For a removal or a failure.

        Raises:
            InvalidCallError: The run has ended.
        """
        fields = info.to_fields() if action == "committed" else {}
        change = CheckpointChanged(step=info.step, action=action, filename=info.filename, reason=reason, info=fields)
        self._append(change, step=info.step)
        known = self._known_foreign()
        if action == "removed":
            known.pop(info.filename, None)
        elif action in {"committed", "verified"}:
            known[info.filename] = info

    @property
    def checkpoints(self) -> list[CheckpointInfo]:
        """Committed checkpoints of this run, by step: milepost's own and those that a framework wrote."""
        own = self.checkpointer.list_checkpoints(self._layout.experiment_id)
        there = [info for info in self._known_foreign().values() if info.path.exists()]
        return sorted([*own, *there], key=lambda info: (info.step, info.timestamp))

    @property
    def best(self) -> CheckpointInfo | None:
        """The best checkpoint, or None if nobody said which is best."""
        from milepost.checkpoint.retention import best_of

        config = self.checkpointer.config
        return best_of(self.checkpoints, config.best_metric, config.best_mode)

    def __str__(self) -> str:
        """Id, state and folder, then the newest checkpoint and the best one, a line each."""
        listed, best = self.checkpoints, self.best
        lines = [repr(self)]
        if listed:
            lines.append(f"  {len(listed)} checkpoints, the newest of step {listed[-1].step}: {listed[-1].path}")
        if best is not None:
            metrics = ", ".join(f"{name} {value:g}" for name, value in best.metrics.items() if isinstance(value, float))
            lines.append(f"  best: step {best.step}{f' ({metrics})' if metrics else ''}: {best.path}")
        return "\n".join(lines)

    def _known_foreign(self) -> dict[str, CheckpointInfo]:
        """Those of this attempt and, by the log, of the attempts before it."""
        if self._foreign is None:
            from milepost.runs.telling import read_history

            recorded = listed_checkpoints(self._layout, read_history(self._layout, live=True).checkpoints)
            folder = self._layout.checkpoints
            self._foreign = {info.filename: info for info in recorded if info.path.parent != folder}
        return self._foreign
