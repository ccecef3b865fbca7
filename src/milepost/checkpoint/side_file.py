"""Where do ranks other than 0 leave what each of them has for itself?

Their random numbers and data position go to a small hidden file beside the checkpoint, which rank 0's companion embeds.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["RANK_FORMAT", "rank_of", "side_file"]

#: The format of a job that only carries what a rank other than 0 has for itself.
RANK_FORMAT = "rank"


def side_file(path: Path, rank: int) -> Path:
    """Where rank ``rank`` leaves its random numbers and data position for the checkpoint ``path``.

    The name leaves out ``_best`` and the extension: only rank 0 may know that a checkpoint is the best.
    """
    stem = path.name.removesuffix(".gz").rpartition(".")[0].removesuffix("_best")
    return path.with_name(f".{stem}.rank{rank}")


def rank_of(side: Path | str) -> int:
    """Whose the side file is, by its name."""
    return int(str(side).rpartition(".rank")[2])
