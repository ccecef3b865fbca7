"""What, beside its state, decides whether a resumed training computes the same numbers?

Settings of torch, versions, devices, and what is frozen or in another mode. They are saved, compared at resume, and
named where they differ; they are never set.

A setting that was made only for a while (``with torch.autocast``) says nothing about the training and is left out.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from functools import cache
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import nn

from milepost.checkpoint.arguments import TrainingObjects
from milepost.checkpoint.model_state import named_modules

__all__ = ["differing_facts", "facts_of"]

#: Attributes of torch that hold a setting.
_SETTINGS = (
    "backends.cuda.matmul.allow_fp16_accumulation",
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
    "backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
    "backends.cudnn.benchmark",
    "backends.cudnn.deterministic",
    "backends.cudnn.enabled",
    "backends.mkldnn.deterministic",
    "utils.deterministic.fill_uninitialized_memory",
)
#: Functions of torch that tell a setting.
_ASKED = (
    "are_deterministic_algorithms_enabled",
    "backends.cuda.cudnn_sdp_enabled",
    "backends.cuda.flash_sdp_enabled",
    "backends.cuda.fp16_bf16_reduction_math_sdp_allowed",
    "backends.cuda.math_sdp_enabled",
    "backends.cuda.mem_efficient_sdp_enabled",
    "get_float32_matmul_precision",
    "get_num_interop_threads",
    "get_num_threads",
    "is_deterministic_algorithms_warn_only_enabled",
)
#: Where float32 may be computed with less precision; the attribute is ``fp32_precision``, before torch 2.9 another.
_PRECISIONS = (
    "backends.cuda.matmul",
    "backends.cudnn",
    "backends.cudnn.conv",
    "backends.cudnn.rnn",
    "backends.mkldnn.conv",
    "backends.mkldnn.matmul",
    "backends.mkldnn.rnn",
)
_VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "PYTHONHASHSEED")


def facts_of(objects: TrainingObjects) -> dict[str, Any]:
    """The facts by name; plain values that can be compared."""
    optimizer, scheduler = objects.optimizer, objects.scheduler
    return {
        "optimizer": None if optimizer is None else type(optimizer).__name__,
        "scheduler": None if scheduler is None else type(scheduler).__name__,
        **_modes(objects.model),
        **_versions(),
        **_settings(),
        **_devices(),
    }


def differing_facts(saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """A sentence for each fact that is known on both sides and differs."""
    return [
        f"not bit-exact for sure: {name} was {_short(saved[name])}, is {_short(value)}"
        for name, value in present.items()
        if name in saved and saved[name] != value
    ]


def _short(value: Any) -> str:
    return f"{len(value)} names" if isinstance(value, list) and len(value) > 3 else str(value)


def _modes(model: nn.Module) -> dict[str, Any]:
    """Which parameters are frozen, and which modules train while the model does not, or the other way round."""
    frozen, other_mode = [], []
    training: bool | None = None
    for path, module in named_modules(model):
        training = module.training if training is None else training
        if module.training != training:
            other_mode.append(path)
        for name, parameter in module._parameters.items():  # noqa: SLF001 - named_parameters leaves out second names
            if parameter is not None and not parameter.requires_grad:
                frozen.append(f"{path}.{name}" if path else name)
    return {"frozen": frozen, "other_mode": other_mode}


@cache
def _versions() -> dict[str, Any]:
    """What cannot change while the process lives."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _settings() -> dict[str, Any]:
    facts: dict[str, Any] = {"default_dtype": str(torch.get_default_dtype())}
    facts |= {name: os.environ.get(name) for name in _VARIABLES}
    for device in ("cpu", "cuda"):
        if not torch.is_autocast_enabled(device):  # inside of one, its dtype tells nothing
            facts[f"autocast_dtype.{device}"] = str(torch.get_autocast_dtype(device))
    for name, read in _readers():
        try:
            facts[name] = read()
        except RuntimeError:  # the older names are refused once a newer one was used
            continue
    return facts


@cache
def _readers() -> list[tuple[str, Callable[[], Any]]]:
    """How to read the settings that this torch has."""
    names = list(_SETTINGS)
    for place in _PRECISIONS:
        names += [f"{place}.fp32_precision"] if _has(f"{place}.fp32_precision") else [f"{place}.allow_tf32"]
    readers = [(name, _reader(name)) for name in names if _has(name)]
    return readers + [(name, attrgetter(name)(torch)) for name in _ASKED if _has(name)]


def _reader(name: str) -> Callable[[], Any]:
    owner, _, attribute = name.rpartition(".")
    place = attrgetter(owner)(torch)
    return lambda: getattr(place, attribute)


def _has(name: str) -> bool:
    try:
        attrgetter(name)(torch)
    except AttributeError:
        return False
    except RuntimeError:  # there, but refused at the moment
        return True
    return True


def _devices() -> dict[str, Any]:
    """CUDA devices by name; nothing where CUDA is not in use, because asking would start it."""
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {}
    return _cuda_devices()


@cache
def _cuda_devices() -> dict[str, Any]:
    names = [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())]
    return {"devices": names, "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
