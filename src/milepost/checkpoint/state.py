"""What belongs to the state of a training?

One nested dict of plain values and live tensors: ``model``, ``optimizer``, ``scheduler``, ``scaler``, ``extra``,
``parameters`` (of the optimizer but not of the model), ``gradients`` (inside an accumulation), ``rng``, ``loader`` and
``facts``. Nothing is copied here; the snapshot does that. Nothing is changed either: no random number is drawn, no
iterator made.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from milepost.checkpoint.arguments import TrainingObjects, is_optimizer
from milepost.checkpoint.facts import facts_of
from milepost.checkpoint.gradients import GradientWatch, capture_gradients
from milepost.checkpoint.huggingface_folder import CONFIG_FACT, huggingface_config
from milepost.checkpoint.model_state import capture_model, describe_model, is_frozen, named_parameters, named_tensors
from milepost.checkpoint.optimizer_state import capture_optimizer, parameter_labels
from milepost.checkpoint.position import capture_position, position_note, track
from milepost.checkpoint.rng import capture_generator, capture_rng

__all__ = [
    "capture",
    "capture_rank",
    "describe_model",
    "facts_of",
    "is_generator",
    "notes_at_resume",
    "notes_at_save",
    "other_parameters",
    "outside_model",
    "parameter_names",
    "state_of",
]


def capture(
    model: nn.Module,
    optimizer: Any = None,
    scheduler: Any = None,
    *,
    scaler: Any = None,
    loader: Any = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """:func:`state_of` these objects; what each may be is said at :class:`TrainingObjects`."""
    return state_of(
        TrainingObjects(
            model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, loader=loader, extra=extra
        )
    )


def state_of(
    objects: TrainingObjects, *, include: str = "all", gradients: GradientWatch | None = None
) -> dict[str, Any]:
    """The state of a training, by reference. Names in it are those of the inner model, wrappers left out.

    Args:
        objects: The live objects.
        include: ``"all"``, or ``"trainable"``: without frozen parameters of the model; the facts keep their names.
        gradients: Who has watched the optimizers; None: gradients do not belong to the state.

    Raises:
        InvalidInputError: Something in it cannot be saved; the message names its place.
        InvalidCallError: An object is of the wrong type.
    """
    objects.check()
    model, optimizer, extra = objects.model, objects.optimizer, objects.extra
    names = parameter_names(model, extra)
    state: dict[str, Any] = {"model": capture_model(model)}
    if include == "trainable":
        state["model"] = {name: value for name, value in state["model"].items() if not is_frozen(value)}
    if optimizer is not None:
        state["optimizer"] = capture_optimizer(optimizer, names)
        outside = outside_model(optimizer, names)
        if outside:
            state["parameters"] = outside
    held = gradients.held(model, other_parameters(objects, names)) if gradients is not None else {}
    if held:
        state["gradients"] = capture_gradients(held)
    for part, value in (("scheduler", objects.scheduler), ("scaler", objects.scaler)):
        if value is not None:
            state[part] = _plain(value.state_dict())
    if extra:
        state["extra"] = {key: _capture_extra(value, names, f"extra.{key}") for key, value in extra.items()}
    state |= capture_rank(objects.loader)
    state["facts"] = facts_of(objects)
    config = huggingface_config(model)
    if config is not None:
        state["facts"][CONFIG_FACT] = config
    return state


def capture_rank(loader: Any = None) -> dict[str, Any]:
    """What each rank has for itself: random number generators and data position. Holds no tensors."""
    state: dict[str, Any] = {"rng": capture_rng()}
    if loader is not None:
        state["loader"] = capture_position(loader)
    return state


def notes_at_save(objects: TrainingObjects) -> Iterator[tuple[str, str]]:
    """What cannot be exact in a state taken now, as (topic, sentence); from here on the loader is tracked."""
    track(objects.loader, begun=True)
    note = position_note(objects.loader)
    if note is not None:
        yield "position", note
    stages = getattr(objects.scaler, "_per_optimizer_states", {}).values()
    if any(getattr(state.get("stage"), "name", "") == "UNSCALED" for state in stages):
        yield "scaler", "the scaler has unscaled gradients that no step has used: save after scaler.update()"


def notes_at_resume(objects: TrainingObjects) -> Iterator[str]:
    """What no checkpoint holds and the script must have built as it was."""
    schedulers = [objects.scheduler]
    while schedulers:
        scheduler = schedulers.pop()
        schedulers += getattr(scheduler, "_schedulers", [])
        if any(isinstance(function, FunctionType) for function in getattr(scheduler, "lr_lambdas", [])):
            yield f"the lambda of {type(scheduler).__name__} is not in the checkpoint: the one given here is used"


def parameter_names(model: nn.Module | None, extra: Mapping[str, Any] | None = None) -> dict[int, str]:
    """Name of each parameter by its ``id``: those of the model, then those of modules in ``extra``."""
    names: dict[int, str] = {}
    modules = [("", model), *((f"extra.{key}.", value) for key, value in (extra or {}).items())]
    for prefix, module in modules:
        if isinstance(module, nn.Module):
            for name, tensor in named_tensors(module):
                names.setdefault(id(tensor), prefix + name)
    return names


def outside_model(optimizer: Any, names: Mapping[int, str]) -> dict[str, Tensor]:
    """Parameters that the optimizer trains and no module given here holds: without them a resume would not be exact."""
    labels = parameter_labels(optimizer, names)
    return {
        label: parameter
        for group, group_labels in zip(optimizer.param_groups, labels, strict=True)
        for label, parameter in zip(group_labels, group["params"], strict=True)
        if id(parameter) not in names
    }


def other_parameters(objects: TrainingObjects, names: Mapping[int, str]) -> dict[str, Tensor]:
    """Parameters outside the model by name: those of modules in ``extra``, and those that only an optimizer holds."""
    found: dict[str, Tensor] = {}
    for key, value in (objects.extra or {}).items():
        if isinstance(value, nn.Module):
            found |= {f"extra.{key}.{name}": tensor for name, tensor in named_parameters(value)}
    return found | (outside_model(objects.optimizer, names) if objects.optimizer is not None else {})


def is_generator(value: Any) -> bool:
    """Whether ``value`` is a random number generator of torch, NumPy or Python."""
    return isinstance(value, (torch.Generator, np.random.Generator, np.random.RandomState, random.Random))


def _capture_extra(value: Any, names: Mapping[int, str], place: str) -> Any:
    if isinstance(value, nn.Module):
        return capture_model(value, place)
    if is_optimizer(value):
        return capture_optimizer(value, names, place)
    if is_generator(value):
        return capture_generator(value)
    return _plain(value.state_dict()) if hasattr(value, "state_dict") else value


def _plain(value: Any) -> Any:
    """Subclasses of dict (a scheduler's Counter, a defaultdict) as dicts; on restore the live object says which."""
    if isinstance(value, dict):
        content = {key: _plain(part) for key, part in value.items()}
        return content if type(value) is not OrderedDict else value
    if type(value) in {list, tuple}:
        return type(value)(_plain(part) for part in value)
    return dict(value) if isinstance(value, Counter) else value
