"""How is the state of an optimizer kept by the names of its parameters, and put back with its exact types?

Kept is what ``optimizer.state_dict()`` says, so that torch itself can load it, with ``param_names`` in each group. The
names make it independent of the order of the parameters. A parameter that is not in the model is called by its place,
``optimizer.param_groups[0].params[1]``.

``Optimizer.load_state_dict`` alone is not exact: it casts state to the dtype of the parameter (float32 moments of
bfloat16 parameters are rounded; pytorch issue 43706), and it keeps the tensors it is given. Therefore state that is
there is filled in place, and state that is not is loaded and then replaced by copies of the saved dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from milepost.core.errors import InvalidInputError

__all__ = ["capture_optimizer", "check_optimizer", "parameter_labels", "restore_optimizer"]

#: How the step is computed, not what it computes: the live choice stays, also because devices differ.
_IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")
#: What a scheduler moves; that it differs from the constructor's value is no news.
_SCHEDULED = {"params", "param_names", "lr", "initial_lr", "betas", "momentum", "max_lr", "min_lr"}
_SCHEDULED |= {"base_momentum", "max_momentum", *_IMPLEMENTATION}


def parameter_labels(optimizer: Any, names: Mapping[int, str], place: str = "optimizer") -> list[list[str]]:
    """What each parameter of each group is called; ``names`` maps ``id(parameter)`` to its name in the model."""
    return [
        [
            names.get(id(parameter), f"{place}.param_groups[{group_index}].params[{index}]")
            for index, parameter in enumerate(group["params"])
        ]
        for group_index, group in enumerate(optimizer.param_groups)
    ]


def capture_optimizer(optimizer: Any, names: Mapping[int, str], place: str = "optimizer") -> dict[str, Any]:
    """``optimizer.state_dict()`` with the names of the parameters; the live tensors, to be copied by the snapshot.

    Raises:
        InvalidInputError: Each rank holds a part of its state only.
    """
    if any(cls.__name__ == "ZeroRedundancyOptimizer" for cls in type(optimizer).__mro__):
        raise InvalidInputError(
            f"{place}: a sharded {type(optimizer).__name__} cannot be saved",
            cure="use a plain optimizer",
            kind="unsupported-state",
        )
    state: dict[str, Any] = dict(optimizer.state_dict())
    labels = parameter_labels(optimizer, names, place)
    state["param_groups"] = [
        {**group, "param_names": group_labels}
        for group, group_labels in zip(state["param_groups"], labels, strict=True)
    ]
    return state


def check_optimizer(
    optimizer: Any, saved: Mapping[str, Any], labels: Sequence[Sequence[str]], *, strict: bool
) -> tuple[str, ...]:
    """Compare before the first write; returns a sentence per difference worth knowing.

    Raises:
        InvalidInputError: Groups or parameters differ, or a saved tensor has another shape than its parameter's.
    """
    groups = saved["param_groups"]
    if len(groups) != len(optimizer.param_groups):
        raise InvalidInputError(
            f"the checkpoint's optimizer has {len(groups)} parameter groups, this one has {len(labels)}",
            cure="build the optimizer as it was when it was saved",
        )
    index_of = _saved_indices(saved, labels)
    missing = [label for group in labels for label in group if label not in index_of]
    if missing and strict:
        raise InvalidInputError(
            f"the checkpoint's optimizer does not know {len(missing)} parameters, for example {missing[0]!r}",
            cure="build the optimizer as it was when it was saved, or load with strict=False",
        )
    for label, parameter in _parameters(optimizer, labels):
        _check_shapes(saved["state"].get(index_of.get(label), {}), parameter, label)
    return tuple(_differences(optimizer, groups))


def _check_shapes(values: Mapping[str, Any], parameter: Tensor, label: str) -> None:
    moment = values.get("exp_avg", values.get("momentum_buffer"))
    if isinstance(moment, Tensor) and moment.dim() > 0 and moment.shape != parameter.shape:
        raise InvalidInputError(
            f"optimizer state of {label!r} has shape {tuple(moment.shape)}, the parameter {tuple(parameter.shape)}",
            cure="load into the model that was saved",
        )


def _differences(optimizer: Any, groups: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    for index, (live, saved) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
        for key in sorted(live.keys() & saved.keys()):
            if key in _IMPLEMENTATION and live[key] != saved[key]:
                notes.append(f"optimizer group {index}: {key}={live[key]} stays, the checkpoint had {saved[key]}")
            elif key not in _SCHEDULED and not _equal(live[key], saved[key]):
                notes.append(f"optimizer group {index}: {key} was {live[key]}, the checkpoint set it to {saved[key]}")
    return notes


def _equal(live: Any, saved: Any) -> bool:
    if isinstance(live, Tensor) or isinstance(saved, Tensor):
        return bool(torch.equal(torch.as_tensor(live).cpu(), torch.as_tensor(saved).cpu()))
    return bool(live == saved)


def restore_optimizer(optimizer: Any, saved: Mapping[str, Any], labels: Sequence[Sequence[str]]) -> None:
    """Put ``saved`` into ``optimizer``, bit for bit; :func:`check_optimizer` came before."""
    index_of = _saved_indices(saved, labels)
    exact = {label: saved["state"][index] for label, index in index_of.items() if index in saved["state"]}
    groups = _merged_groups(optimizer, saved)
    if _can_fill(optimizer, exact, labels) and not _has_more(optimizer, saved):
        for live, group in zip(optimizer.param_groups, groups, strict=True):
            _fill(live, {key: value for key, value in group.items() if key not in {"params", "param_names"}})
    else:
        _load(optimizer, saved, exact, groups, labels)
    for label, parameter in _parameters(optimizer, labels):
        if label in exact:
            _fill(optimizer.state[parameter], exact[label], parameter)


def _saved_indices(saved: Mapping[str, Any], labels: Sequence[Sequence[str]]) -> dict[str, int]:
    """Which number the saved state gives each label; by order for a state without names, as torch itself does."""
    index_of: dict[str, int] = {}
    for group, live_labels in zip(saved["param_groups"], labels, strict=True):
        index_of.update(zip(group.get("param_names", live_labels), group["params"], strict=False))
    return index_of


def _parameters(optimizer: Any, labels: Sequence[Sequence[str]]) -> list[tuple[str, Tensor]]:
    return [
        pair
        for group, group_labels in zip(optimizer.param_groups, labels, strict=True)
        for pair in zip(group_labels, group["params"], strict=True)
    ]


def _merged_groups(optimizer: Any, saved: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The saved groups in the live numbering, with the live implementation flags and names."""
    merged, start = [], 0
    for live, group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        kept = {key: live[key] for key in (*_IMPLEMENTATION, "param_names") if key in live}
        dropped = {"param_names"} - kept.keys()
        count = len(live["params"])
        numbers = {"params": list(range(start, start + count))}
        merged.append({key: value for key, value in (group | kept | numbers).items() if key not in dropped})
        start += count
    return merged


