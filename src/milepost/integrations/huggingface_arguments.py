"""What of ``TrainingArguments``, model and data set describes a run?

Of about a hundred and twenty arguments those are kept that differ from their defaults, and a few that one always wants
to compare. Left out is what says where something is shown or which process this is: it may differ between two attempts
of one training, and hyperparameters are a part of what a run is recognised by.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from enum import Enum
from string import Formatter
from typing import Any

from milepost.core.plain import plain

__all__ = ["data_facts", "hyperparameters_of", "metric_names", "model_facts"]

_ALWAYS = frozenset(
    {"learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "seed"}
    | {"weight_decay", "lr_scheduler_type", "optim", "max_grad_norm", "output_dir"}
)
_NEVER = frozenset(
    {"logging_dir", "run_name", "report_to", "disable_tqdm", "local_rank", "hub_token", "push_to_hub_token"}
    | {"resume_from_checkpoint", "overwrite_output_dir", "do_train", "do_eval", "do_predict", "logging_first_step"}
    | {"log_level", "log_level_replica", "accelerator_config", "project", "trackio_space_id", "ddp_backend"}
    | {"dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "hub_model_id", "use_cpu"}
)
_LARGEST_FACT = 4096
#: What Trainer logs once, at the end, about the whole training.
_ONCE = frozenset({"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"})


def hyperparameters_of(arguments: Any, template: str = "") -> dict[str, Any]:
    """Plain values of the arguments that describe the training.

    Args:
        arguments: The ``TrainingArguments``.
        template: The name of the run; what it asks for is kept too.
    """
    asked = {name for _, name, _, _ in _parsed(template) if name}
    kept: dict[str, Any] = {}
    for field in fields(arguments):
        value = _plain(getattr(arguments, field.name, None))
        if field.name in asked or field.name in _ALWAYS or (field.name not in _NEVER and _differs(field, value)):
            kept[field.name] = value
    return kept


def _parsed(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(Formatter().parse(template))
    except ValueError:
        return []  # what is wrong with it is said where it is filled in


def _differs(field: Field[Any], value: Any) -> bool:
    if field.default is not MISSING:
        default = field.default
    elif field.default_factory is not MISSING:
        default = field.default_factory()
    else:
        default = None
    # an argument that was left out is None, empty or false, and Trainer turns one into another
    return value != _plain(default) and bool(value or _plain(default))


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else plain(value)


def model_facts(model: Any) -> dict[str, Any]:
    """What the model is: its class, how many parameters it has, and where its config differs from the default."""
    if model is None:
        return {}
    facts: dict[str, Any] = {"class": type(model).__name__}
    parameters = getattr(model, "num_parameters", None)
    if callable(parameters):
        facts["parameters"] = parameters()
    to_dict = getattr(getattr(model, "config", None), "to_diff_dict", None)
    config = plain(to_dict()) if callable(to_dict) else {}
    return facts | {name: value for name, value in config.items() if len(json.dumps(value)) <= _LARGEST_FACT}


def data_facts(loaders: Mapping[str, Any]) -> dict[str, Any]:
    """How many samples the data sets of Trainer's loaders hold, where they can say."""
    facts: dict[str, Any] = {}
    for name, loader in loaders.items():
        try:
            facts[f"{name}_samples"] = len(loader.dataset)
        except (AttributeError, TypeError, NotImplementedError):
            continue
    return facts


def metric_names(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Trainer's names as its W&B callback makes them: ``train/loss``, ``eval/loss``, ``test/f1``.

    What is logged once about the whole training (``train_loss``: the mean of all steps) keeps its name, as it does in
    the summary of W&B. ``epoch`` is no metric.
    """
    return {_metric_name(name): value for name, value in logs.items() if name != "epoch"}


def _metric_name(name: str) -> str:
    split, found, rest = name.partition("_")
    if name in _ONCE:
        return name
    return f"{split}/{rest}" if found and split in {"eval", "test"} else f"train/{name}"
