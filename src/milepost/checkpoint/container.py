"""How does a snapshot become one file?

Header, blocks, manifest, trailer: ``docs/format.md``.

**Invariants**: every byte of a tensor is under the checksum of its block and the digest of its tensor; header, manifest
and trailer are each under their own. The digests are taken from the snapshot, not from what the codec made of it. A
file is complete exactly if its trailer, the last 64 bytes, is.

**On crash**: the file has no trailer yet, and no name that a reader would open.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import xxhash
import zstandard

from milepost.checkpoint.base import BaseRegions, OpenFile
from milepost.checkpoint.block_writer import BlockWriter
from milepost.checkpoint.codec import DIFFERENCES, padded
from milepost.checkpoint.envelope import FIRST_BLOCK, TRAILER_BYTES, Trailer, header
from milepost.checkpoint.habits import Habits
from milepost.checkpoint.job import SaveJob, TensorEntry
from milepost.checkpoint.manifest import BaseFile, Manifest, Region, RegionBase, StoredTensor, manifest_text
from milepost.checkpoint.plain_values import Node
from milepost.checkpoint.regions import Layout, PieceSource, Source, lay_out
from milepost.checkpoint.survey import Base, Surveyor
from milepost.checkpoint.tree import encode_tree
from milepost.core.errors import InvalidInputError, StorageError
from milepost.io.direct import ALIGNMENT, NewFile, aligned_buffer
from milepost.io.durable import storage_error

__all__ = ["SIDE_FILE", "BaseChoice", "Written", "write_container"]

#: An embedded file is the uint8 tensor of this name and its own.
SIDE_FILE = "side_files/"

_ROW_BYTES = 200  # what a tensor or a block takes in the manifest, about


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseChoice:
    """A file to hold differences to.

    Attributes:
        file: Open, without a base of its own, in the folder of the new file.
        step: Its step.
        keep: How many checkpoints will hold differences to it.
    """

    file: OpenFile
    step: int
    keep: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What became of a snapshot.

    Attributes:
        size: The length to which the file is to be cut.
        base: Name of the file that it holds differences to; empty: it stands alone.
        sources: Its regions, and how each was stored.
        tensors: The tensors of the state.
    """

    size: int
    base: str = ""
    sources: tuple[Source, ...] = ()
    tensors: tuple[StoredTensor, ...] = ()


def write_container(
    file: NewFile,
    job: SaveJob,
    arena: memoryview | PieceSource,
    *,
    threads: int,
    habits: Habits | None = None,
    base: BaseChoice | None = None,
    hurry: Callable[[], bool] = lambda: False,
) -> Written:
    """Write the snapshot of ``job`` into ``file``; it is not synced yet.

    Args:
        file: New and empty.
        job: What to write.
        arena: The snapshot's tensors.
        threads: How many encode and write.
        habits: What earlier saves taught; what this one teaches is for the caller to add, once the file is safe.
        base: What to hold differences to, where they pay.
        hurry: Whether blocks from here on are stored raw.

    Raises:
        InvalidInputError: The job contradicts itself.
        CorruptDataError: The base is damaged.
        StorageError: The disk has too little room; ``kind`` is ``"no-space"``.
        OSError: As the kernel gives it.
    """
    tree = _parsed(job.tree)
    layout = lay_out(job.tensors, _memory(arena))
    for path in job.side_files:
        layout.embed(SIDE_FILE + os.path.basename(path), _read(path))
    regions = BaseRegions(base.file) if base is not None else None
    against = Base(regions, base.file.manifest) if base is not None and regions is not None else None
    surveyor = Surveyor(layout, base=against, habits=habits, compression=job.compression)
    expected = surveyor.survey(threads=threads, keep=1 if base is None else base.keep) + _described_bytes(job, layout)
    # a sample may mislead: what would only perhaps not fit is tried
    _check_room(Path(job.path), min(expected, habits.taken or expected) if habits is not None else expected)
    file.preallocate(expected)
    writer = BlockWriter(file, start=FIRST_BLOCK, base=regions, hurry=hurry)
    writer.write(layout, threads=threads, first=None if job.compression else surveyor.hash)
    manifest = _manifest(job, tree, layout, surveyor.digests, base)
    size = _write_ends(file, manifest_text(manifest), writer.end)
    return Written(
        size=size,
        base="" if manifest.base is None else manifest.base.filename,
        sources=tuple(layout.sources),
        tensors=manifest.tensors[: len(job.tensors)],
    )


