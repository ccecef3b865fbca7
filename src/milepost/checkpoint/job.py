"""What does the trainer hand over so that another process can write a checkpoint?

A ``SaveJob`` describes a snapshot that lies in a shared arena: the plain values as a typed tree, the tensors as windows
of the arena. It crosses the process boundary as msgpack.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from milepost.core.errors import InvalidInputError

__all__ = ["SaveJob", "TensorEntry", "decode_job", "encode_job"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of a snapshot.

    Attributes:
        name: Unique in the snapshot; what a reader asks for.
        dtype: A name of :data:`milepost.checkpoint.dtypes.DTYPES`.
        shape: Elements along each dimension.
        stride: Elements from one index to the next along each dimension, none negative; None if contiguous (C order).
        offset: Where its first element lies in the arena: a multiple of 4096 for tensors of 64 KiB and more, else of 64
            (windows of one shared storage lie where the storage puts them).
        nbytes: Bytes from its first to its last element; with gaps, if it has strides.
        storage: Entries of equal ``storage`` are windows of the same memory, which is stored once.
        original: dtype before a lossy setting made it ``dtype``; None: nothing was lost.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None = None
    offset: int
    nbytes: int
    storage: int
    original: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveJob:
    """One checkpoint to write.

    Attributes:
        path: Absolute path of the file to make; it must not exist.
        format: ``"milepost"``, ``"pt"``, ``"pt.gz"`` or ``"safetensors"``.
        compression: Encode losslessly (byte planes and zstd), or store raw.
        delta: Store differences to a keyframe where that is smaller.
        standalone: It must load alone, whatever ``delta`` says (best, pinned, the last one before an end).
        include: ``"all"``, or ``"trainable"``: without frozen parameters.
        lossy: Name of the lossy setting that the tensors went through; empty: none.
        experiment_id: The run it belongs to.
        step: The last step that was done.
        epoch: Epoch at that step.
        metrics: Values of a typed tree without tensors.
        is_best: Marked best by the caller.
        pinned: Retention must keep it.
        timestamp: Seconds since 1970, UTC, at the snapshot.
        stall_ms: How long the training thread was held.
        wait_ms: How much of that it waited for the save before to leave the arena.
        tree: JSON text of the typed tree; its leaves are indices into ``tensors``.
        tensors: What lies in the arena.
        arena_bytes: How much of the arena is in use.
        side_files: Paths of small files (the states of other ranks) to embed.
        attempt: Which attempt of the run this is, from 1.
        contents: Which parts it holds: ``model``, ``optimizer``, ...
    """

    path: str
    format: str = "milepost"
    compression: bool = True
    delta: bool = False
    standalone: bool = False
    include: str = "all"
    lossy: str = ""
    experiment_id: str
    step: int
    epoch: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    is_best: bool = False
    pinned: bool = False
    timestamp: float = 0.0
    stall_ms: float = 0.0
    wait_ms: float = 0.0
    tree: str
    tensors: list[TensorEntry]
    arena_bytes: int
    side_files: list[str] = field(default_factory=list)
    attempt: int = 1
    contents: list[str] = field(default_factory=list)


def encode_job(job: SaveJob) -> bytes:
    """The job as msgpack.

    Raises:
        InvalidInputError: A metric is no plain value.
    """
    from milepost.checkpoint.tree import encode_tree  # with numpy, which the start of a run does not need

    # msgpack has no integers beyond 64 bits; the typed tree has
    metrics = {"tree": encode_tree(job.metrics, leaf=lambda _: None, place="metrics")}
    return msgspec.msgpack.encode(replace(job, metrics=metrics))


def decode_job(data: bytes | bytearray | memoryview) -> SaveJob:
    """The job that :func:`encode_job` wrote.

    Raises:
        InvalidInputError: The bytes are no job.
        CorruptDataError: Its metrics are no typed tree.
    """
    from milepost.checkpoint.tree import decode_tree

    try:
        job = msgspec.msgpack.decode(data, type=SaveJob)
        metrics = job.metrics["tree"]
    except (msgspec.MsgspecError, KeyError) as error:
        raise InvalidInputError(f"the bytes are no save job ({error})", cure="report this as a bug") from None
    return replace(job, metrics=decode_tree(metrics, leaf=lambda index: index))
