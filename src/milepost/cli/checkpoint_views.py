"""What does the terminal show of the content of checkpoints, and of what retention would do to them?

Frozen views; their field names are the stable keys of ``--json``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milepost.checkpoint.retention import Decision

if TYPE_CHECKING:
    from milepost.checkpoint.manifest import Block, StoredTensor
    from milepost.checkpoint.reading import CheckpointFile

__all__ = [
    "ContentView",
    "DecisionView",
    "PartView",
    "TensorView",
    "VerifyView",
    "content_view",
    "decision_view",
    "is_marked_verified",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartView:
    """Tensors of one kind: how many, and how many bytes they have when decoded."""

    name: str
    tensors: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorView:
    """One tensor. ``original`` is the dtype that it had before a lossy setting."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    original: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentView:
    """What is in one checkpoint.

    ``encodings`` maps ``raw``, ``compressed``, ``difference`` and ``same`` (as in the keyframe) to decoded bytes.
    ``tensors`` is empty unless they were asked for.
    """

    filename: str
    path: str
    experiment_id: str
    step: int
    epoch: float | None
    time: float
    size: int
    state_bytes: int
    contents: tuple[str, ...]
    base: str
    include: str
    lossy: str
    pinned: bool
    is_best: bool
    verified: bool
    stall_ms: float
    wait_ms: float
    metrics: Mapping[str, Any]
    parts: tuple[PartView, ...]
    dtypes: tuple[PartView, ...]
    encodings: Mapping[str, int]
    side_files: tuple[str, ...]
    writer: Mapping[str, Any]
    tensors: tuple[TensorView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyView:
    """Whether one file was read back whole; ``what`` and ``cure`` say what is wrong, ``mended`` what a copy cured."""

    path: str
    size: int
    sound: bool
    what: str = ""
    cure: str = ""
    mended: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionView:
    """What retention decides about one checkpoint: ``action`` is ``keep``, ``keep weights only`` or ``remove``."""

    filename: str
    step: int
    size: int
    action: str
    reason: str


def content_view(file: CheckpointFile, *, verified: bool, tensors: str | None = None) -> ContentView:
    """What a checkpoint says of itself.

    Args:
        file: Open.
        verified: Whether it was read back since it was written.
        tensors: Pattern of the tensors to list; None: none of them.
    """
    info = file.info
    listed = [t for t in file.tensors.values() if tensors is not None and fnmatchcase(t.name, tensors)]
    stored = file.tensors.values()
    return ContentView(
        filename=info.filename,
        path=str(info.path),
        experiment_id=info.experiment_id,
        step=info.step,
        epoch=info.epoch,
        time=info.timestamp,
        size=info.size,
        state_bytes=info.state_bytes,
        contents=info.contents,
        base=info.base,
        include=info.include,
        lossy=info.lossy,
        pinned=info.pinned,
        is_best=info.is_best,
        verified=verified,
        stall_ms=info.stall_ms,
        wait_ms=info.wait_ms,
        metrics=dict(info.metrics),
        parts=_grouped({t.name: t.name.partition(".")[0] for t in stored}, stored),
        dtypes=_grouped({t.name: t.dtype for t in stored}, stored),
        encodings=_encodings(file),
        side_files=file.side_files,
        writer=file.manifest.writer,
        tensors=tuple(
            TensorView(name=t.name, dtype=t.dtype, shape=t.shape, nbytes=t.nbytes, original=t.original) for t in listed
        ),
    )


def _grouped(kinds: Mapping[str, str], tensors: Collection[StoredTensor]) -> tuple[PartView, ...]:
    """By kind, in order of appearance. Memory that tensors share is counted for each of them."""
    counts: dict[str, list[int]] = {}
    for tensor in tensors:
        counts.setdefault(kinds[tensor.name], []).append(tensor.nbytes)
    return tuple(PartView(name=name, tensors=len(sizes), nbytes=sum(sizes)) for name, sizes in counts.items())


def _encodings(file: CheckpointFile) -> dict[str, int]:
    shares: dict[str, int] = {}
    for region in file.manifest.regions:
        for index, block in enumerate(region.blocks):
            way = _way(block)
            shares[way] = shares.get(way, 0) + region.block_bytes(index)
    return shares


def _way(block: Block) -> str:
    encoding = block.encoded.encoding
    if encoding == "raw":
        return "raw"
    return {"=": "same", "d": "difference", "s": "difference"}.get(encoding[:1], "compressed")


def decision_view(decision: Decision) -> DecisionView:
    """A decision of retention in words."""
    kept = "keep weights only" if decision.weights_only else "keep"
    return DecisionView(
        filename=decision.info.filename,
        step=decision.info.step,
        size=decision.info.size,
        action=kept if decision.keep else "remove",
        reason=decision.reason,
    )


def is_marked_verified(path: Path) -> bool:
    """Whether the listing of its folder says that a file was read back."""
    from milepost.checkpoint.catalog import scan

    return any(info.verified for info in scan(path.parent).infos if info.filename == path.name)
