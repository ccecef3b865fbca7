"""How do the ranks of Lightning learn the id of rank 0's run, also before there is a process group?

``fit(ckpt_path="last")`` looks for files on every rank before the ranks are joined, and without ``dirpath`` the folder
is named by the run. Ranks that Lightning itself starts inherit the name of a place to meet; those of ``torchrun`` and
``srun`` meet as all ranks of milepost do.
"""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from pathlib import Path

from milepost.core.errors import GaveUpWaitingError, InvalidCallError
from milepost.environment.exchange import FolderExchange
from milepost.environment.ranks import Ranks, detect, meet
from milepost.integrations.lightning_package import rank

__all__ = ["ask_rank_zero", "prepare_meeting", "tell_ranks"]

_PLACE = "MILEPOST_LIGHTNING_PLACE"
_PATIENCE = 60.0


def prepare_meeting() -> None:
    """Name the place, before Lightning starts the other ranks of this host as children of this process."""
    os.environ.setdefault(_PLACE, uuid.uuid4().hex)


def tell_ranks(name: str, run_id: str) -> None:
    """On rank 0: leave the id of the run ``name`` for the others, if there are any; never waits."""
    if detect().world_size > 1:
        meet(detect(), f"lightning-{name}", run_id)
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _place().put(name, run_id.encode())


def ask_rank_zero(name: str) -> str:
    """On another rank: the id of the run ``name``.

    Raises:
        GaveUpWaitingError: Rank 0 did not tell it.
        InvalidCallError: Lightning started this rank on another host, and there is no process group yet.
    """
    ranks = detect()
    if ranks.world_size > 1:
        return str(meet(Ranks(rank=max(ranks.rank, rank()), world_size=ranks.world_size), f"lightning-{name}"))
    if os.environ.get("NODE_RANK", "0") != "0":
        raise InvalidCallError(
            "ranks on several hosts do not know the run's id before there is a process group",
            cure="give ModelCheckpoint a dirpath that all hosts see",
        )
    deadline = time.monotonic() + _PATIENCE
    while (told := _place().get(name)) is None:
        if time.monotonic() > deadline:
            raise GaveUpWaitingError(f"rank 0 did not tell the id of the run {name!r}", cure="look at rank 0")
        time.sleep(0.02)
    return told.decode()


def _place() -> FolderExchange:
    return FolderExchange(Path(tempfile.gettempdir()) / f"milepost-lightning-{os.environ[_PLACE]}")
