"""How does the state of an optimizer come back with its exact types, and without a second copy of it?

``Optimizer.load_state_dict`` alone is not exact: it casts state to the dtype of the parameter (float32 moments of
bfloat16 parameters are rounded; pytorch issue 43706), and it keeps the tensors it is given. Therefore state that is
there is filled in place. Where none is, the optimizer loads an empty state, by which it takes over its groups, and gets
tensors of the saved dtype that were read into their place.

An optimizer that has its own ``load_state_dict``, or hooks on it, or keeps more than torch's two parts, is given real
tensors instead: only it knows what it makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from milepost.checkpoint.fit import Fit
from milepost.checkpoint.read_plan import Placeholder, ReadPlan
from milepost.core.errors import InvalidInputError

__all__ = ["check_optimizer", "plan_optimizer", "selected"]

#: How the step is computed, not what it computes: the live choice stays, also because devices differ.
_IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")
#: What a scheduler moves; that it differs from the constructor's value is no news.
_SCHEDULED = {"params", "param_names", "lr", "initial_lr", "betas", "momentum", "max_lr", "min_lr"}
_SCHEDULED |= {"base_momentum", "max_momentum", *_IMPLEMENTATION}

Labels = Sequence[Sequence[str]]
State = dict[str, Any]


def selected(saved: Mapping[str, Any], wanted: Callable[[str], bool], place: str) -> dict[str, Any]:
    """``saved`` without the values whose names (:mod:`.naming`) are not wanted; the groups keep their parameters."""
    label_of: dict[Any, str] = {}
    for group in saved["param_groups"]:
        label_of.update(zip(group["params"], group.get("param_names", ()), strict=False))
    state = {
        key: {name: part for name, part in values.items() if wanted(f"{place}.state.{label_of.get(key, key)}.{name}")}
        for key, values in saved["state"].items()
        if isinstance(values, dict)
    }
    groups = [
        {
            key: value
            for key, value in group.items()
            if key in {"params", "param_names"} or wanted(f"{place}.param_groups.{index}.{key}")
        }
        for index, group in enumerate(saved["param_groups"])
    ]
    return {"state": {key: values for key, values in state.items() if values}, "param_groups": groups}


def check_optimizer(optimizer: Any, saved: Mapping[str, Any], labels: Labels, fit: Fit) -> set[str]:
    """Compare before anything is written; the labels of parameters whose state has another shape.

    Raises:
        InvalidInputError: It has other groups, or parameters that the saved one does not know.
    """
    groups = saved["param_groups"]
    if len(groups) != len(optimizer.param_groups):
        raise InvalidInputError(
            f"the checkpoint's optimizer has {len(groups)} parameter groups, this one has {len(labels)}",
            cure="build the optimizer as it was when it was saved",
        )
    index_of = _saved_indices(saved, labels)
    missing = [label for group in labels for label in group if label not in index_of]
    if missing and fit.strict:
        raise InvalidInputError(
            f"the checkpoint's optimizer does not know {len(missing)} parameters, for example {missing[0]!r}",
            cure="build the optimizer as it was when it was saved, or load with strict=False",
        )
    fit.notes += _differences(optimizer, groups)
    unfit = set()
    for label, parameter, _ in _parameters(optimizer, labels):
        values = saved["state"].get(index_of.get(label), {})
        moment = values.get("exp_avg", values.get("momentum_buffer"))
        if isinstance(moment, Tensor) and moment.dim() > 0 and moment.shape != parameter.shape:
            shapes = f"has shape {tuple(moment.shape)}, the parameter {tuple(parameter.shape)}"
            fit.shapes.append(f"optimizer state of {label!r} {shapes}")
            unfit.add(label)
    return unfit


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
    if isinstance(saved, Placeholder):
        return True  # its number is not read yet, and it is loaded whatever it is
    if isinstance(live, Tensor) or isinstance(saved, Tensor):
        return bool(torch.equal(torch.as_tensor(live).cpu(), torch.as_tensor(saved).cpu()))
    return bool(live == saved)


def plan_optimizer(
    optimizer: Any, saved: Mapping[str, Any], labels: Labels, plan: ReadPlan, *, unfit: set[str], whole: bool
) -> Callable[[], None]:
    """Plan what of ``saved`` is to be read; :func:`check_optimizer` came before.

    Args:
        optimizer: The live one.
        saved: As :func:`milepost.checkpoint.optimizer_state.capture_optimizer` made it.
        labels: Names of its parameters, by group.
        plan: Gets what is to be read.
        unfit: Labels of parameters whose saved state is left out.
        whole: State that was not saved goes; else what was saved is added to what is there.

    Returns:
        What sets the rest, to be called when the plan was carried out.
    """
    index_of = _saved_indices(saved, labels)
    exact = {
        label: saved["state"][index]
        for label, index in index_of.items()
        if index in saved["state"] and label not in unfit
    }
    fillable = not whole or all(
        optimizer.state.get(parameter, {}).keys() == exact.get(label, {}).keys()
        for label, parameter, _ in _parameters(optimizer, labels)
        if label not in unfit
    )
    if whole and (_loads_itself(optimizer, saved) or (not fillable and _has_plain_steps(exact))):
        real = plan.materialise({"saved": dict(saved), "exact": exact})
        return partial(_let_it_load, optimizer, real["saved"], real["exact"], labels)
    states = [
        (parameter, _planned(exact[label], optimizer.state.get(parameter, {}), plan, _devices(parameter, group)))
        for label, parameter, group in _parameters(optimizer, labels)
        if label in exact
    ]
    states += [
        (parameter, dict(optimizer.state.get(parameter, {})))
        for label, parameter, _ in _parameters(optimizer, labels)
        if label in unfit
    ]
    groups = [
        _planned(group, live, plan, lambda _: "cpu")
        for live, group in zip(optimizer.param_groups, _merged_groups(optimizer, saved), strict=True)
    ]
    return partial(_set, optimizer, states, groups, anew=not fillable)


def _saved_indices(saved: Mapping[str, Any], labels: Labels) -> dict[str, int]:
    """Which number the saved state gives each label; by order for a state without names, as torch itself does."""
    index_of: dict[str, int] = {}
    for group, live_labels in zip(saved["param_groups"], labels, strict=True):
        index_of.update(zip(group.get("param_names", live_labels), group["params"], strict=False))
    return index_of


def _parameters(optimizer: Any, labels: Labels) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    for group, group_labels in zip(optimizer.param_groups, labels, strict=True):
        for label, parameter in zip(group_labels, group["params"], strict=True):
            yield label, parameter, group


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


def _loads_itself(optimizer: Any, saved: Mapping[str, Any]) -> bool:
    """Whether only the optimizer itself knows how to load: it overrides it, is watched, or keeps further parts."""
    overridden = getattr(type(optimizer), "load_state_dict", None) is not torch.optim.Optimizer.load_state_dict
    hooks = ("_optimizer_load_state_dict_pre_hooks", "_optimizer_load_state_dict_post_hooks")
    watched = any(getattr(optimizer, name, None) for name in hooks)
    keyed = any(not isinstance(key, int) for key in saved["state"])
    return overridden or watched or keyed or bool(saved.keys() - {"state", "param_groups"})


def _has_plain_steps(exact: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether steps are counted in plain numbers, as torch once did: its optimizers make tensors of them on loading."""
    return any("step" in values and not isinstance(values["step"], Tensor) for values in exact.values())


