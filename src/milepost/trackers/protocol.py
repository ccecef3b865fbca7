"""What must a guest be able to do to follow a run?

A *guest* is another tracking tool that gets a copy of a run's metrics: TensorBoard, Weights & Biases, or one of your
own. It is fed from the run log by :class:`milepost.trackers.follower.Follower`, in a thread of its own, outside the
training process, at its own pace. It may therefore be slow, block, or raise: nothing but itself is held up by that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from milepost.core.events import StatusChanged
from milepost.runs.scan import LoggedRecord

__all__ = ["RunDescription", "Tracker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDescription:
    """The run that a guest is to follow.

    Attributes:
        id: The experiment id; the same for every attempt of the run.
        name: What a person called it.
        attempt: Counts the stays of the run from 1.
        started: When this attempt began, seconds since 1970.
        host: Machine of the training process, and ``pid`` its number there.
        hyperparameters: As given to ``start_experiment``; so are the fields that follow.
        folder: Where this guest may keep files of its own; made by the guest.
        media: The folder that paths of :class:`milepost.core.events.MediaAdded` are relative to.
        project: The project at Weights & Biases, None for guests without projects.
        artifacts: ``wandb_artifacts`` of the settings, as ``best_metric`` and ``best_mode`` are.
    """

    id: str
    name: str
    attempt: int = 1
    started: float = 0.0
    host: str = "localhost"
    pid: int = 0
    description: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    model_config: Mapping[str, Any] = field(default_factory=dict)
    dataset_info: Mapping[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    group: str | None = None
    notes: str = ""
    folder: Path = Path()
    media: Path = Path()
    project: str | None = None
    artifacts: str = "best"
    best_metric: str | None = None
    best_mode: str = "min"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"folder": str(self.folder), "media": str(self.media), "tags": list(self.tags)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> RunDescription:
        """The inverse of :meth:`to_dict`."""
        folders = {name: Path(plain.get(name, "")) for name in ("folder", "media")}
        return cls(**(dict(plain) | folders | {"tags": tuple(plain["tags"])}))


class Tracker(Protocol):
    """A guest. All calls come from one thread, in the order open, (write*, flush)*, close.

    Delivery is at least once: after a crash, or after a call that raised, a new tracker is built and opened with the
    cursor of the last flush that returned, and gets the records after that flush again. ``open`` must undo what was
    written after the cursor, or the guest must recognise repeated records. A tracker whose call raised is closed with
    None, even if the call was ``open``, and not used any more; but one that the setting ``trackers`` holds as an object
    cannot be built anew, and is opened again. :class:`milepost.testing.TrackerContract` tests all of this.

    A tracker raises :class:`milepost.core.errors.MilepostError`, with the cure, where only a person can help: it is
    tried once more when the run ends. Any other exception is taken for a passing fault and tried again soon.
    """

    @property
    def name(self) -> str:
        """A short word for files and messages, for example ``"tensorboard"``."""
        ...

    def open(self, run: RunDescription, cursor: Mapping[str, Any]) -> bool:
        """Start to follow, after what ``flush`` returned last (empty at the first time).

        Returns:
            False if what the cursor speaks of is not there any more; the run is then told again from its first record.
        """
        ...

    def write(self, records: Sequence[LoggedRecord]) -> None:
        """Take a batch: rank 0 only, steps filled in, values that came late already at their own step."""
        ...

    def flush(self) -> Mapping[str, Any]:
        """Make everything written so far safe, and return what ``open`` needs to go on from here, fit for JSON."""
        ...

    def close(self, end: StatusChanged | None) -> None:
        """The run is over with ``end``, or (None) this process stops following a run that may go on."""
        ...
