"""What belongs to the state of a training?

One nested dict of plain values and live tensors: ``model``, ``optimizer``, ``scheduler``, ``scaler``, ``extra``,
``parameters`` (of the optimizer but not of the model), ``rng``, ``loader`` and ``facts``. Nothing is copied here; the
snapshot does that. Nothing is changed either: no random number is drawn, no iterator made.

Facts are not state: settings that decide whether the same numbers come out. They are compared at resume and named when
they differ.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from milepost.checkpoint.arguments import TrainingObjects, is_optimizer
from milepost.checkpoint.model_state import capture_model, describe_model, named_modules, named_tensors
from milepost.checkpoint.optimizer_state import capture_optimizer, parameter_labels
from milepost.checkpoint.position import capture_position
from milepost.checkpoint.rng import capture_generator, capture_rng

__all__ = [
    "capture",
    "capture_rank",
    "describe_model",
    "facts_of",
    "is_generator",
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


def state_of(objects: TrainingObjects, *, include: str = "all") -> dict[str, Any]:
    """The state of a training, by reference. Names in it are those of the inner model, wrappers left out.

    Args:
        objects: The live objects.
        include: ``"all"``, or ``"trainable"``: without frozen parameters.

    Raises:
        InvalidInputError: Something in it cannot be saved; the message names its place.
        InvalidCallError: An object is of the wrong type.
    """
    objects.check()
    model, optimizer, extra = objects.model, objects.optimizer, objects.extra
    names = parameter_names(model, extra)
    state: dict[str, Any] = {"model": capture_model(model)}
    if optimizer is not None:
        state["optimizer"] = capture_optimizer(optimizer, names)
        outside = outside_model(optimizer, names)
        if outside:
            state["parameters"] = outside
    for part, value in (("scheduler", objects.scheduler), ("scaler", objects.scaler)):
        if value is not None:
            state[part] = _plain(value.state_dict())
    if extra:
        state["extra"] = {key: _capture_extra(value, names, f"extra.{key}") for key, value in extra.items()}
    state |= capture_rank(objects.loader)
    state["facts"] = facts_of(objects)
    return state


def capture_rank(loader: Any = None) -> dict[str, Any]:
    """What each rank has for itself: random number generators and data position. Holds no tensors."""
    state: dict[str, Any] = {"rng": capture_rng()}
    if loader is not None:
        state["loader"] = capture_position(loader)
    return state


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


def facts_of(objects: TrainingObjects) -> dict[str, Any]:
    """What decides whether a resumed training computes the same numbers, beside its state."""
    model, optimizer, scheduler = objects.model, objects.optimizer, objects.scheduler
    modules = list(named_modules(model))
    return {
        "optimizer": None if optimizer is None else type(optimizer).__name__,
        "scheduler": None if scheduler is None else type(scheduler).__name__,
        "frozen": [name for name, tensor in named_tensors(model) if _is_frozen(tensor)],
        "other_mode": [path for path, module in modules if module.training != modules[0][1].training],
        "torch": str(torch.__version__),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "default_dtype": str(torch.get_default_dtype()),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
    }


def _is_frozen(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and not tensor.requires_grad
