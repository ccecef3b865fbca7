"""Where does the data loader stand?

A loader with ``state_dict`` and ``load_state_dict`` (torchdata's StatefulDataLoader) goes on inside its epoch. A plain
``torch.utils.data.DataLoader`` has no position; one that was tracked before its loop began is brought there by
replaying the epoch: its first batches are made once more and thrown away (:mod:`.tracked_loader`). Of any other loader
only the generators are kept, and that the position is not is said.

**Order on restore**: the loader first, then its generators, then (by the caller) the global ones. An iterator draws
random numbers when it is made; in the saved training that had happened long before. It is therefore made here, and the
generators are set after it, so the loop that follows draws what the saved training would have drawn.
"""

from __future__ import annotations

from typing import Any

from milepost.checkpoint.tracked_loader import (
    Progress,
    capture_generators,
    has_position,
    keeps_workers,
    progress_of,
    set_generators,
    several,
    track,
)
from milepost.core.saying import say

__all__ = ["NOT_SAVED", "capture_position", "has_position", "position_note", "restore_position", "track"]

#: Said at save and at resume for a loader that cannot tell where it stands.
NOT_SAVED = "data position not saved: use torchdata's StatefulDataLoader to go on inside an epoch"

#: What must be as it was for skipped batches to be those that were seen.
_SETTINGS = ("batch_size", "num_workers", "drop_last", "persistent_workers")


def position_note(loader: Any) -> str | None:
    """The sentence to say about a loader whose position cannot be kept."""
    if loader is None or has_position(loader):
        return None
    loaders = several(loader)
    if loaders is not None:
        return NOT_SAVED if any(position_note(part) for part in loaders) else None
    progress = progress_of(loader)
    return None if progress is not None and progress.known else NOT_SAVED


def capture_position(loader: Any) -> dict[str, Any]:
    """Position, generators and sampler epoch of ``loader``; draws no random number and starts no worker."""
    loaders = several(loader)
    if loaders is not None:
        return {"several": [capture_position(part) for part in loaders]}
    saved: dict[str, Any] = {"generators": capture_generators(loader)}
    # asked before its first batch, a StatefulDataLoader would make its iterator: that draws a seed
    if has_position(loader) and getattr(loader, "_iterator", loader) is not None:
        saved["state"] = _without_tensors(loader.state_dict())
    progress = progress_of(loader)
    if progress is not None and progress.known:
        saved["progress"] = _capture_progress(loader, progress)
    epoch = getattr(getattr(loader, "sampler", None), "epoch", None)
    if isinstance(epoch, int):
        saved["epoch"] = epoch
    return saved


def _capture_progress(loader: Any, progress: Progress) -> dict[str, Any]:
    """How the epoch began and how many batches were handed out; how the workers began, if they stay over epochs."""
    saved: dict[str, Any] = {"settings": _settings(loader)}
    if keeps_workers(loader):
        saved["workers_start"] = progress.workers_start
    epoch = progress.epoch
    if epoch is not None:
        saved |= {"start": epoch.start, "first": epoch.first, "batches": epoch.batches, "again": epoch.again}
    return saved


def _settings(loader: Any) -> dict[str, Any]:
    settings = {name: getattr(loader, name) for name in _SETTINGS}
    try:
        settings["samples"] = len(loader.dataset)
    except (TypeError, NotImplementedError):
        settings["samples"] = None
    return settings


def restore_position(loader: Any, saved: dict[str, Any]) -> tuple[str, ...]:
    """Bring ``loader`` to where it stood; returns a sentence for what cannot be restored.

    For a plain ``DataLoader`` this makes the first batches of its epoch once more.
    """
    loaders, saved_ones = several(loader), saved.get("several")
    if loaders is not None or saved_ones is not None:
        if loaders is None or saved_ones is None or len(loaders) != len(saved_ones):
            return ("data position not restored: it is that of another number of loaders",)
        parts = [restore_position(part, state) for part, state in zip(loaders, saved_ones, strict=True)]
        return tuple(dict.fromkeys(note for part in parts for note in part))
    notes: list[str] = []
    if "epoch" in saved and callable(getattr(getattr(loader, "sampler", None), "set_epoch", None)):
        loader.sampler.set_epoch(saved["epoch"])
    if has_position(loader):
        notes += _restore_state(loader, saved)
    else:
        track(loader)
        progress = progress_of(loader)
        if progress is None or "progress" not in saved:
            notes.append(NOT_SAVED)
        else:
            notes += _restore_progress(loader, progress, saved["progress"])
    absent = set_generators(loader, saved["generators"])
    return (*notes, *(f"the loader has no {name}, whose state was saved" for name in absent))


def _restore_state(loader: Any, saved: dict[str, Any]) -> list[str]:
    if "state" in saved:
        loader.load_state_dict(_with_tensors(saved["state"]))
        loader.state_dict()  # makes the iterator that the next loop will use
    elif "start" in saved.get("progress", {}):
        return ["data position not restored: it is that of a plain DataLoader, this one keeps its own"]
    return []


def _restore_progress(loader: Any, progress: Progress, saved: dict[str, Any]) -> list[str]:
    notes = [
        f"data position may differ: {name} of the loader was {saved['settings'].get(name)}, is {value}"
        for name, value in _settings(loader).items()
        if saved["settings"].get(name) != value
    ]
    if loader.num_workers and not getattr(loader, "in_order", True):
        notes.append(
            "data position may differ: the workers of the loader hand out batches as they come (in_order=False)"
        )
    progress.forget(loader)
    stay = "workers_start" in saved and loader.persistent_workers
    if stay and saved.get("again", True):
        progress.start_workers(loader, saved["workers_start"])
        notes.append("random numbers inside loader workers that stay over epochs are not exact: they were started anew")
    if "start" in saved:
        notes += _replay(loader, progress, saved)
    return notes


def _replay(loader: Any, progress: Progress, saved: dict[str, Any]) -> list[str]:
    wanted = saved["batches"]
    if wanted:
        say(f"skipping {wanted} batches of the epoch: use torchdata's StatefulDataLoader to avoid that")
    found = progress.replay(loader, saved["start"], saved["first"], wanted)
    return [f"data position not restored: the epoch has {found} batches, {wanted} were done"] if found < wanted else []


def _without_tensors(value: Any) -> Any:
    """``value`` with each tensor as a marked array: the position of every rank must fit a text without tensors."""
    import torch

    if isinstance(value, torch.Tensor):
        return {"torch.Tensor": value.detach().cpu().numpy().copy()}
    if isinstance(value, dict):
        return {key: _without_tensors(part) for key, part in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(_without_tensors(part) for part in value)
    return value


def _with_tensors(value: Any) -> Any:
    import torch

    if isinstance(value, dict):
        if value.keys() == {"torch.Tensor"}:
            return torch.from_numpy(value["torch.Tensor"].copy())
        return {key: _with_tensors(part) for key, part in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(_with_tensors(part) for part in value)
    return value
