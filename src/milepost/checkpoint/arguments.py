"""Can the arguments of a save be meant?

Checked before anything is touched, so a wrong call raises at its own line and not from a thread half a minute later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from milepost.core.errors import InvalidCallError, InvalidInputError

__all__ = ["TrainingObjects", "checked_epoch", "checked_metrics", "checked_step", "is_optimizer"]


@dataclass(frozen=True, slots=True)
class TrainingObjects:
    """The live objects of a training.

    Attributes:
        model: A module, wrapped (DDP, torch.compile) or not; None where only others are restored.
        optimizer: Any ``torch.optim.Optimizer``.
        scheduler: Anything with ``state_dict`` and ``load_state_dict``.
        scaler: A ``torch.amp.GradScaler``.
        loader: The data loader: its position inside the epoch, if it has ``state_dict``, and its generators.
        extra: Named objects with ``state_dict`` (EMA, early stopping), modules, optimizers, generators, plain values.
    """

    model: Any = None
    optimizer: Any = None
    scheduler: Any = None
    scaler: Any = None
    loader: Any = None
    extra: Mapping[str, Any] | None = None

    def completed_by(self, remembered: TrainingObjects) -> TrainingObjects:
        """These objects if there is a model among them; else what is not given is taken from ``remembered``."""
        if self.model is not None:
            return self
        given = {name: value for name, value in self.as_arguments().items() if value is not None}
        return replace(remembered, **given)

    def as_arguments(self) -> dict[str, Any]:
        """The objects by the names of the arguments that take them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def check(self, *, needs_model: bool = True) -> None:
        """Refuse what cannot be meant.

        Raises:
            InvalidCallError: An object is of the wrong type.
        """
        from torch import nn

        if not isinstance(self.model, nn.Module) and (needs_model or self.model is not None):
            raise _wrong("model", self.model, "a torch.nn.Module; put several into one torch.nn.ModuleDict")
        if self.optimizer is not None and not is_optimizer(self.optimizer):
            raise _wrong(
                "optimizer", self.optimizer, 'a torch.optim.Optimizer; further ones go into extra={"name": ...}'
            )
        for name in ("scheduler", "scaler"):
            value = getattr(self, name)
            if value is not None and not (hasattr(value, "state_dict") and hasattr(value, "load_state_dict")):
                raise _wrong(name, value, 'an object with state_dict; further ones go into extra={"name": ...}')
        if self.loader is not None and not hasattr(self.loader, "__iter__"):
            raise _wrong("loader", self.loader, "the data loader of the training loop")
        extra: Any = self.extra
        if extra is not None and not (isinstance(extra, Mapping) and all(isinstance(key, str) for key in extra)):
            raise _wrong("extra", extra, "a dict of names and objects")


def is_optimizer(value: Any) -> bool:
    """Whether ``value`` has parameter groups and a state, like every ``torch.optim.Optimizer``."""
    return hasattr(value, "param_groups") and hasattr(value, "state_dict")


def checked_step(step: Any) -> int:
    """``step`` as an int; NumPy's integers are welcome.

    Raises:
        InvalidCallError: It is no whole number.
        InvalidInputError: It is negative.
    """
    if isinstance(step, bool) or not hasattr(step, "__index__"):
        raise InvalidCallError(f"step is {step!r}", cure="give the number of the last step that was done")
    number = int(step.__index__())
    if number < 0:
        raise InvalidInputError(f"step is {number}", cure="give the number of the last step that was done, 0 or more")
    return number


def checked_epoch(epoch: Any) -> float | None:
    """``epoch`` as a number.

    Raises:
        InvalidCallError: It is none.
    """
    if epoch is None:
        return None
    if hasattr(epoch, "__index__") and not isinstance(epoch, bool):
        return int(epoch.__index__())
    if not isinstance(epoch, float) or not math.isfinite(epoch):
        raise InvalidCallError(f"epoch is {epoch!r}", cure="give a number")
    return float(epoch)


def checked_metrics(metrics: Any) -> dict[str, Any]:
    """``metrics`` as plain values: numbers, texts, None; scalars of torch and NumPy become numbers.

    Raises:
        InvalidCallError: It is no mapping of names.
        InvalidInputError: A value is neither number nor text.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping) or not all(isinstance(name, str) for name in metrics):
        raise _wrong("metrics", metrics, 'a dict of names and numbers, {"loss": 0.3}')
    return {name: _plain_value(name, value) for name, value in metrics.items()}


def _plain_value(name: str, value: Any) -> Any:
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain_value(f"{name}/{key}", part) for key, part in value.items()}
    raise InvalidInputError(
        f"metric {name!r} is of type {type(value).__name__}", cure="give a number or a short text, or leave it out"
    )


def _wrong(name: str, value: object, expected: str) -> InvalidCallError:
    return InvalidCallError(f"{name} is of type {type(value).__name__}", cure=f"give {expected}")
