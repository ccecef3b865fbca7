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
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import xxhash
import zstandard

from milepost.checkpoint.block_writer import BlockWriter
from milepost.checkpoint.codec import padded
from milepost.checkpoint.envelope import FIRST_BLOCK, TRAILER_BYTES, Trailer, header
from milepost.checkpoint.job import SaveJob, TensorEntry
from milepost.checkpoint.manifest import Manifest, Region, StoredTensor, manifest_text
from milepost.checkpoint.plain_values import Node
from milepost.checkpoint.regions import Source, lay_out
from milepost.checkpoint.tree import encode_tree
from milepost.core.errors import InvalidInputError
from milepost.io.direct import ALIGNMENT, NewFile, aligned_buffer
from milepost.io.durable import storage_error

__all__ = ["SIDE_FILE", "write_container"]

#: An embedded file is the uint8 tensor of this name and its own.
SIDE_FILE = "side_files/"


def write_container(file: NewFile, job: SaveJob, arena: memoryview, *, threads: int) -> int:
    """Write the snapshot of ``job`` into ``file``; it is not synced yet.

    Args:
        file: New and empty.
        job: What to write.
        arena: The snapshot's tensors.
        threads: How many encode and write.

    Returns:
        The length to which the file is to be cut.

    Raises:
        InvalidInputError: The job contradicts itself.
        OSError: As the kernel gives it.
    """
    tree = _parsed(job.tree)
    layout = lay_out(job.tensors, np.frombuffer(arena, np.uint8) if arena.nbytes else np.empty(0, np.uint8))
    for path in job.side_files:
        layout.embed(SIDE_FILE + os.path.basename(path), _read(path))
    file.preallocate(sum(padded(source.nbytes, ALIGNMENT) for source in layout.sources))
    writer = BlockWriter(file, start=FIRST_BLOCK, compression=job.compression)
    digests = writer.write(layout, threads=threads)
    manifest = Manifest(
        run=_facts(job),
        tree=tree,
        tensors=tuple(map(_stored, layout.entries, layout.places, digests)),
        side_files=tuple(entry.name for entry in layout.entries[len(job.tensors) :]),
        regions=tuple(map(_region, layout.sources)),
        writer=_versions(),
    )
    return _write_ends(file, manifest_text(manifest), writer.end)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise storage_error(error, "reading", path) from error


def _region(source: Source) -> Region:
    blocks = tuple(block for block in source.blocks if block is not None)
    return Region(nbytes=source.nbytes, width=source.width, blocks=blocks)


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