def _has_more(optimizer: Any, saved: Mapping[str, Any]) -> bool:
    """Whether only the optimizer itself knows how to load: it overrides it, or keeps more than torch's two parts."""
    overridden = getattr(type(optimizer), "load_state_dict", None) is not torch.optim.Optimizer.load_state_dict
    keyed = any(not isinstance(key, int) for key in saved["state"])
    return overridden or keyed or bool(saved.keys() - {"state", "param_groups"})


def _can_fill(optimizer: Any, exact: Mapping[str, Mapping[str, Any]], labels: Sequence[Sequence[str]]) -> bool:
    for label, parameter in _parameters(optimizer, labels):
        live = optimizer.state.get(parameter, {})
        if live.keys() != exact.get(label, {}).keys():
            return False
    return True


def _load(
    optimizer: Any,
    saved: Mapping[str, Any],
    exact: Mapping[str, Any],
    groups: list[dict[str, Any]],
    labels: Sequence[Sequence[str]],
) -> None:
    """As torch does it: it makes what is missing, on the right devices, and runs the hooks of the optimizer."""
    numbered = [label for group in labels for label in group]
    state = {index: exact[label] for index, label in enumerate(numbered) if label in exact}
    state |= {key: value for key, value in saved["state"].items() if not isinstance(key, int)}
    optimizer.load_state_dict({**saved, "state": state, "param_groups": groups})


def _fill(live: dict[str, Any], saved: Mapping[str, Any], parameter: Tensor | None = None) -> None:
    for key, value in saved.items():
        present = live.get(key)
        if isinstance(present, Tensor) and isinstance(value, Tensor) and _same_kind(present, value):
            with torch.no_grad():
                present.copy_(value)
        else:
            live[key] = _exact_copy(value, present, parameter)


def _same_kind(present: Tensor, saved: Tensor) -> bool:
    # a tensor that is the saved one itself must be replaced, or the optimizer would train the caller's copy
    return present.shape == saved.shape and present.dtype == saved.dtype and present.data_ptr() != saved.data_ptr()


def _exact_copy(value: Any, loaded: Any, parameter: Tensor | None) -> Any:
    """A copy of ``value`` with its own dtype, on the device where torch put ``loaded``."""
    if isinstance(value, Tensor):
        device = loaded.device if isinstance(loaded, Tensor) else parameter.device if parameter is not None else None
        return value.detach().to(device=device or value.device, copy=True)
    if isinstance(value, dict):
        parts = loaded if isinstance(loaded, dict) else {}
        return {key: _exact_copy(part, parts.get(key), parameter) for key, part in value.items()}
    if type(value) in {list, tuple}:
        matching = loaded if isinstance(loaded, (list, tuple)) and len(loaded) == len(value) else [None] * len(value)
        return type(value)(_exact_copy(part, live, parameter) for part, live in zip(value, matching, strict=True))
    return value
