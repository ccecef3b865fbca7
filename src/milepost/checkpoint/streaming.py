"""How is a state saved for which there is no room a second time?

By encoding it out of the live tensors while the training waits: peak memory is a few blocks. What is given up is the
short stall, so it is done only where an arena of the state's size would take more than a quarter of the memory that
the job may still use.

**Invariants**: the training thread commits, so nothing changes meanwhile. The file is the one that an arena would have
given, up to the order of its blocks.

**On crash**: as at any commit before the rename: nobody sees a file. The checkpoint before remains.
"""

from __future__ import annotations

import bisect
from dataclasses import replace
from typing import TYPE_CHECKING

from milepost.core.saying import say
from milepost.io.memory import available_memory

if TYPE_CHECKING:
    from milepost.checkpoint.codec import Bytes
    from milepost.checkpoint.job import SaveJob
    from milepost.checkpoint.snapshot import Outline
    from milepost.core.records import CheckpointInfo

__all__ = ["NO_MEMORY", "commit_from_live", "worth_streaming"]

_WORTH = 4

#: Kinds of errors that say that there is no room for an arena: memory, address space, or size of its file.
NO_MEMORY = frozenset({"out-of-memory", "no-memory", "file-too-large"})


def worth_streaming(nbytes: int, arena_bytes: int, *, room: int | None = None) -> bool:
    """Whether a snapshot should not be copied first.

    Args:
        nbytes: What the snapshot needs.
        arena_bytes: How large the present arena is.
        room: Bytes the job may still use; None: what the machine and the control groups say now.
    """
    if nbytes <= arena_bytes:
        return False
    left = available_memory() if room is None else room
    return nbytes > (left + arena_bytes) // _WORTH  # the present arena goes before a larger one is made


def commit_from_live(job: SaveJob, outline: Outline) -> CheckpointInfo:
    """Write the checkpoint of the live state in the calling thread; durable on return, and not yet verified.

    Args:
        job: What to write; its tensors are those of ``outline``.
        outline: The state, which must not change meanwhile.

    Raises:
        StorageError: It could not be written.
    """
    from milepost.checkpoint.commit import commit
    from milepost.checkpoint.finishing import commit_with_ranks

    source = _LiveMemory(outline)
    info, missing = commit_with_ranks(job, lambda complete: commit(complete, source))
    if missing:
        say(missing)
    return info


class _LiveMemory:
    """The arena that would be, given piece by piece: dense CPU tensors as they are, copies of all others."""

    def __init__(self, outline: Outline) -> None:
        self._tensors = outline.tensors
        self._pieces = sorted((piece for piece in outline.pieces if piece.nbytes), key=lambda piece: piece.offset)
        self._offsets = [piece.offset for piece in self._pieces]

    def bytes_of(self, start: int, end: int) -> Bytes:
        """The bytes between two addresses of the arena, which lie in one piece."""
        import torch

        from milepost.checkpoint.copying import live_memory, route

        piece = self._pieces[bisect.bisect_right(self._offsets, start) - 1]
        memory = torch.empty(piece.nbytes, dtype=torch.uint8)
        way = route(replace(piece, offset=0), self._tensors, memory)
        with torch.no_grad():
            source = live_memory(piece, self._tensors)
            if way.address is None:
                way.window.copy_(source)
            else:
                memory = source.view(torch.uint8)
        content: Bytes = memory.reshape(-1).numpy()
        return content[start - piece.offset : end - piece.offset]