def _memory(arena: memoryview | PieceSource) -> PieceSource | np.ndarray[tuple[int], np.dtype[np.uint8]]:
    if not isinstance(arena, memoryview):
        return arena
    return np.frombuffer(arena, np.uint8) if arena.nbytes else np.empty(0, np.uint8)


def _described_bytes(job: SaveJob, layout: Layout) -> int:
    """About how long the manifest will be, with what surrounds it."""
    rows = len(layout.entries) + sum(len(source.blocks) for source in layout.sources)
    return len(job.tree) + _ROW_BYTES * rows + 2 * FIRST_BLOCK


def _check_room(path: Path, needed: int) -> None:
    """Refuse before anything is written what would fail after most of it was."""
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        what = f"no space left on device for {str(path)!r}: it takes about {needed} bytes, and {free} are free"
        cure = "enable compression, lower max_checkpoints or free disk space"
        raise StorageError(what, cure=cure, kind="no-space")


def _manifest(job: SaveJob, tree: Node, layout: Layout, digests: list[int], base: BaseChoice | None) -> Manifest:
    regions = tuple(map(_region, layout.sources))
    used = base if any(region.base is not None for region in regions) else None
    return Manifest(
        run=_facts(job),
        tree=tree,
        tensors=tuple(map(_stored, layout.entries, layout.places, digests)),
        side_files=tuple(entry.name for entry in layout.entries[len(job.tensors) :]),
        regions=regions,
        writer=_versions(),
        base=None if used is None else _base_file(used),
    )


def _base_file(base: BaseChoice) -> BaseFile:
    return BaseFile(filename=base.file.path.name, digest=base.file.manifest_digest, step=base.step)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise storage_error(error, "reading", path) from error


def _region(source: Source) -> Region:
    blocks = tuple(block for block in source.blocks if block is not None)
    base = None
    if source.base is not None and any(block.encoded.encoding[:1] in DIFFERENCES for block in blocks):
        base = RegionBase(region=source.base, scale=source.scale or 0)
    return Region(nbytes=source.nbytes, width=source.width, blocks=blocks, base=base)


def _stored(entry: TensorEntry, place: tuple[int, int], digest: int) -> StoredTensor:
    region, offset = place
    return StoredTensor(
        name=entry.name,
        dtype=entry.dtype,
        shape=entry.shape,
        stride=entry.stride,
        region=region,
        offset=offset,
        nbytes=entry.nbytes,
        digest=digest,
        original=entry.original,
    )


def _facts(job: SaveJob) -> Node:
    facts = {
        "experiment_id": job.experiment_id,
        "step": job.step,
        "epoch": job.epoch,
        "metrics": job.metrics,
        "is_best": job.is_best,
        "pinned": job.pinned,
        "timestamp": job.timestamp,
        "stall_ms": job.stall_ms,
        "wait_ms": job.wait_ms,
        "attempt": job.attempt,
        "contents": job.contents,
        "include": job.include,
        "lossy": job.lossy,
    }
    return encode_tree(facts, leaf=lambda _: None)


def _parsed(tree: str) -> Node:
    try:
        return json.loads(tree)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"the job's tree is no JSON ({error})", cure="report this as a bug") from None


def _versions() -> dict[str, str]:
    try:
        ours = version("milepost")
    except PackageNotFoundError:  # run from a source tree
        ours = "unknown"
    libraries = {"numpy": np.__version__, "xxhash": xxhash.VERSION, "zstandard": zstandard.__version__}
    return {"milepost": ours, "python": platform.python_version(), **libraries}


def _write_ends(file: NewFile, manifest: bytes, offset: int) -> int:
    """Write what surrounds the blocks; returns the length of the file."""
    length = padded(len(manifest) + TRAILER_BYTES, ALIGNMENT)
    trailer = Trailer(
        manifest_offset=offset,
        manifest_bytes=len(manifest),
        manifest_digest=xxhash.xxh3_128_digest(manifest),
        file_bytes=offset + length,
    )
    buffer = aligned_buffer(max(length, FIRST_BLOCK))
    start = header()
    buffer[: len(start)] = start
    file.write(buffer[:FIRST_BLOCK], 0)
    buffer[: len(start)] = bytes(len(start))
    buffer[: len(manifest)] = manifest
    buffer[length - TRAILER_BYTES : length] = trailer.pack()
    file.write(buffer[:length], offset)
    return trailer.file_bytes