def _devices(parameter: Tensor, group: Mapping[str, Any]) -> Callable[[str], torch.device | str]:
    """Where torch puts a value of the state: beside its parameter; the step on the CPU unless a kernel reads it."""
    on_device = bool(group.get("capturable") or group.get("fused"))
    return lambda key: "cpu" if key == "step" and not on_device else parameter.device


def _planned(
    saved: Mapping[str, Any], live: Mapping[str, Any], plan: ReadPlan, device: Callable[[str], torch.device | str]
) -> dict[str, Any]:
    return {key: _planned_value(value, live.get(key), plan, device(key)) for key, value in saved.items()}


def _planned_value(value: Any, live: Any, plan: ReadPlan, device: torch.device | str) -> Any:
    """``value`` with tensors that will be filled: the live one where it is of its kind, else a new one."""
    if isinstance(value, Tensor):
        if isinstance(live, Tensor) and _same_kind(live, value):
            plan.write(live, value)
            return live
        return plan.allocate(value, live.device if isinstance(live, Tensor) else device)
    if isinstance(value, dict):
        parts = live if isinstance(live, dict) else {}
        return {key: _planned_value(part, parts.get(key), plan, device) for key, part in value.items()}
    if type(value) in {list, tuple}:
        matching = live if isinstance(live, (list, tuple)) and len(live) == len(value) else [None] * len(value)
        pairs = zip(value, matching, strict=True)
        return type(value)(_planned_value(part, there, plan, device) for part, there in pairs)
    return value


def _same_kind(live: Tensor, saved: Tensor) -> bool:
    if live.shape != saved.shape or live.dtype != saved.dtype:
        return False
    # a tensor that is the saved one itself must be replaced, or the optimizer would train the caller's copy
    return isinstance(saved, Placeholder) or live.data_ptr() != saved.data_ptr()


def _set(
    optimizer: Any, states: list[tuple[Tensor, dict[str, Any]]], groups: list[dict[str, Any]], *, anew: bool
) -> None:
    """Give the optimizer its groups and the tensors that were read."""
    if anew:
        optimizer.load_state_dict({"state": {}, "param_groups": groups})
    for live, group in zip(optimizer.param_groups, groups, strict=True):
        live.update({key: value for key, value in group.items() if key not in {"params", "param_names"}})
    for parameter, values in states:
        optimizer.state.setdefault(parameter, {}).update(values)


def _let_it_load(optimizer: Any, saved: State, exact: Mapping[str, State], labels: Labels) -> None:
    """As torch does it; then its tensors are replaced by exact ones."""
    numbered = [label for group in labels for label in group]
    state = {index: exact[label] for index, label in enumerate(numbered) if label in exact}
    state |= {key: value for key, value in saved["state"].items() if not isinstance(key, int)}
    optimizer.load_state_dict({**saved, "state": state, "param_groups": _merged_groups(optimizer, saved)})
    for label, parameter, _ in _parameters(optimizer, labels):
        live = optimizer.state.get(parameter)
        for key, value in exact.get(label, {}).items() if isinstance(live, dict) else ():
            live[key] = _exact(value, live.get(key), parameter)


def _exact(value: Any, loaded: Any, parameter: Tensor) -> Any:
    """A copy of ``value`` with its own dtype, on the device where torch put ``loaded``; plain values as loaded."""
    if isinstance(value, Tensor):
        device = loaded.device if isinstance(loaded, Tensor) else parameter.device
        return value.detach().to(device=device, copy=True)
    if isinstance(value, dict):
        parts = loaded if isinstance(loaded, dict) else {}
        return {key: _exact(part, parts.get(key), parameter) for key, part in value.items()}
    if type(value) in {list, tuple}:
        matching = loaded if isinstance(loaded, (list, tuple)) and len(loaded) == len(value) else [None] * len(value)
        return type(value)(_exact(part, live, parameter) for part, live in zip(value, matching, strict=True))
    return value if loaded is None else loaded
