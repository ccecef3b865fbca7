"""Which gradients are inside an accumulation and therefore belong to the state?

Between two steps of an optimizer ``parameter.grad`` is either used up, waiting to be zeroed, or a part of a sum that
the next step will use. Only the latter must be saved. A step marks a few of the gradients that it has used with their
version; gradients whose marks still hold when a save comes are used up. A gradient made anew has no mark, one that was
added to has another version.

Where no step was seen (a save before the first one, an optimizer without hooks) gradients are saved unless all are
zero: rather too many than one too few.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from milepost.checkpoint.arguments import TrainingObjects
from milepost.checkpoint.model_state import named_parameters

__all__ = ["GradientWatch", "capture_gradients", "restore_gradients"]

_MARK = "_milepost_used"
_SAMPLES = 4


class GradientWatch:
    """Knows which gradients the optimizers of a training have used up.

    Args:
        stepped: Called after each step of an optimizer that is watched.
    """

    def __init__(self, stepped: Callable[[], None] = lambda: None) -> None:
        self._stepped = stepped
        self._steps: weakref.WeakKeyDictionary[Any, _Steps] = weakref.WeakKeyDictionary()

    def watch(self, optimizer: Any) -> None:
        """See the steps of ``optimizer`` from now on, by a hook of about a microsecond; asked again, do nothing."""
        if not isinstance(optimizer, torch.optim.Optimizer) or optimizer in self._steps:
            return
        steps = self._steps[optimizer] = _Steps(self._stepped)
        optimizer.register_step_post_hook(steps.note)

    def follow(self, objects: TrainingObjects) -> None:
        """Watch every optimizer of a training."""
        for value in (objects.optimizer, *(objects.extra or {}).values()):
            self.watch(value)

    def held(self, model: nn.Module, others: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Gradients by parameter name that are inside an accumulation; empty where all are used up, zero or absent.

        Args:
            model: The module whose parameters are looked at.
            others: More parameters by name.
        """
        used = {
            id(parameter)
            for optimizer, steps in self._steps.items()
            if steps.used_up()
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        found = {
            name: gradient
            for name, parameter in _parameters(model, others)
            if id(parameter) not in used and (gradient := parameter.grad) is not None
        }
        return found if any(_has_value(gradient) for gradient in found.values()) else {}


class _Steps:
    """The gradients that the last step of one optimizer has used, by a sample of them."""

    def __init__(self, stepped: Callable[[], None]) -> None:
        self._stepped = stepped
        self._samples: list[Tensor] = []

    def note(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        """After a step: mark what it used."""
        if not self._samples or any(parameter.grad is None for parameter in self._samples):
            self._samples = _sample(optimizer)
        for parameter in self._samples:
            gradient = parameter.grad
            if gradient is not None:
                setattr(gradient, _MARK, gradient._version)  # noqa: SLF001 - torch has no public name for it
        self._stepped()

    def used_up(self) -> bool:
        return bool(self._samples) and all(_is_marked(parameter.grad) for parameter in self._samples)


def _is_marked(gradient: Tensor | None) -> bool:
    mark = getattr(gradient, _MARK, None)
    return gradient is not None and mark is not None and mark == gradient._version  # noqa: SLF001 - as above


def _sample(optimizer: Any) -> list[Tensor]:
    """Parameters with a gradient, spread over those of the optimizer."""
    having = [
        parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None
    ]
    return having[:: max(1, len(having) // _SAMPLES)][: _SAMPLES - 1] + having[-1:]


def _parameters(model: nn.Module, others: Mapping[str, Tensor] | None) -> Iterator[tuple[str, Tensor]]:
    seen: set[int] = set()
    for name, parameter in (*named_parameters(model), *(others or {}).items()):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield name, parameter


def _has_value(gradient: Tensor) -> bool:
    values = gradient._values() if gradient.is_sparse else gradient  # noqa: SLF001 - the public one sums them up
    return bool(values.any())


def capture_gradients(held: Mapping[str, Tensor]) -> dict[str, Any]:
    """What :meth:`GradientWatch.held` found as plain tensors: sparse ones as their parts, not summed up."""
    return {name: _parts(gradient) if gradient.is_sparse else gradient for name, gradient in held.items()}


def _parts(gradient: Tensor) -> dict[str, Any]:
    return {
        "indices": gradient._indices(),  # noqa: SLF001 - the public ones refuse what is not summed up yet
        "values": gradient._values(),  # noqa: SLF001
        "shape": tuple(gradient.shape),
        "coalesced": gradient.is_coalesced(),
    }


def restore_gradients(model: nn.Module, saved: Mapping[str, Any], others: Mapping[str, Tensor] | None = None) -> None:
    """Put gradients back: in place where there is one of that kind, else as new tensors.

    A parameter that had none inside the accumulation has none afterwards. Where nothing was saved nothing is changed.

    Args:
        model: The module whose parameters get them.
        saved: As :func:`capture_gradients` made it, on any device.
        others: More parameters by name, as at the save.
    """
    if not saved:
        return
    for name, parameter in _parameters(model, others):
        value = saved.get(name)
        live = parameter.grad
        if value is None:
            parameter.grad = None
        elif live is not None and isinstance(value, Tensor) and _same_kind(live, value):
            with torch.no_grad():
                live.copy_(value)
        else:
            parameter.grad = _whole(value).to(parameter.device, copy=True)


def _same_kind(live: Tensor, saved: Tensor) -> bool:
    return live.layout == saved.layout and live.shape == saved.shape and live.dtype == saved.dtype


def _whole(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    return torch.sparse_coo_tensor(
        value["indices"], value["values"], value["shape"], is_coalesced=value["coalesced"], check_invariants=False
    )
