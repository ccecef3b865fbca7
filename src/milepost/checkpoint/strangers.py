"""Under which names do others keep a model, an optimizer, a step?

There is no rule, only habits: ``{"model_state_dict": ..., "optimizer_state_dict": ...}`` of PyTorch's tutorials,
``state_dict`` and ``optimizer_states`` of Lightning, a bare ``state_dict``, and names that begin with the attribute in
which a wrapper kept the model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from milepost.core.records import CheckpointInfo

__all__ = ["aligned", "parts_of_stranger", "record_of_stranger"]

_HABITS = {
    "model": ("model_state_dict", "model", "state_dict", "module"),
    "optimizer": ("optimizer_state_dict", "optimizer", "optimizer_states"),
    "scheduler": ("scheduler_state_dict", "scheduler", "lr_scheduler_state_dict", "lr_scheduler", "lr_schedulers"),
    "scaler": ("scaler_state_dict", "scaler", "grad_scaler"),
}
_STEPS = ("step", "global_step", "iteration")


def parts_of_stranger(content: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a file that somebody else wrote."""
    if content.keys() >= {"state", "param_groups"}:
        return {"optimizer": dict(content)}
    parts: dict[str, Any] = {}
    for part, names in _HABITS.items():
        found = next((content[name] for name in names if name in content), None)
        if isinstance(found, (list, tuple)) and found:
            found = found[0]  # a list with one entry for each optimizer
        if isinstance(found, Mapping):
            parts[part] = dict(found)
    if not parts:
        parts["model"] = {name: value for name, value in content.items() if hasattr(value, "shape")}
    if "model" in parts:
        parts["model"] = _without_wrapper(parts["model"])
    return parts


def _without_wrapper(model: dict[str, Any]) -> dict[str, Any]:
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):
        if model and all(name.startswith(prefix) for name in model):
            model = {name.removeprefix(prefix): value for name, value in model.items()}
    return model


def record_of_stranger(path: Path, kind: str, content: Mapping[str, Any], parts: Iterable[str]) -> CheckpointInfo:
    """What a file says of itself that milepost did not write."""
    status = path.stat()
    epoch = content.get("epoch")
    return CheckpointInfo(
        filename=path.name,
        path=path,
        experiment_id="",
        step=next((content[name] for name in _STEPS if type(content.get(name)) is int), 0),
        epoch=epoch if type(epoch) in {int, float} else None,
        timestamp=status.st_mtime,
        size=status.st_size,
        format=kind,
        contents=tuple(parts),
    )


def aligned(saved: Mapping[str, Any], live: Collection[str]) -> Mapping[str, Any]:
    """``saved`` under the names of the live model, if it differs from them by what is put before each of them."""
    if not live or any(name in saved for name in live):
        return saved
    first = f".{next(iter(live))}"
    prefixes = {name.removesuffix(first) + "." for name in saved if name.endswith(first)}
    best = max(prefixes, key=lambda prefix: sum(prefix + name in saved for name in live), default=None)
    return saved if best is None else {name.removeprefix(best): value for name, value in saved.items()}
