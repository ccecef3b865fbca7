"""In which ways can a checkpoint be saved, and what does each way promise?

A flavour is a set of settings. The same worker saves in each of them, and is killed in each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

__all__ = ["FLAVOURS", "Flavour", "FlavourName"]

FlavourName = Literal["save", "delta", "overlap", "spool", "retain", "demote", "backup", "prune"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavour:
    """One way to save.

    Attributes:
        settings: Of the run, beside those that every run of the harness has.
        kept: How many of the newest are promised to stay.
        whole: How many of the newest are promised to hold everything; None: all.
        saves_before: Checkpoints that are committed before anything is killed: a difference needs a keyframe, a
            removal something old, and overlap copies twice at once before it trusts itself.
        returned_is_kept: Whether a save is promised from its return on, if not both processes die.
        survives_all: Whether that holds also if both die; then whoever starts next, or the doctor, makes the file.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    kept: int = 3
    whole: int | None = None
    saves_before: int = 1
    returned_is_kept: bool = True
    survives_all: bool = False


FLAVOURS: Mapping[FlavourName, Flavour] = {
    "save": Flavour(),
    "delta": Flavour(settings={"compression": "delta", "max_checkpoints": 2}, kept=2, saves_before=2),
    "overlap": Flavour(settings={"snapshot": "overlap"}, saves_before=3, returned_is_kept=False),
    "spool": Flavour(settings={"staging": "spool"}, survives_all=True),
    "retain": Flavour(settings={"max_checkpoints": 1}, kept=1),
    "demote": Flavour(settings={"weights_only_after": 1, "compression": "delta"}, whole=1, saves_before=2),
    "backup": Flavour(settings={"backup_dir": "backup", "max_checkpoints": 2}, kept=2),
    "prune": Flavour(settings={"compression": "delta", "max_checkpoints": 9}, kept=1, saves_before=4),
}
assert set(FLAVOURS) == set(get_args(FlavourName))
