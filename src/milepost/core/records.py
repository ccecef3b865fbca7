"""What does a user get back? Frozen dataclasses that also answer ``info["step"]``, as the mission's examples ask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

__all__ = ["CheckpointInfo", "LoadReport", "Record", "ResumePoint"]


class Record:
    """Gives a dataclass the reading half of a mapping: ``record["step"]``, ``get``, ``in``, ``keys()``."""

    __slots__ = ()

    def __getitem__(self, name: str) -> Any:
        if name in self.keys():
            return getattr(self, name)
        raise KeyError(f"{name!r} is not a field of {type(self).__name__}: it has {', '.join(self.keys())}")

    def get(self, name: str, default: Any = None) -> Any:
        """The field ``name``, or ``default`` if there is no such field."""
        return getattr(self, name) if name in self.keys() else default

    def keys(self) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(f.name for f in fields(self))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo(Record):
    """One checkpoint as listed.

    Attributes:
        filename: Name inside ``checkpoint_dir``.
        path: Absolute path.
        experiment_id: The run it belongs to.
        step: The last step that was done when it was taken.
        epoch: Epoch at that step.
        metrics: What ``save_checkpoint`` was given.
        is_best: Whether it was marked best when saved.
        timestamp: Seconds since 1970, UTC, at the snapshot.
        size: Bytes on disk.
        state_bytes: Bytes of the tensors it holds.
        verified: Whether it was read back and decoded after its commit.
        pinned: Whether retention must keep it.
        format: ``"milepost"``, ``"pt"``, ``"pt.gz"`` or ``"safetensors"``.
        stall_ms: How long ``save_checkpoint`` held the training thread.
        wait_ms: How much of that it waited for the save before.
        contents: Which parts it holds: ``model``, ``optimizer``, ``scheduler``, ``rng``, ``loader``, ...
        base: Name of the keyframe beside it that it needs; empty: it loads alone.
        include: ``"all"``, or ``"trainable"``: saved without frozen parameters.
        lossy: Name of the lossy setting it was saved with; empty: every bit is there.
        digest: XXH3-128 of the whole file, where a framework's file is listed that has no digests inside.
    """

    filename: str
    path: Path
    experiment_id: str
    step: int
    epoch: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    is_best: bool = False
    timestamp: float = 0.0
    size: int = 0
    state_bytes: int = 0
    verified: bool = False
    pinned: bool = False
    format: str = "milepost"
    stall_ms: float = 0.0
    wait_ms: float = 0.0
    contents: tuple[str, ...] = ()
    base: str = ""
    include: str = "all"
    lossy: str = ""
    digest: str = ""

    def to_fields(self) -> dict[str, Any]:
        """The record as plain values, for JSON and for the run log."""
        content = {name: getattr(self, name) for name in self.keys()}
        return content | {"path": str(self.path), "metrics": dict(self.metrics), "contents": list(self.contents)}

    @classmethod
    def from_fields(cls, content: Mapping[str, Any]) -> CheckpointInfo:
        """The inverse of :meth:`to_fields`; fields of later versions are ignored."""
        known = {field.name: content[field.name] for field in fields(cls) if field.name in content}
        return cls(**known | {"path": Path(content["path"]), "contents": tuple(content.get("contents", ()))})


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport(Record):
    """What ``load_checkpoint`` did.

    Attributes:
        info: The checkpoint that was loaded.
        step: Its step, ``epoch`` its epoch, ``metrics`` its metrics: the mission's ``checkpoint_info["step"]``.
        missing: Names that the model has and the file has not.
        unexpected: Names that the file has and the model has not.
        notes: Differences worth knowing (a flag of the optimizer, a device that is not here), one sentence each.
    """

    info: CheckpointInfo
    step: int
    epoch: float | None
    metrics: Mapping[str, Any]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint(Record):
    """Where training goes on.

    Attributes:
        step: The next step to do: 0 for a fresh run, else the checkpoint's step + 1.
        epoch: The epoch of that step (0 for a fresh run).
        fresh: True if nothing was restored.
        checkpoint: The checkpoint that was restored.
        lost_steps: Steps that the previous attempt had done after that checkpoint and that are done again.
        notes: What is not exact, one sentence each (for example ``"data position not saved"``).
    """

    step: int
    epoch: int
    fresh: bool
    checkpoint: CheckpointInfo | None = None
    lost_steps: int = 0
    notes: tuple[str, ...] = ()
