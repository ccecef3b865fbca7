"""How is the state of an optimizer kept by the names of its parameters?

Kept is what ``optimizer.state_dict()`` says, so that torch itself can load it, with ``param_names`` in each group. The
names make it independent of the order of the parameters. A parameter that is not in the model is called by its place,
``optimizer.param_groups[0].params[1]``. How it comes back: :mod:`.optimizer_restore`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from milepost.core.errors import InvalidInputError

__all__ = ["capture_optimizer", "parameter_labels"]


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
