"""How is a state saved for which there is no room a second time?

By encoding it out of the live tensors while the training waits: peak memory is a few blocks. What is given up is the
short stall, so it is done only where an arena of the state's size would take more than a quarter of the memory that
the job may still use.

**Invariants**: the training thread commits, so nothing changes meanwhile. The file is the one that an arena would have
given, up to the order of its blocks.

**On crash**: as at any commit before the rename: nobody sees a file. The checkpoint before remains.
"""

from __future__ import annotations

from milepost.io.memory import available_memory

__all__ = ["worth_streaming"]

_WORTH = 4


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
