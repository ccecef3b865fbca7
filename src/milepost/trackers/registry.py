"""Which guests does a configuration ask for, and how does one come to life?

TensorBoard where ``tensorboard_dir`` is set, W&B where ``wandb_project`` is set, MLflow where ``mlflow_uri`` is set,
and every name in ``trackers``. A name is an entry point of the group ``milepost.trackers`` that an installed package
offers; it loads a class or a function without arguments that makes a :class:`milepost.trackers.protocol.Tracker`.

A plan is made early, in the training process, where a wrong name can still be corrected; the guest's code is imported
late, by its follower, where it can do no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from milepost.core.errors import InvalidInputError, MissingDependencyError, NotFoundError
from milepost.core.events import Noticed
from milepost.trackers.delivery import Pace
from milepost.trackers.feed import OpenSource
from milepost.trackers.follower import Follower
from milepost.trackers.protocol import RunDescription, Tracker

__all__ = ["GuestPlan", "build_tracker", "follower_for", "guests_for"]

_GROUP = "milepost.trackers"
_TENSORBOARD = "milepost.trackers.tensorboard:TensorboardTracker"
_WANDB = "milepost.trackers.wandb:WandbTracker"
_MLFLOW = "milepost.trackers.mlflow:MlflowTracker"
#: W&B's service process uploads every 15 seconds; what it holds until then dies with it.
_WANDB_SETTLES = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestPlan:
    """A guest to be: its name, ``"module:attribute"`` of what makes its tracker, and where an MLflow is."""

    name: str
    factory: str
    address: str = ""


def guests_for(config: Mapping[str, Any]) -> list[GuestPlan]:
    """The guests that the fields of an ``ExperimentConfig`` ask for.

    Raises:
        NotFoundError: A name in ``trackers`` belongs to no installed package.
        InvalidInputError: A name is asked for twice.
    """
    plans = []
    if config.get("tensorboard_dir") is not None:
        plans.append(GuestPlan(name="tensorboard", factory=_TENSORBOARD))
    if config.get("wandb_project") is not None:
        plans.append(GuestPlan(name="wandb", factory=_WANDB))
    if config.get("mlflow_uri") is not None:
        plans.append(GuestPlan(name="mlflow", factory=_MLFLOW, address=str(config["mlflow_uri"])))
    plans += [_installed(name) for name in config.get("trackers", ())]
    names = [plan.name for plan in plans]
    for name in names:
        if names.count(name) > 1:
            raise InvalidInputError(f"the tracker {name!r} is asked for twice", cure="name it once in trackers")
    return plans


def build_tracker(plan: GuestPlan, notice: Callable[[Noticed], None]) -> Tracker:
    """Import the guest's code and make its tracker; ``notice`` takes what W&B has to say to a person.

    Raises:
        MissingDependencyError: The code, or a package that it needs, is not installed.
    """
    module, _, attribute = plan.factory.partition(":")
    try:
        make: Any = import_module(module)
        for part in attribute.split("."):
            make = getattr(make, part)
    except (ImportError, AttributeError) as error:
        raise MissingDependencyError(
            f"the tracker {plan.name!r} cannot be loaded from {plan.factory} ({error})",
            cure="install its package again, or take it out of trackers",
        ) from error
    if plan.factory == _MLFLOW:
        return cast("Tracker", make(plan.address, notice))
    return cast("Tracker", make(notice) if plan.factory in {_WANDB, _TENSORBOARD} else make())


def follower_for(
    plan: GuestPlan,
    run: RunDescription,
    *,
    open_source: OpenSource,
    cursor_path: Path,
    notice: Callable[[Noticed], None],
) -> Follower:
    """The follower that tells ``run`` to this guest; not started yet."""
    return Follower(
        plan.name,
        lambda: build_tracker(plan, notice),
        run,
        open_source=open_source,
        cursor_path=cursor_path,
        notice=notice,
        pace=Pace(settle=_WANDB_SETTLES if plan.factory == _WANDB else 0.0),
    )


def _installed(name: str) -> GuestPlan:
    from importlib import metadata  # slow to import, and only for names of further guests

    offered = metadata.entry_points(group=_GROUP)
    if name not in offered.names:
        known = ", ".join(sorted(offered.names)) or "none"
        raise NotFoundError(f"no installed package offers the tracker {name!r}", cure=f"offered are: {known}")
    return GuestPlan(name=name, factory=offered[name].value)
