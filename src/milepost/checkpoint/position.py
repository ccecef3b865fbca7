"""Where does the data loader stand?

A loader with ``state_dict`` and ``load_state_dict`` (torchdata's StatefulDataLoader) goes on inside its epoch. A plain
``torch.utils.data.DataLoader`` has no position: its generators are kept, and that the position is not is said.

**Order on restore**: the loader first, then its generators, then (by the caller) the global ones. An iterator draws
random numbers when it is made; in the saved training that had happened long before. It is therefore made here, and the
generators are set after it, so the loop that follows draws what the saved training would have drawn.

Random numbers inside worker processes start again at the worker's seed; only what the dataset itself keeps in
``state_dict`` goes on exactly there.
"""

from __future__ import annotations

from typing import Any

from milepost.checkpoint.rng import capture_generator, restore_generator

__all__ = ["NOT_SAVED", "capture_position", "has_position", "position_note", "restore_position"]

#: Said at save and at resume for a loader that cannot tell where it stands.
NOT_SAVED = "data position not saved: use torchdata's StatefulDataLoader to go on inside an epoch"

_OWNERS = ("", "sampler", "batch_sampler", "batch_sampler.sampler", "dataset")


def has_position(loader: Any) -> bool:
    """Whether ``loader`` can tell where it stands and go on from there."""
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))


def position_note(loader: Any) -> str | None:
    """The sentence to say about a loader whose position cannot be kept."""
    return None if loader is None or has_position(loader) else NOT_SAVED


def capture_position(loader: Any) -> dict[str, Any]:
    """Position, generators and sampler epoch of ``loader``; draws no random number and starts no worker."""
    saved: dict[str, Any] = {
        "generators": {name: capture_generator(generator) for name, generator in _generators(loader).items()}
    }
    # asked before its first batch, a StatefulDataLoader would make its iterator: that draws a seed
    if has_position(loader) and getattr(loader, "_iterator", loader) is not None:
        saved["state"] = _without_tensors(loader.state_dict())
    epoch = getattr(getattr(loader, "sampler", None), "epoch", None)
    if isinstance(epoch, int):
        saved["epoch"] = epoch
    return saved


def restore_position(loader: Any, saved: dict[str, Any]) -> tuple[str, ...]:
    """Bring ``loader`` to where it stood; returns a sentence for what cannot be restored."""
    notes = []
    if "epoch" in saved and callable(getattr(getattr(loader, "sampler", None), "set_epoch", None)):
        loader.sampler.set_epoch(saved["epoch"])
    if not has_position(loader):
        notes.append(NOT_SAVED)
    elif "state" in saved:
        loader.load_state_dict(_with_tensors(saved["state"]))
        loader.state_dict()  # makes the iterator that the next loop will use
    present = _generators(loader)
    for name, state in saved["generators"].items():
        if name in present:
            restore_generator(present[name], state)
        else:
            notes.append(f"the loader has no {name}, whose state was saved")
    return tuple(notes)


def _generators(loader: Any) -> dict[str, Any]:
    """Generators of the user by where they hang, each once."""
    found: dict[str, Any] = {}
    for owner in _OWNERS:
        target = loader
        for attribute in filter(None, owner.split(".")):
            target = getattr(target, attribute, None)
        generator = getattr(target, "generator", None)
        known = any(generator is other for other in found.values())
        if known or not (hasattr(generator, "get_state") or hasattr(generator, "bit_generator")):
            continue
        found[f"{owner}.generator".lstrip(".")] = generator
    return found


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
