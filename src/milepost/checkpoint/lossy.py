"""Which tensors of a state may be rounded where the user asked for a smaller file rather than every bit?

The running averages of gradients that optimizers keep: bfloat16 holds their whole range with three digits. Weights are
never rounded, also not those in an optimizer's state (float32 masters, averages, earlier weights). Therefore an average
is known by its name in torch's optimizers, and must have the shape of its parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["moments_of"]

_AVERAGES = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg"}
_AVERAGES |= {"acc_delta", "sum"}  # Adadelta and Adagrad


def moments_of(state: Mapping[str, Any]) -> frozenset[int]:
    """``id`` of each float32 moment of each optimizer in a state as ``state_of`` makes it."""
    extra = state.get("extra", {})
    optimizers = [state.get("optimizer"), *extra.values()]
    shapes = _shapes(state)
    found = (moment for part in optimizers if _is_optimizer(part) for moment in _moments(part, shapes))
    return frozenset(map(id, found))


def _is_optimizer(part: Any) -> bool:
    return isinstance(part, dict) and "param_groups" in part and isinstance(part.get("state"), dict)


def _shapes(state: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Shapes of all parameters by the names that optimizers call them by."""
    parts = {"": state["model"], **{f"extra.{key}.": part for key, part in state.get("extra", {}).items()}}
    named = {
        prefix + name: value for prefix, part in parts.items() if isinstance(part, dict) for name, value in part.items()
    }
    return {
        name: value.shape for name, value in (named | state.get("parameters", {})).items() if isinstance(value, Tensor)
    }


def _moments(optimizer: Mapping[str, Any], shapes: Mapping[str, torch.Size]) -> Iterator[Tensor]:
    for group in optimizer["param_groups"]:
        for label, number in zip(group.get("param_names", ()), group["params"], strict=False):
            for name, value in optimizer["state"].get(number, {}).items():
                average = name in _AVERAGES and isinstance(value, Tensor) and value.dtype == torch.float32
                if average and value.dim() and value.shape == shapes.get(label):
                    yield value
