"""Which memory changes only inside of an optimizer's step, as far as one can see?

What exactly one optimizer of torch has in its groups or in its state, if that optimizer announces its steps: a hook
runs before each. Not what a captured graph replays, which runs no hook, and not the weight of an embedding with
``max_norm``, which changes in the forward pass. Everything else may change at any time: buffers, averages, weights
that nobody trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from milepost.checkpoint.arguments import TrainingObjects, is_optimizer

__all__ = ["changed_only_by_steps"]

_PLAIN = {Tensor, nn.Parameter}


def changed_only_by_steps(objects: TrainingObjects) -> frozenset[int]:
    """Addresses of storages that only an announced step changes."""
    owners: dict[int, set[int]] = {}
    excluded = {_address(tensor) for tensor in _changed_in_forward(objects)}
    for optimizer in _optimizers(objects):
        announced = _announces_its_steps(optimizer)
        for tensor in _tensors(optimizer):
            address = _address(tensor)
            owners.setdefault(address, set()).add(id(optimizer))
            if not announced or type(tensor) not in _PLAIN:
                excluded.add(address)
    return frozenset(address for address, who in owners.items() if len(who) == 1) - excluded


def _optimizers(objects: TrainingObjects) -> Iterator[Any]:
    yield from (value for value in (objects.optimizer, *(objects.extra or {}).values()) if is_optimizer(value))


def _announces_its_steps(optimizer: Any) -> bool:
    if not isinstance(optimizer, Optimizer) or any(group.get("capturable") for group in optimizer.param_groups):
        return False
    step: Any = optimizer.step
    # a scheduler of torch wraps the step, others replace it
    untouched = "step" not in vars(optimizer) or hasattr(step, "_wrapped_by_lr_sched")
    return untouched and bool(getattr(step, "hooked", False))


def _tensors(optimizer: Any) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
    for state in getattr(optimizer, "state", {}).values():
        if isinstance(state, dict):
            yield from (value for value in state.values() if isinstance(value, Tensor) and value.dim())


def _changed_in_forward(objects: TrainingObjects) -> Iterator[Tensor]:
    for module in (objects.model, *(objects.extra or {}).values()):
        if isinstance(module, nn.Module):
            for part in module.modules():
                if getattr(part, "max_norm", None) is not None:
                    yield from part.parameters(recurse=False)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
