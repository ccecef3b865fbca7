"""How does a checkpoint get into live objects, and which one is taken when the one that was meant is damaged?"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from milepost.checkpoint.arguments import TrainingObjects
from milepost.checkpoint.catalog import Scan
from milepost.checkpoint.loading import open_state
from milepost.checkpoint.selection import sound_ones
from milepost.core.errors import CorruptDataError, InvalidInputError
from milepost.core.records import LoadReport

__all__ = ["load_into"]


def load_into(
    path: Path,
    objects: TrainingObjects,
    found: Scan,
    *,
    device: Any = None,
    strict: bool = True,
    only: Collection[str] | None = None,
    fallback: bool = False,
    copies: Sequence[Path] = (),
) -> LoadReport:
    """Put the checkpoint ``path`` into ``objects``, bit for bit; what is raised is said at ``load_checkpoint``."""
    notes = _device_notes(device)
    load = partial(_load, objects=objects, strict=strict, only=only, copies=copies)
    try:
        return load(path, notes=notes)
    except CorruptDataError as error:
        damage = error
    notes = [*notes, f"{path.name} is damaged and was left out ({damage.what})"]
    for info in sound_ones(found, path):
        if not fallback:
            raise CorruptDataError(
                damage.what, cure=f"load {info.filename!r} (step {info.step}) instead, or pass fallback=True"
            ) from damage
        try:
            return load(info.path, notes=[*notes, f"{info.filename} was loaded instead"])
        except CorruptDataError as error:
            notes.append(f"{info.filename} is damaged and was left out ({error.what})")
    raise damage


def _load(
    path: Path,
    *,
    objects: TrainingObjects,
    strict: bool,
    only: Collection[str] | None,
    copies: Sequence[Path],
    notes: Sequence[str],
) -> LoadReport:
    from milepost.checkpoint.restore import restore_stored

    with open_state(path, copies=copies) as stored:
        restored = restore_stored(stored, objects, strict=strict, only=only)
    info = stored.info
    return LoadReport(
        info=info,
        step=info.step,
        epoch=info.epoch,
        metrics=info.metrics,
        missing=restored.missing,
        unexpected=restored.unexpected,
        notes=(*notes, *restored.notes),
    )


def _device_notes(device: Any) -> list[str]:
    import torch

    if device is None:
        return []
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError(f"device is {device!r} ({error})", cure='give "cpu" or "cuda", for example') from None
    if wanted.type == "cuda" and not torch.cuda.is_available():
        return [f"device {str(wanted)!r} is not here: loaded to where the model lives"]
    return []
